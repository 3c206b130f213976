"""The two forms a weight has once it is loaded: dense, or affine-quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Dense:
    """A plain tensor. ``data`` float32, float16, or uint16 holding bfloat16 bits (``bf16`` is then True).

    Usually a read-only view of a memory-mapped file.
    """

    data: NDArray[Any]
    bf16: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)


@dataclass(frozen=True, slots=True)
class AffineQuantized:
    """w = scale·q + bias per group of ``group_size`` inputs (last axis), q unsigned ``bits``-bit.

    ``packed`` uint32 (out, in·bits/32), little-end first as MLX packs: value i of a row occupies bits
    [i·bits, (i+1)·bits) of the row's little-endian bit string. ``scales``, ``biases`` (out, in/group_size) in float32,
    float16, or uint16 holding bfloat16 bits (``bf16_scales`` is then True).
    """

    packed: NDArray[np.uint32]
    scales: NDArray[Any]
    biases: NDArray[Any]
    bits: int
    group_size: int
    bf16_scales: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.packed.shape[0]), int(self.packed.shape[1]) * 32 // self.bits


Tensor = Dense | AffineQuantized


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether both hold the same numbers in the same form. Compares in blocks of rows, as these may be mapped files of gigabytes."""
    if isinstance(one, Dense) and isinstance(other, Dense):
        pairs = [(one.data, other.data)]
        same_form = one.bf16 == other.bf16
    elif isinstance(one, AffineQuantized) and isinstance(other, AffineQuantized):
        pairs = [(one.packed, other.packed), (one.scales, other.scales), (one.biases, other.biases)]
        same_form = (one.bits, one.group_size, one.bf16_scales) == (other.bits, other.group_size, other.bf16_scales)
    else:
        return False
    if not same_form or any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return False
    return all(np.array_equal(a[i : i + 4096], b[i : i + 4096]) for a, b in pairs for i in range(0, len(a), 4096))
