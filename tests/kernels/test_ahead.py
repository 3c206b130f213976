"""What is fetched before weights are packed: every cache line of theirs, and no other. Results can't show it."""

from __future__ import annotations

import numpy as np
import pytest

from localsft import _core

LINE = 64  # bytes


def lines(array: np.ndarray) -> set[int]:
    """The cache lines that hold a view's bytes, row by row."""
    starts = array.ctypes.data + array.strides[0] * np.arange(len(array))
    return {line for start in starts.tolist() for line in range(start // LINE, (start + array.shape[1] * array.itemsize - 1) // LINE + 1)}


def off_by(nbytes: int, shape: tuple[int, int], dtype: type) -> np.ndarray:
    """An array so many bytes behind the start of a cache line."""
    memory = np.zeros(LINE + nbytes + int(np.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
    start = -memory.ctypes.data % LINE + nbytes
    return np.ndarray(shape, dtype, memory, start)


@pytest.mark.parametrize("offset", [0, 4, 32, 60])
@pytest.mark.parametrize(
    ("row", "rows", "begin", "end"), [(0, 40, 0, 576), (7, 9, 0, 576), (3, 20, 96, 192), (0, 1, 544, 576), (5, 6, 0, 288)]
)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_packed_weights(bits: int, row: int, rows: int, begin: int, end: int, offset: int) -> None:
    packed = off_by(offset, (40, 576 * bits // 32), np.uint32)
    scales, biases = off_by(offset, (40, 18), np.float16), off_by(LINE - 2, (40, 18), np.float16)
    weight = _core.affine_weight(packed, scales, biases, bits, 32)
    block = slice(row, row + rows)
    needed = lines(packed.view(np.uint8)[block, begin * bits // 8 : end * bits // 8])
    for groups in (scales, biases):
        needed |= lines(groups[block, begin // 32 : end // 32])
    assert {address // LINE for address in weight.lines_ahead(row, rows, begin, end)} == needed


@pytest.mark.parametrize(("begin", "end"), [(0, 100), (32, 70)])
def test_dense_weights(begin: int, end: int) -> None:
    data = off_by(8, (12, 100), np.float32)
    fetched = _core.dense_weight(data).lines_ahead(2, 5, begin, end)
    assert {address // LINE for address in fetched} == lines(data[2:7, begin:end])


def test_nothing_is_fetched_for_nothing() -> None:
    weight = _core.dense_weight(np.zeros((4, 8), np.float32))
    assert weight.lines_ahead(4, 0, 0, 8) == weight.lines_ahead(4, -192, 0, 8) == weight.lines_ahead(0, 4, 8, 8) == []
