"""Scratch arrays by name: the same memory again, and never an array that was given up."""

import numpy as np
import pytest

from localsft.engine.cpu import buffers
from localsft.engine.cpu.buffers import Buffers


def test_a_name_is_the_same_memory_again() -> None:
    arrays = Buffers()
    large = arrays.take("x", (4, 6), np.float32)
    large[:] = 1
    small = arrays.take("x", (2, 3), np.float32)
    assert small.shape == (2, 3) and small.flags.c_contiguous and np.shares_memory(small, large)
    assert arrays.take("x", (4, 6), np.float32) is large  # made once
    assert not np.shares_memory(large, arrays.take("y", (4, 6), np.float32))
    assert arrays.nbytes == 2 * 4 * 6 * 4


@pytest.mark.parametrize(("shape", "dtype"), [((5, 6), np.float32), ((2, 3), np.uint16)])
def test_what_was_replaced_is_not_handed_out_again(shape: tuple[int, ...], dtype: type) -> None:
    arrays = Buffers()
    before = arrays.take("x", (2, 3), np.float32)
    now = arrays.take("x", shape, dtype)
    assert not np.shares_memory(before, now)
    if dtype is np.float32:
        assert np.shares_memory(arrays.take("x", (2, 3), np.float32), now)
    assert arrays.nbytes == now.nbytes  # the old one is not held


def test_the_views_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MOST_VIEWS", 8)
    arrays = Buffers()
    first = arrays.take("x", (100,), np.float32)
    for rows in range(1, 50):
        assert np.shares_memory(arrays.take("x", (rows,), np.float32), first)
        assert len(arrays._views) <= 8


def test_clear_gives_everything_back() -> None:
    arrays = Buffers()
    before = arrays.take("x", (3,), np.float32)
    arrays.clear()
    assert arrays.nbytes == 0 and not np.shares_memory(before, arrays.take("x", (3,), np.float32))


def test_carved_arrays_lie_beside_each_other() -> None:
    arrays = Buffers()
    shapes = ((3, 5), (0, 7), (4,), (1, 1))
    parts = arrays.carve("x", shapes, np.uint16)
    assert [part.shape for part in parts] == list(shapes) and all(part.flags.c_contiguous for part in parts)
    for i, part in enumerate(parts):
        part[...] = i
    assert [part.tolist() for part in parts] == [np.full(shape, i).tolist() for i, shape in enumerate(shapes)]
    starts = [part.ctypes.data for part in parts if part.size]
    assert all((start - starts[0]) % 64 == 0 for start in starts)
    assert arrays.carve("x", shapes, np.uint16)[0] is parts[0]  # made once


def test_carved_arrays_move_when_they_outgrow_their_buffer() -> None:
    arrays = Buffers()
    before = arrays.carve("x", ((3,), (4,)), np.float32)
    now = arrays.carve("x", ((300,), (4,)), np.float32)
    assert not np.shares_memory(before[1], now[1])
    assert np.shares_memory(arrays.carve("x", ((3,), (4,)), np.float32)[0], now[0])
    assert arrays.nbytes == 1216 + 64
