"""Memory that is used again: one flat array a name, grown when a batch is larger than any before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Views that are kept, at most: a step takes about a thousand, and each would take microseconds to make while the other threads wait.
MOST_VIEWS = 8192
ALIGNMENT = 64  # bytes: what shares a buffer begins at a cache line


class Buffers:
    """Named scratch arrays. A step touches hundreds of megabytes; fresh arrays would pay a page fault for each 4 KB.

    An array that ``take`` returned is valid until the same name is taken again.
    """

    def __init__(self) -> None:
        self._flat: dict[str, NDArray[Any]] = {}
        self._views: dict[tuple[str, Any, Any], Any] = {}  # of the flat arrays, as they were taken

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An uninitialized C-contiguous array."""
        view = self._views.get((name, shape, dtype))
        if view is None:
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            view = self._views[name, shape, dtype] = self._make(name, shape, dtype)
        return view

    def carve(self, name: str, shapes: Sequence[tuple[int, ...]], dtype: Any) -> list[NDArray[Any]]:
        """Uninitialized C-contiguous arrays that share one buffer: faster than to take them one by one."""
        key = (name, tuple(shapes), dtype)
        parts: list[NDArray[Any]] | None = self._views.get(key)
        if parts is None:
            offsets = carved(shapes, dtype)
            flat = self._make(name, (offsets[-1] // np.dtype(dtype).itemsize,), dtype)
            parts = [np.ndarray(shape, dtype, flat, offset) for shape, offset in zip(shapes, offsets[:-1], strict=True)]
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            self._views[key] = parts
        return parts

    def _make(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.size < size or flat.dtype != dtype:
            self._views.clear()  # they would keep the old one alive
            self._flat.pop(name, None)
            flat = np.empty(max(size, 1), dtype=dtype)
            self._flat[name] = flat
        return flat[:size].reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(flat.nbytes for flat in self._flat.values())

    def clear(self) -> None:
        """Give everything back."""
        self._views.clear()
        self._flat.clear()


def carved(shapes: Sequence[tuple[int, ...]], dtype: Any) -> list[int]:
    """Where each of the arrays that share a buffer begins, in bytes, and where the last one ends."""
    itemsize = np.dtype(dtype).itemsize
    offsets = [0]
    for shape in shapes:
        offsets.append(offsets[-1] + -(-math.prod(shape) * itemsize // ALIGNMENT) * ALIGNMENT)
    return offsets
