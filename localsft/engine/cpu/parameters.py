"""The adapter's parameters: one flat float32 vector, its gradient and its moments, and views of them by name.

Flat, so that the norm and AdamW are one kernel call each; the views are what the kernels of a linear read and add to.
A is kept as (R, in), the transpose of mlx-lm's ``lora_a`` (in, R): its rows are what both matrix products stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32
from localsft.engine.adapter import Shape, fitting


class AdapterParameters:
    """``shapes``: mlx-lm's names and shapes, ``<module>.lora_a`` (in, R), ``<module>.lora_b`` (R, out), ``<module>.m`` (out,)."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(shapes)
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self.values = np.zeros(size, dtype=np.float32)
        self.gradient = np.zeros(size, dtype=np.float32)
        self.moment1 = np.zeros(size, dtype=np.float32)
        self.moment2 = np.zeros(size, dtype=np.float32)
        self._ranges: dict[str, tuple[int, int]] = {}
        start = 0
        for name, shape in self.shapes.items():
            self._ranges[name] = (start, start + math.prod(shape))
            start += math.prod(shape)

    def view(self, flat: Float32, name: str) -> Float32:
        """The part of ``flat`` that is ``name``, in the kernels' layout: A (R, in), B (R, out), m (out,)."""
        shape = self.shapes[name]
        start, stop = self._ranges[name]
        return flat[start:stop].reshape(shape[::-1] if name.endswith(".lora_a") else shape)

    def export(self, flat: Float32) -> dict[str, Float32]:
        """Copies by name in mlx-lm's shapes."""
        return {
            name: np.ascontiguousarray(self.view(flat, name).T if name.endswith(".lora_a") else self.view(flat, name)).copy()
            for name in self.shapes
        }

    def load(self, flat: Float32, tensors: Mapping[str, NDArray[Any]], what: str) -> None:
        """The reverse of ``export``. Raises InputError that names what is missing, unknown, mis-shaped or not finite."""
        for name, value in fitting(tensors, self.shapes, what).items():
            self.view(flat, name)[...] = value.T if name.endswith(".lora_a") else value
