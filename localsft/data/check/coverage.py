"""What the training rows cover: holdout rows that nothing like them prepares for, and groups of prompts with few rows.

What "near" means stands in ``localsft.data.neighbours``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsft.data.check.finding import SHOWN, DataFinding
from localsft.data.conversation import Conversation
from localsft.data.near import PieceFile, Pieces
from localsft.data.neighbours import SAMPLE, Neighbours, prompt_pieces, shown_prompt
from localsft.data.texts import identity

ROWS = 30  # training rows from which on it can be said what is near
MOST = 100_000  # training rows that are looked at: bounds time and memory
MOST_HOLDOUT = 2_000  # the same of the holdout
ODD = 0.05  # share of the holdout; with more, it asks for something else than what is taught
SHORT = 10  # pieces of a prompt; a shorter one ("Hello") says too little to be compared
RARE = 0.1  # share of the rows in small groups; with more, that is how the data is built
EXCERPT = 60  # characters of a prompt that are shown

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Coverage:
    """``rows`` and ``holdout_rows`` were looked at (None: there is no holdout). ``limit``: the cosine from which on two prompts are near.
    ``holdout_alone``: holdout rows without a near training row. ``small_groups``: of two or more training prompts, but fewer than
    ``few``, that are near to no others, and ``alone``: those that are near to none; None where not all rows were looked at."""

    rows: int
    few: int
    limit: float
    holdout_rows: int | None = None
    holdout_alone: int | None = None
    small_groups: int | None = None
    alone: int | None = None


@dataclass(frozen=True, slots=True)
class Holdout:
    """Of the holdout rows that are looked at: where they stand, how their prompts begin, and the pieces of those."""

    sources: list[str]
    excerpts: list[str]
    pieces: Pieces


def read_holdout(conversations: Iterable[Conversation]) -> Holdout:
    """The holdout; of more than ``MOST_HOLDOUT`` rows those whose identities come first, in the order of the file."""
    kept: dict[int, tuple[str, Conversation]] = {}
    for number, conversation in enumerate(conversations):
        kept[number] = (identity(conversation), conversation)
        if len(kept) >= 2 * MOST_HOLDOUT:
            kept = _first(kept)
    rows = [conversation for _, (_, conversation) in sorted(_first(kept).items())]
    excerpts = [excerpt(conversation) for conversation in rows]
    return Holdout([row.source for row in rows], excerpts, prompt_pieces(rows))


def _first(rows: dict[int, tuple[str, Conversation]]) -> dict[int, tuple[str, Conversation]]:
    return {number: rows[number] for number in sorted(rows, key=lambda number: (rows[number][0], number))[:MOST_HOLDOUT]}


def excerpt(conversation: Conversation) -> str:
    """How a prompt begins, in one line."""
    text = " ".join(shown_prompt(conversation)[: 4 * EXCERPT].split())
    return text if len(text) <= EXCERPT else f"{text[: EXCERPT - 1]}…"


class CoverageChecks:
    """Training prompts as they come. Close it: it holds a file."""

    def __init__(self, few: int) -> None:
        self._few = few
        self._store = PieceFile()

    def merge(self, later: Pieces) -> None:
        """Take in the prompts of later rows."""
        self._store.add(later)

    def close(self) -> None:
        """Remove the file."""
        self._store.close()

    def look(self, order: Int64, holdout: Holdout | None) -> tuple[Coverage | None, list[str], list[tuple[int, Int64]]]:
        """What is covered. ``order`` (n,): the training rows by what is in them, so that a sample does not depend on their order.

        Returns the figures (None with fewer than ``ROWS`` rows), the lines of a finding for holdout rows without a near training row,
        and the small groups of two rows or more: the row that stands for it, and all of them.
        """
        if len(order) < ROWS:
            return None, [], []
        pieces = self._store.pieces()
        chosen = order[:MOST]
        members, starts = pieces.counted(np.sort(chosen))
        base = len(chosen)
        if holdout is not None:
            members = np.concatenate([members, holdout.pieces.members])
            starts = np.concatenate([starts, starts[-1] + holdout.pieces.starts[1:]])
        place = np.searchsorted(np.sort(chosen), chosen)  # of each chosen row among them, in the order of what is in them
        long = np.diff(starts) >= SHORT
        neighbours = Neighbours(Pieces(members, starts), base, place[:SAMPLE])
        lines: list[str] = []
        asked = far = None
        if holdout is not None:
            asked = len(holdout.sources)
            highest = neighbours.highest(np.arange(base, base + asked))
            lines = [
                f"{holdout.sources[i]}: cosine {highest[i]:.2f}: {holdout.excerpts[i]!r}"
                for i in np.flatnonzero((highest < neighbours.limit) & long[base:])
            ]
            far = len(lines)
        if base < len(order):
            return Coverage(base, self._few, neighbours.limit, asked, far), lines, []
        rank = np.empty(base, np.int64)
        rank[place] = np.arange(base)
        groups = [group for group in neighbours.groups(self._few) if long[group].all()]
        several = [(int(group[np.argmin(rank[group])]), group) for group in groups if len(group) > 1]
        several.sort(key=lambda group: (len(group[1]), int(rank[group[0]])))
        alone = len(groups) - len(several)
        return Coverage(base, self._few, neighbours.limit, asked, far, len(several), alone), lines, several


def holdout_findings(coverage: Coverage, lines: list[str]) -> Iterator[DataFinding]:
    """Holdout rows without a near training row."""
    if lines and coverage.holdout_rows:
        yield DataFinding(
            "no-neighbour",
            "warning" if len(lines) > ODD * coverage.holdout_rows else "note",
            f"a holdout prompt is like no training prompt (no cosine of {coverage.limit:.2f}, as those have with each other)",
            "add training rows of its kind, if that is to be learned",
            len(lines),
            tuple(lines[:SHOWN]),
        )


def group_findings(
    coverage: Coverage, groups: list[tuple[int, Int64]], lines: Int64, shown: dict[int, Conversation]
) -> Iterator[DataFinding]:
    """Small groups. ``lines`` (n,): of the rows in their file; ``shown``: by place, the rows that stand for the first groups."""
    count = sum(len(group) for _, group in groups)
    if not groups or count > RARE * len(lines):
        return
    texts = []
    for one, group in groups[:SHOWN]:
        row = shown[one]
        others = ", ".join(str(lines[other]) for other in group if other != one)
        texts.append(f"{row.source}: {len(group)} rows (also {others}): {excerpt(row)!r}")
    message = f"groups of fewer than {coverage.few} prompts that are like each other and like no others, {count:,} rows in all"
    yield DataFinding("rare-group", "note", message, "add rows of these kinds, or remove them", len(groups), tuple(texts))
