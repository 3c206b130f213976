"""How long the answers are: how many have each length, and where the first long ones stand, so that memory does not grow with rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from localsft.data.check.finding import SHOWN, DataFinding

OUTLIER_LENGTH = 400  # characters; a shorter answer is no outlier


class AnswerLengths:
    """Of answers in the order of their file. Kept are a count for each length, and the first ``SHOWN`` places of each long one: different
    lengths are few, since a file in which n differ has at least n²/2 characters."""

    def __init__(self) -> None:
        self.rows = 0
        self._counts: Counter[int] = Counter()
        self._long: dict[int, list[tuple[int, str]]] = {}  # length -> line and source

    def add(self, length: int, line: int, source: str) -> None:
        """An answer of ``length`` characters."""
        self.rows += 1
        self._counts[length] += 1
        if length > OUTLIER_LENGTH and len(places := self._long.setdefault(length, [])) < SHOWN:
            places.append((line, source))

    def merge(self, later: AnswerLengths) -> None:
        """Take in those of later rows."""
        self.rows += later.rows
        self._counts.update(later._counts)
        for length, places in later._long.items():
            self._long[length] = (self._long.get(length, []) + places)[:SHOWN]

    def percentile(self, percent: int) -> int:
        """The least length that ``percent`` of 100 answers do not exceed; 0 without answers."""
        wanted = max(1, -(-self.rows * percent // 100))
        for length, count in sorted(self._counts.items()):
            wanted -= count
            if wanted <= 0:
                return length
        return 0

    def findings(self, limit: int) -> Iterable[DataFinding]:
        """The answers that are longer than ``limit``, at least ``OUTLIER_LENGTH``, characters."""
        count = sum(count for length, count in self._counts.items() if length > limit)
        if count:
            first = sorted((line, source, length) for length, places in self._long.items() if length > limit for line, source in places)
            yield DataFinding(
                "length-outlier",
                "warning",
                f"an answer is longer than {limit:,} characters, far beyond the others",
                "look at it",
                count,
                tuple(f"{source}: {length:,} characters" for _, source, length in first[:SHOWN]),
            )
