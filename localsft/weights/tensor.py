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
