"""Skipping the frozen layers: below the lowest adapted layer the residual stream of a token depends on its path alone.

With ``--layers N`` the layers below are the same in every epoch. What leaves them, h float32 (D,) a token, is kept under a key
of the token's whole path (all ids and positions before it), so it is found again however the examples were packed or shared.
"""

from __future__ import annotations

from typing import Protocol

import xxhash

from localsft.batch import Float32, PackedBatch

Key = bytes  # 16 bytes


class RowStore(Protocol):
    """Where rows are kept between passes. What it holds was computed by the same weights, layer, precision and ISA."""

    def read(self, keys: list[Key], out: Float32) -> bool:
        """Fill ``out`` (len(keys), D) and return True, or return False when any row is missing or damaged."""

    def add(self, keys: list[Key], rows: Float32) -> None:
        """Keep rows (len(keys), D) that are not there yet, as far as there is room."""


def path_keys(batch: PackedBatch) -> list[Key]:
    """A 128-bit key of each row's path: the hash of its parent's key, its token and its position."""
    tokens = batch.tokens.tolist()
    positions = batch.positions.tolist()
    keys: list[Key] = [b""] * len(tokens)
    for segment, parent in enumerate(batch.segment_parents.tolist()):
        start, stop = int(batch.segment_starts[segment]), int(batch.segment_starts[segment + 1])
        key = b"" if parent < 0 else keys[int(batch.segment_starts[parent + 1]) - 1]
        for row in range(start, stop):
            key = xxhash.xxh3_128_digest(key + b"%d,%d" % (tokens[row], positions[row]))
            keys[row] = key
    return keys
