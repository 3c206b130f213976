"""The adapter inside an mlx-lm model: linears replaced by the same linear plus a low-rank update.

Replacing a module of the tree is how MLX itself adapts and quantizes models; mlx-lm's own LoRA layers do it too. Ours
compute in the base's dtype from float32 masters, and draw dropout from a key that is given, so that a run can be repeated.
DoRA is explained in localsft/engine/cpu/dora.py.

Letters: R rank, X experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from numpy.typing import NDArray

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

    def use(self, tensors: Sequence[mx.array]) -> None:
        """``tensors``: as ``tensors`` gives them."""
        self.lora_a, self.lora_b = tensors

    @property
    def tensors(self) -> tuple[mx.array, ...]:
        """What a call reads and a gradient flows to."""
        return self.lora_a, self.lora_b

    def low_rank(self, x: mx.array) -> mx.array:
        low = _drop(x, self.dropout, self._key) @ self.lora_a.astype(x.dtype)
        return (self.scale * low) @ self.lora_b.astype(x.dtype)

    def __call__(self, x: mx.array) -> mx.array:
        base: mx.array = self.linear(x)
        return base + self.low_rank(x)


class DoraLinear(LoraLinear):
    """c·(W·x + scale·(x·A)·B) + bias, c (out,) float32 by ``factors_of``."""

    def __init__(self, linear: nn.Module, scale: float, dropout: float) -> None:
        super().__init__(linear, scale, dropout)
        self._squares = weight_squares(linear)
        self.factors = mx.zeros(0)

    def use(self, tensors: Sequence[mx.array]) -> None:
        self.lora_a, self.lora_b, self.factors = tensors

    @property
    def tensors(self) -> tuple[mx.array, ...]:
        return self.lora_a, self.lora_b, self.factors

    @property
    def squares(self) -> mx.array:
        """‖W_o‖², float32 (out,)."""
        return self._squares

    def factors_of(self, a: mx.array, b: mx.array, m: mx.array) -> mx.array:
        """m / ‖W + scale·BA‖, float32 (out,); the norm is a constant in the backward pass. A row of zeros has the factor 1."""
        both = 2 * self.scale * _product(self.linear, a.T).astype(mx.float32) + self.scale**2 * ((a.T @ a) @ b)
        norms = mx.stop_gradient(mx.sqrt(mx.maximum(self._squares + (b * both).sum(0), 0)))
        return mx.where(norms > 0, m / mx.where(norms > 0, norms, 1), 1)

    def __call__(self, x: mx.array) -> mx.array:
        out = (_product(self.linear, x) + self.low_rank(x)).astype(mx.float32) * self.factors
        out = out.astype(x.dtype)
        return out + self.linear.bias if "bias" in self.linear else out


def _product(linear: nn.Module, x: mx.array) -> mx.array:
    """x·Wᵀ without the bias."""
    product: mx.array
    if isinstance(linear, nn.QuantizedLinear):
        product = mx.quantized_matmul(
            x, linear.weight, scales=linear.scales, biases=linear.get("biases"), transpose=True,
            group_size=linear.group_size, bits=linear.bits, mode=linear.mode,
        )  # fmt: skip
    else:
        product = x @ linear.weight.T
    return product


def weight_squares(linear: nn.Module) -> mx.array:
    """‖W_o‖² of a linear's rows, float32 (out,)."""
    weight = linear.weight
    if isinstance(linear, nn.QuantizedLinear):
        scales, biases = linear.scales, linear.get("biases")
        if biases is not None:
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        weight = mx.dequantize(weight, scales, biases, linear.group_size, linear.bits, mode=linear.mode)
    squares = mx.square(weight.astype(mx.float32)).sum(-1)
    mx.eval(squares)  # one linear at a time exists in float32
    return squares


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
            kind = LoraExperts if isinstance(module, EXPERT_LINEARS) else DoraLinear if f"{name}.m" in shapes else LoraLinear
            self.layers[name] = kind(module, scale, dropout)
        model.update_modules(tree_unflatten(list(self.layers.items())))

    def put(self, values: Mapping[str, mx.array], key: mx.array | None = None) -> None:
        """Use these tensors from now on, and with a ``key`` dropout."""
        keys = mx.random.split(key, len(self.layers)) if key is not None and self._dropout else None
        for i, (name, layer) in enumerate(self.layers.items()):
            a, b = values[f"{name}.lora_a"], values[f"{name}.lora_b"]
            layer.use((a, b, layer.factors_of(a, b, values[f"{name}.m"])) if isinstance(layer, DoraLinear) else (a, b))
            layer._key = None if keys is None else keys[i]

    def weight_squares(self) -> dict[str, NDArray[np.float64]]:
        """‖W_o‖² (out,) of the linears with DoRA, by name."""
        return {name: np.array(layer.squares, np.float64) for name, layer in self.layers.items() if isinstance(layer, DoraLinear)}
