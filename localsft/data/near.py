"""Near duplicates: texts that share most of their five-character pieces.

MinHash with locality-sensitive hashing (Broder 1997; rensa) finds candidates; each is then compared exactly, by the Jaccard
similarity of the two sets of pieces, so that what is reported is so. Case, punctuation and spacing do not count. Characters
rather than words: languages that write no spaces are compared as well as others.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localsft import _core

THRESHOLD = 0.8
PIECE = 5  # characters
_PERMUTATIONS = 128
_SEED = 42
_CHUNK = 4096  # texts whose signatures are made together
_BACK = 4  # earlier members of a bucket that a text is compared with, and the first: all alike cost no more than that
_WIDE = 64  # members of a bucket that a text of another collection is compared with
_NO_WORD = re.compile(r"[\W_]+")

UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]
_NONE = np.zeros(0, np.uint32)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The sets of pieces of n texts: ``members`` uint32 (P,), hashes, ascending and once each within a text; text i has
    ``members[starts[i]:starts[i + 1]]``. Either may be a memory map. ``ignored``: ascending hashes that don't count."""

    members: UInt32
    starts: Int64
    ignored: UInt32 = field(default_factory=lambda: _NONE)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def ignoring(self, ignored: UInt32) -> Pieces:
        """The same sets, of which ``ignored`` don't count."""
        return Pieces(self.members, self.starts, ignored)

    def counted(self, rows: Int64) -> tuple[UInt32, Int64]:
        """The members that count of the texts ``rows`` (k,), laid end to end, and their starts (k + 1,)."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], sizes)
        members = np.asarray(self.members[places])
        if not len(self.ignored) or not len(members):
            return members, starts
        found = np.minimum(np.searchsorted(self.ignored, members), len(self.ignored) - 1)
        kept = self.ignored[found] != members
        return members[kept], np.concatenate([[0], np.cumsum(kept)])[starts]

    def similarity(self, one: Int64, other: Int64) -> NDArray[np.float32]:
        """Jaccard similarity (m,) of the texts ``one[k]`` and ``other[k]``."""
        values = [np.zeros(0, np.float32)]
        for first in range(0, len(one), _CHUNK):
            pairs = one[first : first + _CHUNK], other[first : first + _CHUNK]
            rows, places = np.unique(np.concatenate(pairs), return_inverse=True)
            members, starts = self.counted(rows)
            values.append(_core.jaccard(members, starts, places[: len(pairs[0])], places[len(pairs[0]) :]))
        return np.concatenate(values)


def pieces_of(texts: Sequence[str], length: int = PIECE) -> Pieces:
    """The pieces of ``length`` characters of each text."""
    plain = [_NO_WORD.sub(" ", text.casefold()).strip() for text in texts]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(text) for text in plain], dtype=np.int64)])
    codes = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), "<u4")
    return Pieces(*_core.text_pieces(codes, starts, length))


class PieceFile:
    """Pieces as they come, in a temporary file rather than in memory."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="localsft-")
        self._file = (Path(self._folder.name) / "pieces.u4").open("w+b")
        self._sizes: list[Int64] = []

    def add(self, pieces: Pieces) -> None:
        """Append the sets of some texts."""
        self._file.write(np.ascontiguousarray(pieces.members, "<u4").tobytes())
        self._sizes.append(np.diff(pieces.starts))

    def pieces(self) -> Pieces:
        """All of them. They are gone with this object."""
        self._file.flush()
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([np.zeros(0, np.int64), *self._sizes]))])
        members = np.memmap(self._file, "<u4", "r", shape=(int(starts[-1]),)) if starts[-1] else _NONE
        return Pieces(members, starts)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._folder.cleanup()

    def __enter__(self) -> PieceFile:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def all_pieces(texts: Iterable[str], file: PieceFile) -> Pieces:
    """The pieces of many texts, in ``file``."""
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == _CHUNK:
            file.add(pieces_of(chunk))
            chunk = []
    file.add(pieces_of(chunk))
    return file.pieces()


def common_pieces(pieces: Pieces, share: float = 0.2, rows: int = 10, sample: int = 2000) -> UInt32:
    """The pieces that stand in more than ``share`` of the texts, and in more than ``rows`` of them: instructions, forms, greetings.

    Of many texts, ``sample`` are looked at, evenly spread.
    """
    chosen = np.arange(0, len(pieces), max(1, len(pieces) // sample))
    members, counts = np.unique(pieces.counted(chosen)[0], return_counts=True)
    return members[counts > max(share * len(chosen), rows)]


def near_earlier(pieces: Pieces, threshold: float = THRESHOLD, rows: Int64 | None = None) -> tuple[Int64, NDArray[np.float32]]:
    """For each text an earlier one that it is near to, (n,), -1 where there is none, and their similarity (n,).

    ``rows``: the texts that are looked at, ascending; None for all.

    ``threshold``: the least Jaccard similarity, above 0 and at most 1, at which two texts are near. A text of which nothing counts
    is near to nothing.
    """
    found, values = np.full(len(pieces), -1, np.int64), np.zeros(len(pieces), np.float32)
    for early, late in _candidates(*_band_keys(pieces, threshold, rows)):
        open_ones = found[late] < 0
        early, late = early[open_ones], late[open_ones]
        similarity = pieces.similarity(early, late)
        near = similarity >= threshold
        order = np.lexsort((-early[near], similarity[near]))  # the most similar, of them the first, is written last
        found[late[near][order]] = early[near][order]
        values[late[near][order]] = similarity[near][order]
    return found, values


def near_groups(pieces: Pieces, threshold: float = THRESHOLD) -> list[int]:
    """The group of each text: the lowest index of those that it is near to, directly or through others (single linkage). Texts with
    the same pieces are near, even if none of them counts."""
    parent = np.arange(len(pieces))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parent[high] = low

    for early, late in _candidates(*_band_keys(pieces, threshold)):
        while (parent != (shorter := parent[parent])).any():
            parent[:] = shorter
        apart = parent[early] != parent[late]
        early, late = early[apart], late[apart]
        near = pieces.similarity(early, late) >= threshold
        for one, other in zip(early[near].tolist(), late[near].tolist(), strict=True):
            join(one, other)
    first: dict[bytes, int] = {}
    for i in range(len(pieces)):
        own = np.asarray(pieces.members[pieces.starts[i] : pieces.starts[i + 1]]).tobytes()
        if own:
            join(i, first.setdefault(own, i))
    return [root(i) for i in range(len(parent))]


def near_pairs(pieces: Pieces, count: int, threshold: float = THRESHOLD) -> tuple[Int64, Int64, NDArray[np.float32]]:
    """Which of the texts from ``count`` on are near to which of the first ``count``: two arrays (m,) of indices, the later first, and
    the similarities (m,), the most similar first for each. Of a text that hundreds are near to, some."""
    keys, rows = _band_keys(pieces, threshold)
    base, asked = rows < count, rows >= count
    pairs = []
    for band in range(keys.shape[1]):
        known = np.flatnonzero(base)[np.argsort(keys[base, band], kind="stable")]
        first = np.searchsorted(keys[known, band], keys[asked, band], "left")
        last = np.minimum(np.searchsorted(keys[known, band], keys[asked, band], "right"), first + _WIDE)
        sizes = last - first
        places = np.arange(sizes.sum()) + np.repeat(first - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) if len(sizes) else first
        pairs.append(np.repeat(rows[asked], sizes) * count + rows[known[places]])
    later, early = np.divmod(np.unique(np.concatenate(pairs)), max(count, 1))
    similarity = pieces.similarity(early, later)
    near = similarity >= threshold
    later, early, similarity = later[near], early[near], similarity[near]
    order = np.lexsort((early, -similarity, later))
    return later[order], early[order], similarity[order]


def _candidates(keys: UInt64, rows: Int64) -> Iterator[tuple[Int64, Int64]]:
    """Pairs of texts, the earlier first, that are in one bucket, band by band."""
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        key = keys[order, band]
        place = np.arange(len(order))
        fresh = np.concatenate([[True], key[1:] != key[:-1]]) if len(key) else np.zeros(0, bool)
        bucket = np.maximum.accumulate(np.where(fresh, place, 0))
        early, late = [], []
        for back in range(1, _BACK + 1):
            inside = place - back >= bucket
            early.append(order[place[inside] - back])
            late.append(order[inside])
        inside = place - _BACK > bucket
        early.append(order[bucket[inside]])
        late.append(order[inside])
        yield rows[np.concatenate(early)], rows[np.concatenate(late)]


def _band_keys(pieces: Pieces, threshold: float, chosen: Int64 | None = None) -> tuple[UInt64, Int64]:
    """The buckets (m, bands) of the texts ``rows`` (m,) of which anything counts; only of ``chosen`` ones."""
    from rensa import RMinHash

    bands = _bands(threshold)
    keys, rows = [np.zeros((0, bands), np.uint64)], [np.zeros(0, np.int64)]
    chosen = np.arange(len(pieces)) if chosen is None else chosen
    for first in range(0, len(chosen), _CHUNK):
        chunk = chosen[first : first + _CHUNK]
        members, starts = pieces.counted(chunk)
        digests = RMinHash.digest_matrix_from_flat_token_hashes(members.astype(np.uint64), starts, _PERMUTATIONS, _SEED).to_rows()
        own = np.zeros((len(chunk), bands), np.uint64)
        for column in np.array(digests, np.uint64).reshape(len(chunk), bands, -1).transpose(2, 0, 1):
            own = (own ^ column) * np.uint64(0x9E3779B97F4A7C15)
            own ^= own >> np.uint64(29)
        full = np.diff(starts) > 0
        keys.append(own[full])
        rows.append(chunk[full])
    return np.concatenate(keys), np.concatenate(rows)


def _bands(threshold: float) -> int:
    """Bands of the signature, so that a pair at the threshold is missed less than once in a hundred: the fewest that do."""
    for bands in (8, 16, 32, 64):
        if (1 - threshold ** (_PERMUTATIONS // bands)) ** bands < 0.01:
            return bands
    return _PERMUTATIONS
