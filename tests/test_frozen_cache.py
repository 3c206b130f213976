"""The cache of frozen layers' outputs: what it returns is what was put in, whatever happened to the files meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from localsft.frozen_cache import FrozenCache, cache_key, evict

WIDTH = 6


def rows(count: int, seed: int = 0) -> tuple[list[bytes], np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.bytes(16) for _ in range(count)], random.standard_normal((count, WIDTH)).astype(np.float32)


def open_cache(root: Path, key: str = "a", max_bytes: int = 1 << 20) -> FrozenCache:
    return FrozenCache(root, key, WIDTH, max_bytes)


def test_rows_come_back_in_any_order_and_after_reopening(tmp_path: Path) -> None:
    keys, values = rows(20)
    cache = open_cache(tmp_path)
    out = np.empty((3, WIDTH), np.float32)
    assert not cache.read(keys[:3], out)
    cache.add(keys, values)
    order = [7, 8, 2]
    for again in (False, True):
        if again:
            cache.close()
            cache = open_cache(tmp_path)
        assert cache.read([keys[i] for i in order], out)
        assert np.array_equal(out, values[order])


def test_a_missing_row_is_a_miss(tmp_path: Path) -> None:
    keys, values = rows(4)
    cache = open_cache(tmp_path)
    cache.add(keys[:3], values[:3])
    assert not cache.read(keys, np.empty((4, WIDTH), np.float32))


def test_a_torn_tail_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    keys, values = rows(5)
    cache = open_cache(tmp_path)
    cache.add(keys, values)
    cache.close()
    with open(cache.folder / "rows.bin", "r+b") as file:
        file.truncate(5 * 4 * WIDTH - 3)
    cache = open_cache(tmp_path)
    out = np.empty((4, WIDTH), np.float32)
    assert cache.read(keys[:4], out) and np.array_equal(out, values[:4])
    assert not cache.read(keys[4:], out[:1])
    cache.add(keys[4:], values[4:])
    assert cache.read(keys[4:], out[:1]) and np.array_equal(out[0], values[4])


def test_a_damaged_row_is_a_miss_never_a_wrong_number(tmp_path: Path) -> None:
    keys, values = rows(3)
    cache = open_cache(tmp_path)
    cache.add(keys, values)
    cache.close()
    with open(cache.folder / "rows.bin", "r+b") as file:
        file.seek(4 * WIDTH + 2)
        file.write(b"\xff\xff")
    cache = open_cache(tmp_path)
    out = np.empty((1, WIDTH), np.float32)
    assert not cache.read(keys[1:2], out)
    assert cache.read(keys[2:], out) and np.array_equal(out[0], values[2])


def test_it_is_bounded_and_evicts_the_least_recently_used(tmp_path: Path) -> None:
    keys, values = rows(100)
    per_row = 4 * WIDTH + 24
    first = open_cache(tmp_path, "first", 50 * per_row)
    first.add(keys, values)
    first.close()
    assert (first.folder / "rows.bin").stat().st_size == 50 * 4 * WIDTH
    second = open_cache(tmp_path, "second", 50 * per_row)
    second.add(keys[:10], values[:10])
    assert second.read(keys[:10], np.empty((10, WIDTH), np.float32))
    assert not first.folder.exists()  # it had to go to keep the bound
    second.close()
    evict(tmp_path, keep=None, max_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_share_one(tmp_path: Path) -> None:
    keys, values = rows(2)
    first, second = open_cache(tmp_path), open_cache(tmp_path)
    assert second.in_use_elsewhere and not first.in_use_elsewhere
    second.add(keys, values)
    assert not second.read(keys, np.empty((2, WIDTH), np.float32))
    evict(tmp_path, keep=None, max_bytes=0)
    assert first.folder.exists()  # in use


def test_the_key_depends_on_every_part() -> None:
    assert cache_key(base="a", layer=1) == cache_key(layer=1, base="a") != cache_key(base="a", layer=2)
