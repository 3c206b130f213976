"""Rotary position embedding: the cosines and sines of every position, in the half-rotated form of HF checkpoints."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32, Int32


class RotaryTable:
    """cos and sin of position·frequency, float32 (positions, E/2), grown as longer sequences come."""

    def __init__(self, frequencies: NDArray[np.float64]) -> None:
        self._frequencies = frequencies
        self._cos: Float32 = np.zeros((0, frequencies.size), dtype=np.float32)
        self._sin: Float32 = self._cos

    def at(self, positions: Int32) -> tuple[Float32, Float32]:
        """(T, E/2) each, for the positions int32 (T,)."""
        needed = int(positions.max(initial=-1)) + 1
        if needed > self._cos.shape[0]:
            size = max(1024, 1 << (needed - 1).bit_length())
            angles = np.arange(size, dtype=np.float64)[:, None] * self._frequencies[None, :]
            self._cos, self._sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return self._cos[positions], self._sin[positions]
