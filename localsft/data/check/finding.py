"""What a check says of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
SHOWN = 10  # lines that a finding names


@dataclass(frozen=True, slots=True)
class DataFinding:
    """One kind of problem with all the rows that have it. ``lines``: the first of them, each ``file:line`` with what was seen."""

    code: str
    severity: Severity
    message: str
    remedy: str
    count: int
    lines: tuple[str, ...]


class Collector:
    """Findings of one check, row by row."""

    def __init__(self, code: str, severity: Severity, message: str, remedy: str) -> None:
        self._head = (code, severity, message, remedy)
        self._count = 0
        self._lines: list[str] = []

    def add(self, source: str, seen: str = "") -> None:
        """One more row, with what was seen there."""
        self._count += 1
        if len(self._lines) < SHOWN:
            self._lines.append(f"{source}: {seen}" if seen else source)

    def findings(self) -> Iterable[DataFinding]:
        """The finding, if any row had it."""
        if self._count:
            yield DataFinding(*self._head, self._count, tuple(self._lines))
