"""The disk cache of frozen layers' outputs: bounded, keyed by all that it depends on, safe to delete at any time.

A folder a key: ``rows.bin`` (float32 rows) and ``keys.bin`` (24 bytes a row: 16 of the path's key, 8 of a checksum of the row).
A torn tail, a damaged row or a cache in use by another process costs time, never a wrong number.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from localsft.batch import Float32

KEY_BYTES, SUM_BYTES = 16, 8
RECORD = KEY_BYTES + SUM_BYTES


def cache_key(**parts: object) -> str:
    """A folder name for everything that the rows depend on (base hash, layer, ISA, precision, ...)."""
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()[:32]


class FrozenCache:
    """Implements ``engine.cpu.frozen.RowStore`` in ``root/key``, for rows of ``width`` floats.

    Rows are added until all caches under ``root`` together hold ``max_bytes``; the least recently used other caches are
    removed first to make room. Raises OSError when the folder can't be made.
    """

    def __init__(self, root: Path, key: str, width: int, max_bytes: int) -> None:
        self.folder = root / key
        self._root = root
        self._max_bytes = max_bytes
        self._row_bytes = 4 * width
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "wb")  # noqa: SIM115 - held for the life of the cache
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.in_use_elsewhere = False
        except OSError:
            self.in_use_elsewhere = True
        self._room = 0  # rows that may be held
        self._index: dict[bytes, int] = {}
        self._sums: list[bytes] = []
        self._rows: BinaryIO | None = None
        self._keys: BinaryIO | None = None
        self.hits = self.misses = 0
        if not self.in_use_elsewhere:
            self._open()
            self._make_room()

    def _open(self) -> None:
        self._rows = open(self.folder / "rows.bin", "a+b")  # noqa: SIM115 - closed in close()
        self._keys = open(self.folder / "keys.bin", "a+b")  # noqa: SIM115
        complete = min(os.path.getsize(self._rows.name) // self._row_bytes, os.path.getsize(self._keys.name) // RECORD)
        self._rows.truncate(complete * self._row_bytes)  # a tail that a killed process left
        self._keys.truncate(complete * RECORD)
        self._keys.seek(0)
        records = self._keys.read()
        for row in range(complete):
            record = records[row * RECORD : (row + 1) * RECORD]
            self._index[record[:KEY_BYTES]] = row
            self._sums.append(record[KEY_BYTES:])
        os.utime(self.folder)

    def read(self, keys: list[bytes], out: Float32) -> bool:
        found = [self._index.get(key, -1) for key in keys]
        if self._rows is None or -1 in found or not self._read_rows(found, out):
            self.misses += 1
            return False
        self.hits += 1
        return True

    def _read_rows(self, found: list[int], out: Float32) -> bool:
        assert self._rows is not None
        self._rows.flush()
        view = out.reshape(-1).view(np.uint8).data
        start = 0
        while start < len(found):
            stop = start + 1
            while stop < len(found) and found[stop] == found[stop - 1] + 1:
                stop += 1
            target = view[start * self._row_bytes : stop * self._row_bytes]
            if os.preadv(self._rows.fileno(), [target], found[start] * self._row_bytes) != len(target):
                return False
            start = stop
        for i, row in enumerate(found):
            if xxhash.xxh3_64_digest(view[i * self._row_bytes : (i + 1) * self._row_bytes]) != self._sums[row]:
                self._index = {key: at for key, at in self._index.items() if at != row}
                return False
        return True

    def add(self, keys: list[bytes], rows: Float32) -> None:
        if self._rows is None or self._keys is None:
            return
        try:
            for key, row in zip(keys, rows, strict=True):
                if key in self._index:
                    continue
                if len(self._sums) >= self._room and not self._make_room():
                    break
                data = np.ascontiguousarray(row).tobytes()
                self._rows.write(data)
                self._keys.write(key + xxhash.xxh3_64_digest(data))
                self._index[key] = len(self._sums)
                self._sums.append(xxhash.xxh3_64_digest(data))
            self._rows.flush()
            self._keys.flush()
        except OSError:  # a full disk: what is there stays good, nothing more is added
            self._max_bytes = self._room = 0
            self._index = {key: at for key, at in self._index.items() if (at + 1) * self._row_bytes <= os.path.getsize(self._rows.name)}

    def _make_room(self) -> bool:
        """Room for a sixteenth more of the bound than there is now, at the cost of other caches; False at the bound itself."""
        per_row = self._row_bytes + RECORD
        own = len(self._sums) * per_row
        wanted = min(own + self._max_bytes // 16, self._max_bytes)
        others = evict(self._root, keep=self.folder, max_bytes=self._max_bytes - wanted)
        self._room = min(wanted, self._max_bytes - others) // per_row
        return len(self._sums) < self._room

    def close(self) -> None:
        """Give the files and the lock back; the rows stay for the next run."""
        for file in (self._rows, self._keys, self._lock):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self._rows = self._keys = None


def evict(root: Path, *, keep: Path | None, max_bytes: int) -> int:
    """Remove the least recently used caches under ``root``, but for ``keep``, until they fit ``max_bytes``; bytes of those left.

    A cache that another process holds is left alone.
    """
    folders = sorted((path for path in root.iterdir() if path.is_dir() and path != keep), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in folders}
    total = sum(sizes.values())
    for path, size in sizes.items():
        if total <= max_bytes and max_bytes > 0:
            break
        if not _is_locked(path):
            shutil.rmtree(path, ignore_errors=True)
            total -= size
    return total


def _is_locked(path: Path) -> bool:
    try:
        with open(path / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
