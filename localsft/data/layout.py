"""Where packing and sharing cut examples: which pack each one is in, and which of its tokens are computed once for several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Example, PackedBatch
from localsft.data.pack import pack_owned

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens ``begin`` to ``end`` of an example, within one segment of its pack, computed once for ``examples`` examples."""

    segment: int
    begin: int
    end: int
    examples: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an example is computed: its parts, in order, from token 0 to its last target, which is predicted and not computed."""

    example: int  # index in the sequence that was laid out
    parts: tuple[Part, ...]

    @property
    def shared(self) -> int:
        """Tokens of its beginning that are computed for other examples too."""
        return max((part.end for part in self.parts if part.examples > 1), default=0)

    @property
    def sizes(self) -> dict[int, int]:
        """Tokens that the example has in each of its segments, from the root on."""
        sizes: dict[int, int] = {}
        for part in self.parts:
            sizes[part.segment] = sizes.get(part.segment, 0) + part.end - part.begin
        return sizes

    @property
    def cuts(self) -> tuple[int, ...]:
        """The tokens before which fewer examples go on together than until there."""
        return tuple(one.end for one, other in zip(self.parts, self.parts[1:], strict=False) if one.examples != other.examples)


@dataclass(frozen=True, slots=True)
class Pack:
    """One batch that is computed. ``step`` and ``number`` count from 1, the latter within its step. ``tokens``: those that it computes;
    ``alone``: those of its examples if nothing were shared. ``parents``: of each segment, -1 for a root."""

    step: int
    number: int
    tokens: int
    alone: int
    parents: tuple[int, ...]
    places: tuple[Place, ...]


def lay_out(
    examples: Sequence[Example], *, batch_size: int, tokens_per_pack: int, pack: bool = True, share_prefix: bool = True
) -> list[Pack]:
    """The packs of ``examples`` taken in this order, ``batch_size`` a step, as a training run lays them. Examples without a target
    are in none of them."""
    packs: list[Pack] = []
    for step, first in enumerate(range(0, len(examples), batch_size), 1):
        owned_batches = pack_owned(examples[first : first + batch_size], tokens_per_pack, pack, share_prefix)
        for number, owned in enumerate(owned_batches, 1):
            batch = owned.batch
            rows = {int(owner): _rows(batch, owned.targets[owned.owners == owner]) for owner in np.unique(owned.owners)}
            users = np.bincount(np.concatenate([*rows.values()]), minlength=batch.n_tokens)
            places = tuple(Place(first + owner, _parts(batch, own, users)) for owner, own in rows.items())
            alone = sum(map(len, rows.values()))
            packs.append(Pack(step, number, batch.n_tokens, alone, tuple(batch.segment_parents.tolist()), places))
    return packs


def _rows(batch: PackedBatch, targets: Int64) -> Int64:
    """The rows of the batch (n,) that hold an example's tokens up to the row of its last target, given all its targets."""
    rows = batch.target_rows[targets]
    last = int(rows[np.argmax(batch.positions[rows])])
    segment = int(np.searchsorted(batch.segment_starts, last, "right")) - 1
    path = [np.arange(batch.segment_starts[segment], last + 1)]
    while (segment := int(batch.segment_parents[segment])) >= 0:
        path.append(np.arange(batch.segment_starts[segment], batch.segment_starts[segment + 1]))
    return np.concatenate(path[::-1])


def _parts(batch: PackedBatch, rows: Int64, users: Int64) -> tuple[Part, ...]:
    segments = np.searchsorted(batch.segment_starts, rows, "right") - 1
    counts = users[rows]
    begins = np.flatnonzero(np.concatenate([[True], (np.diff(segments) != 0) | (np.diff(counts) != 0)]))
    ends = [*begins[1:].tolist(), len(rows)]
    return tuple(Part(int(segments[begin]), begin, end, int(counts[begin])) for begin, end in zip(begins.tolist(), ends, strict=True))
