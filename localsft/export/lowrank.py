"""The update that an adapter makes to each linear, in one form for every file format, and how far two updates are apart.

ΔW = scale·(a·b)ᵀ with a (in, R), b (R, out); for a stack of X experts a (X, in, R), b (X, R, out). DoRA besides gives each row of
W + ΔW a norm of its own, its magnitude (localsft/engine/cpu/dora.py). Differences are taken of
the whole ΔW, but computed on its factors: with L = [a₁ a₂] = Q₁R₁ and M = [s₁b₁; -s₂b₂]ᵀ = Q₂R₂, ‖ΔW₁ - ΔW₂‖ = ‖R₁R₂ᵀ‖, so
that a module costs (in + out)·R² instead of in·out·R. In float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32
from localsft.checkpoint import SavedAdapter
from localsft.errors import InputError
from localsft.weights.quant import row_squares
from localsft.weights.tensor import Dense


@dataclass(frozen=True, slots=True)
class Update:
    """One linear's ΔW = scale·(a·b)ᵀ. ``a`` float32 (in, R) or (X, in, R); ``b`` float32 (R, out) or (X, R, out).

    ``magnitude``: of DoRA, the norms of the rows of the sum, float32 (out,).
    """

    a: Float32
    b: Float32
    scale: float
    magnitude: Float32 | None = None

    @property
    def rank(self) -> int:
        return int(self.a.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it changes: (out, in) or (X, out, in)."""
        return (*self.a.shape[:-2], int(self.b.shape[-1]), int(self.a.shape[-2]))

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius, over all experts, magnitudes aside."""
        return abs(self.scale) * _product_norm(self.a, self.b)

    def delta(self, weight: Float32) -> Float32:
        """What is added to ``weight`` W: ΔW, or with DoRA magnitude·(W + ΔW)/‖W + ΔW‖ - W by rows; float32, in the shape of W."""
        product: Float32 = np.float32(self.scale) * np.matmul(self.a, self.b)
        low_rank = np.ascontiguousarray(product.swapaxes(-1, -2))
        if self.magnitude is None:
            return low_rank
        norms = np.sqrt(row_squares(Dense(weight + low_rank))).astype(np.float32)
        factors = np.divide(self.magnitude, norms, out=np.ones_like(norms), where=norms > 0)[:, None]
        delta: Float32 = (factors - 1) * weight + factors * low_rank  # of weight's size only what changes
        return delta


def difference(one: Update, other: Update) -> float:
    """‖ΔW₁ - ΔW₂‖ (Frobenius), and that of the magnitudes; infinite where the shapes differ or only one has magnitudes."""
    if one.shape != other.shape or (one.magnitude is None) != (other.magnitude is None):
        return float("inf")
    left = np.concatenate([one.a, other.a], axis=-1)
    right = np.concatenate([np.float64(one.scale) * one.b, np.float64(-other.scale) * other.b], axis=-2)
    products = _product_norm(left, right)
    if one.magnitude is None or other.magnitude is None:
        return products
    return float(np.hypot(products, np.linalg.norm(one.magnitude.astype(np.float64) - other.magnitude)))


def _product_norm(a: NDArray[Any], b: NDArray[Any]) -> float:
    r1 = np.asarray(np.linalg.qr(a.astype(np.float64), mode="r"))
    r2 = np.asarray(np.linalg.qr(b.astype(np.float64).swapaxes(-1, -2), mode="r"))
    return float(np.linalg.norm(np.matmul(r1, r2.swapaxes(-1, -2))))


def updates_of(tensors: Mapping[str, NDArray[Any]], scale: float, where: str = "the adapter") -> dict[str, Update]:
    """The updates of tensors under mlx-lm's names and in its shapes, by linear. Raises InputError for a half without the other."""
    modules = sorted({name.rpartition(".")[0] for name in tensors})
    found: dict[str, Update] = {}
    for module in modules:
        halves = [tensors.get(f"{module}.lora_a"), tensors.get(f"{module}.lora_b")]
        if halves[0] is None or halves[1] is None:
            missing = "lora_a" if halves[0] is None else "lora_b"
            raise InputError(f"{where}: {module}.{missing} is missing; write the adapter again with the program that made it")
        a, b = (np.asarray(half, np.float32) for half in halves)
        if a.ndim == 3:  # mlx-lm keeps experts the other way round: (X, R, in) and (X, out, R)
            a, b = a.swapaxes(1, 2), b.swapaxes(1, 2)
        if a.shape[-1] != b.shape[-2]:
            raise InputError(f"{where}: {module}.lora_a has rank {a.shape[-1]}, its lora_b {b.shape[-2]}; the adapter is damaged")
        magnitude = tensors.get(f"{module}.m")
        if magnitude is not None and magnitude.shape != (b.shape[-1],):
            raise InputError(f"{where}: {module}.m has shape {magnitude.shape}, not ({b.shape[-1]},); the adapter is damaged")
        found[module] = Update(a, b, scale, None if magnitude is None else np.asarray(magnitude, np.float32))
    return found


def adapter_updates(adapter: SavedAdapter, where: str = "the adapter") -> dict[str, Update]:
    """The updates of a trained adapter, by linear."""
    return updates_of(adapter.tensors, adapter.lora.scale, where)


def mlx_tensors(updates: Mapping[str, Update], scale: float) -> dict[str, Float32]:
    """Tensors in mlx-lm's names and shapes that make ``updates`` when scaled by ``scale``."""
    tensors: dict[str, Float32] = {}
    for module, update in updates.items():
        ratio = np.float32(update.scale / scale)
        a, b = update.a, update.b if ratio == 1 else update.b * ratio
        if a.ndim == 3:
            a, b = a.swapaxes(1, 2), b.swapaxes(1, 2)
        tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"] = np.ascontiguousarray(a), np.ascontiguousarray(b)
        if update.magnitude is not None:
            tensors[f"{module}.m"] = update.magnitude
    return tensors
