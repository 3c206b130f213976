"""Near duplicates: texts that share most of their five-character pieces.

MinHash with locality-sensitive hashing (Broder 1997; rensa) finds candidates; each is then compared exactly, by the Jaccard
similarity of the two sets of pieces, so that what is reported is so. Case, punctuation and spacing do not count. Characters
rather than words: languages that write no spaces are compared as well as others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.8
PIECE = 5  # characters
_PERMUTATIONS = 128
_SEED = 42
_NO_WORD = re.compile(r"[\W_]+")


class NearIndex:
    """Texts by key. What is kept of a text is four bytes for each piece of it, and its signature."""

    def __init__(self, threshold: float = THRESHOLD, ignored: frozenset[str] = frozenset()) -> None:
        """``threshold``: the least Jaccard similarity, above 0 and at most 1, at which two texts are near. ``ignored``: pieces that
        don't count, as ``common_pieces`` finds them."""
        from rensa import RMinHashLSH

        self.threshold = threshold
        self._ignored = ignored
        self._lsh = RMinHashLSH(threshold, _PERMUTATIONS, _bands(threshold))
        self._pieces: dict[int, NDArray[np.uint32]] = {}

    def add(self, key: int, text: str) -> None:
        """Keep ``text`` under ``key``, a number that was not given before. A text of which nothing counts is near to nothing."""
        if pieces := self._counted(text):
            self._lsh.insert(key, _signature(pieces))
            self._pieces[key] = _hashes(pieces)

    def near(self, text: str) -> list[tuple[int, float]]:
        """Keys of the texts that are near, with their similarity, the most similar first."""
        pieces = self._counted(text)
        if not pieces:
            return []
        own = _hashes(pieces)
        found = [(key, _jaccard(own, self._pieces[key])) for key in set(self._lsh.query(_signature(pieces)))]
        return sorted(((key, value) for key, value in found if value >= self.threshold), key=lambda pair: (-pair[1], pair[0]))

    def _counted(self, text: str) -> list[str]:
        return [piece for piece in _pieces(text) if piece not in self._ignored]


def common_pieces(texts: Sequence[str], share: float = 0.2, rows: int = 10, sample: int = 2000) -> frozenset[str]:
    """The pieces that stand in more than ``share`` of the texts, and in more than ``rows`` of them: instructions, forms, greetings.

    Of many texts, ``sample`` are looked at, evenly spread.
    """
    chosen = texts[:: max(1, len(texts) // sample)]
    counts = Counter(piece for text in chosen for piece in _pieces(text))
    least = max(share * len(chosen), rows)
    return frozenset(piece for piece, count in counts.items() if count > least)


def near_groups(texts: Iterable[str], threshold: float = THRESHOLD, ignored: frozenset[str] = frozenset()) -> list[int]:
    """The group of each text: the lowest index of those that it is near to, directly or through others (single linkage).

    ``ignored``: pieces that don't count.
    """
    index = NearIndex(threshold, ignored)
    exact: dict[str, int] = {}
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parent[high] = low

    for i, text in enumerate(texts):
        parent.append(i)
        if text in exact:  # a text that stands there a thousand times is compared once
            join(i, exact[text])
            continue
        exact[text] = i
        for key, _ in index.near(text):
            join(i, key)
        index.add(i, text)
    return [root(i) for i in range(len(parent))]


def _bands(threshold: float) -> int:
    """Bands of the signature, so that a pair at the threshold is missed less than once in a hundred: the fewest that do."""
    for bands in (8, 16, 32, 64):
        if (1 - threshold ** (_PERMUTATIONS // bands)) ** bands < 0.01:
            return bands
    return _PERMUTATIONS


def _pieces(text: str) -> list[str]:
    words = _NO_WORD.sub(" ", text.casefold()).strip()
    return list({words[i : i + PIECE] for i in range(max(1, len(words) - PIECE + 1))}) if words else []


def _signature(pieces: list[str]) -> Any:
    from rensa import RMinHash

    signature = RMinHash(_PERMUTATIONS, _SEED)
    signature.update(pieces)
    return signature


def _hashes(pieces: list[str]) -> NDArray[np.uint32]:
    import zlib

    return np.unique(np.fromiter((zlib.crc32(piece.encode("utf-8", "surrogatepass")) for piece in pieces), np.uint32, len(pieces)))


def _jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
