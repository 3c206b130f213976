"""Which prompts are about the same: cosines of the sets of their three-character pieces, a piece weighted by its squared inverse
document frequency, ln(1 + N/n)² of N training prompts of which n have it (Spärck Jones 1972, smoothed so that the words of a form
that all prompts share still count a little).

What is near is taken from the training prompts themselves: two prompts are near if their cosine reaches what 98 of 100 training prompts
reach with the one nearest to them; at least 0.1, which prompts of different tasks in one language reach, and at most 0.25, where
prompts come in several versions each. So the same rule holds for short and long prompts, one task or many, and any language; three
characters also find a word that is misspelt or inflected. Numbers are one and the same piece.

Exact, and the same whatever the order of the rows; the work goes over an inverted index, 2,048 rows at a time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from localsft import _core
from localsft.data.conversation import Conversation
from localsft.data.near import Pieces, pieces_of
from localsft.data.pipeline import cores
from localsft.data.texts import prompt_text, whole_text

PIECE = 3  # characters
ENDS = 300  # characters at either end of a prompt that count; the middle of a longer one does not
TERMS = 1 << 18  # into which the hashes of pieces are folded
SAMPLE = 1000  # training prompts whose nearest one says what is near
FARTHEST = 2  # percent of them that may be farther
LEAST, MOST = 0.1, 0.25  # cosines between which it lies

_NUMBER = re.compile(r"\d+")

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


def shown_prompt(conversation: Conversation) -> str:
    """What is compared of a row: its prompt, of plain text all of it."""
    return prompt_text(conversation) or whole_text(conversation)


def prompt_pieces(conversations: Sequence[Conversation]) -> Pieces:
    """The pieces of each row's prompt."""
    texts = [shown_prompt(conversation) for conversation in conversations]
    ends = [text if len(text) <= 2 * ENDS else f"{text[:ENDS]} {text[-ENDS:]}" for text in texts]
    return pieces_of([_NUMBER.sub("0", text) for text in ends], PIECE)


class Neighbours:
    """The training prompts, and the others that are compared with them.

    ``pieces``: of ``base`` training prompts, then of the others. ``sample`` (s,): the training prompts whose nearest one says what is
    near. ``limit``: the least cosine at which two prompts are.
    """

    def __init__(self, pieces: Pieces, base: int, sample: Int64) -> None:
        self._members = np.ascontiguousarray(pieces.members, np.uint32)
        self._starts = np.ascontiguousarray(pieces.starts, np.int64)
        self._base = base
        terms = self._members[: self._starts[base]] >> (32 - int(TERMS).bit_length() + 1)
        fresh = np.concatenate([[True], terms[1:] != terms[:-1]]) if len(terms) else np.zeros(0, bool)
        firsts = self._starts[:base]
        fresh[firsts[firsts < len(terms)]] = True  # a prompt may begin with the term that the one before ends with
        counts = np.bincount(terms[fresh], minlength=TERMS)
        self._weights = (np.log(1 + base / np.maximum(counts, 1)) ** 2).astype(np.float32)
        self.limit = LEAST
        best, _, _ = self._nearest(sample, 2.0, 0)
        if len(best):
            self.limit = min(max(float(np.percentile(best, FARTHEST, method="inverted_cdf")), LEAST), MOST)

    def highest(self, rows: Int64) -> Float32:
        """The highest cosine (r,) of each of the prompts ``rows`` (r,) with a training prompt, itself left out."""
        return self._nearest(rows, 2.0, 0)[0]

    def groups(self, few: int) -> list[Int64]:
        """The groups of fewer than ``few`` training prompts: those that are near to one another, directly or through others, and to no
        other. Ascending indices."""
        rows = np.arange(self._base)
        # A prompt with so many near ones is in a group that is large enough; of every other, all near ones are found.
        _, query, near = self._nearest(rows, self.limit, max(1, few - 1))
        large = np.bincount(query, minlength=self._base) >= few - 1
        parent = rows.copy()

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = int(parent[i])
            return i

        open_ones = ~large[query]
        for one, other in zip(query[open_ones].tolist(), near[open_ones].tolist(), strict=True):
            low, high = sorted((root(one), root(other)))
            parent[high] = low
        members: dict[int, list[int]] = {}
        for row in np.flatnonzero(~large).tolist():
            members.setdefault(root(row), []).append(row)
        not_small = {root(row) for row in np.flatnonzero(large).tolist()}
        return [np.array(group) for top, group in members.items() if top not in not_small and len(group) < few]

    def _nearest(self, rows: Int64, threshold: float, enough: int) -> tuple[Float32, Int64, Int64]:
        """As ``_core.nearest_sets``, on all cores; the pairs have indices of prompts."""
        blocks = [block for block in np.array_split(rows, cores()) if len(block)]
        with ThreadPoolExecutor(max(1, len(blocks))) as pool:
            found = list(
                pool.map(
                    lambda block: _core.nearest_sets(self._members, self._starts, self._base, self._weights, block, threshold, enough),
                    blocks,
                )
            )
        none = np.zeros(0, np.int64)
        return (
            np.concatenate([np.zeros(0, np.float32), *(best for best, _, _ in found)]),
            np.concatenate([none, *(block[query] for block, (_, query, _) in zip(blocks, found, strict=True))]),
            np.concatenate([none, *(near for _, _, near in found)]),
        )
