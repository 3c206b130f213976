"""The adapter inside an mlx-lm model: linears replaced by the same linear plus a low-rank update.

Replacing a module of the tree is how MLX itself adapts and quantizes models; mlx-lm's own LoRA layers do it too. Ours
compute in the base's dtype from float32 masters, and draw dropout from a key that is given, so that a run can be repeated.

Letters: R rank, X experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from localsft.engine.adapter import Shape

LINEARS = (nn.Linear, nn.QuantizedLinear)
EXPERT_LINEARS = (SwitchLinear, QuantizedSwitchLinear)
# The linear that picks the experts of a token stays as it is: an adapter there would move tokens between experts.
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})


class LoraLinear(nn.Module):  # type: ignore[misc]
    """W·x + scale·(x·A)·B; A (in, R) and B (R, out) float32, used in the dtype of x."""

    def __init__(self, linear: nn.Module, scale: float, dropout: float) -> None:
        super().__init__()
        self.linear = linear
        self.scale = scale
        self.dropout = dropout
        self._key: mx.array | None = None  # set for training only
        self.lora_a = mx.zeros(0)
        self.lora_b = mx.zeros(0)

    def __call__(self, x: mx.array) -> mx.array:
        low = _drop(x, self.dropout, self._key) @ self.lora_a.astype(x.dtype)
        base: mx.array = self.linear(x)
        return base + (self.scale * low) @ self.lora_b.astype(x.dtype)


class LoraExperts(LoraLinear):
    """The same for a stack of X experts, of which each token uses some: A (X, R, in), B (X, out, R), as mlx-lm has them."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:  # type: ignore[override]
        def through(x: mx.array, weight: mx.array) -> mx.array:
            weight = weight.astype(x.dtype).swapaxes(-1, -2)
            return mx.gather_mm(x, weight, rhs_indices=indices, sorted_indices=sorted_indices)

        low = through(_drop(x, self.dropout, self._key), self.lora_a)
        base: mx.array = self.linear(x, indices, sorted_indices=sorted_indices)
        return base + through(self.scale * low, self.lora_b)


def _drop(x: mx.array, probability: float, key: mx.array | None) -> mx.array:
    if key is None or not probability:
        return x
    keep = mx.random.bernoulli(1 - probability, x.shape, key=key)
    return mx.where(keep, x * (1 / (1 - probability)), 0)


def linear_shapes(model: nn.Module) -> dict[str, Shape]:
    """Name -> (out, in) or (X, out, in) of every linear layer that can carry an adapter, routers left out."""
    shapes: dict[str, Shape] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (*LINEARS, *EXPERT_LINEARS)) or ROUTERS & set(name.split(".")[-2:]):
            continue
        *outer, width = module.weight.shape
        if isinstance(module, (nn.QuantizedLinear, QuantizedSwitchLinear)):
            width = width * 32 // module.bits
        shapes[name] = (*outer, width)
    return dict(sorted(shapes.items()))


class Adapter:
    """The LoRA layers of a model by tensor name. Their values live outside, in plain dicts, and are put in before use."""

    def __init__(self, model: nn.Module, shapes: Mapping[str, Shape], scale: float, dropout: float) -> None:
        modules = dict(model.named_modules())
        self.layers: dict[str, Any] = {}
        self._dropout = dropout
        for name in sorted({tensor.rpartition(".")[0] for tensor in shapes}):
            module = modules[name]
            self.layers[name] = (LoraExperts if isinstance(module, EXPERT_LINEARS) else LoraLinear)(module, scale, dropout)
        model.update_modules(tree_unflatten(list(self.layers.items())))

    def put(self, values: Mapping[str, mx.array], key: mx.array | None = None) -> None:
        """Use these tensors from now on, and with a ``key`` dropout."""
        keys = mx.random.split(key, len(self.layers)) if key is not None and self._dropout else None
        for i, (name, layer) in enumerate(self.layers.items()):
            layer.lora_a, layer.lora_b = values[f"{name}.lora_a"], values[f"{name}.lora_b"]
            layer._key = None if keys is None else keys[i]
