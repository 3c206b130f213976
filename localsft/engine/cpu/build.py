"""From a loaded base model and LoRA settings to a Model: names become linears, linears become groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from localsft.batch import Float32
from localsft.config import LoraConfig
from localsft.engine.adapter import adapter_shapes
from localsft.engine.cpu.architecture import architecture_of
from localsft.engine.cpu.dora import Magnitude
from localsft.engine.cpu.layers import Adapter, Group, Layer, Linear
from localsft.engine.cpu.model import Model
from localsft.engine.cpu.ops import Ops
from localsft.engine.cpu.parameters import AdapterParameters
from localsft.engine.cpu.rotary import RotaryTable
from localsft.weights.config import rope_frequencies
from localsft.weights.load import BaseModel
from localsft.weights.quant import as_f32, row_squares
from localsft.weights.tensor import Dense


def build_model(base: BaseModel, lora: LoraConfig, ops: Ops, *, checkpoint: bool = False) -> tuple[Model, AdapterParameters]:
    """The model and the parameters that its adapters are views of (all zero)."""
    architecture = architecture_of(base)
    linears = {name: shape for index in range(architecture.layers) for name, shape in architecture.linear_shapes(index).items()}
    parameters = AdapterParameters(adapter_shapes(linears, lora))

    held: list[int] = []

    def weight(name: str) -> Any:
        tensor = base.tensors[name]
        arrays = (tensor.data,) if isinstance(tensor, Dense) else (tensor.packed, tensor.scales, tensor.biases)
        held.append(sum(array.nbytes for array in arrays))
        return ops.weight(tensor)

    def norm(name: str) -> Float32:
        return np.array(as_f32(base.tensors[name]), np.float32)  # a copy: a view would keep the file's pages around it in memory

    def linear(name: str) -> Linear:
        adapter = None
        if f"{name}.lora_a" in parameters.shapes:
            a, b = f"{name}.lora_a", f"{name}.lora_b"
            values, gradient, view = parameters.values, parameters.gradient, parameters.view
            magnitude = None
            if (m := f"{name}.m") in parameters.shapes:
                magnitude = Magnitude.of(view(values, m), view(gradient, m), row_squares(base.tensors[f"{name}.weight"]))
            adapter = Adapter(view(values, a), view(values, b), view(gradient, a), view(gradient, b), lora.scale, magnitude)
        return Linear(name, weight(f"{name}.weight"), adapter)

    layers = []
    for index in range(architecture.layers):
        q, k, v, o, gate, up, down = (linear(name) for name in architecture.linear_shapes(index))
        layers.append(
            Layer(
                index=index,
                attention_norm=norm(f"model.layers.{index}.input_layernorm.weight"),
                qkv=Group(ops, q, k, v),
                q=Group(ops, q),
                kv=Group(ops, k, v),
                o=Group(ops, o),
                mlp_norm=norm(f"model.layers.{index}.post_attention_layernorm.weight"),
                gate_up=Group(ops, gate, up),
                down=Group(ops, down),
            )
        )
    embedding = weight("model.embed_tokens.weight")
    head = embedding if base.config.tied_head else weight("lm_head.weight")
    model = Model(
        ops,
        architecture,
        RotaryTable(rope_frequencies(base.config)),
        embedding,
        layers,
        norm("model.norm.weight"),
        head,
        weight_bytes=sum(held),
        checkpoint=checkpoint,
    )
    return model, parameters
