"""What a check says of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from localsft.data.conversation import Conversation

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
    lines: tuple[str, ...] = ()


class Collector:
    """Findings of one check, row by row."""

    def __init__(self, code: str, severity: Severity, message: str, remedy: str) -> None:
        self._head = DataFinding(code, severity, message, remedy, 0)
        self._lines: list[str] = []
        self.count = 0  # rows
        self.items = 0  # what was seen in them

    def add(self, source: str, seen: str = "", items: int = 1) -> None:
        """One more row, with what was seen there and how often."""
        self.count += 1
        self.items += items
        if len(self._lines) < SHOWN:
            self._lines.append(f"{source}: {seen}" if seen else source)

    def merge(self, later: Collector) -> None:
        """Take in what was found in later rows."""
        self.count += later.count
        self.items += later.items
        self._lines = (self._lines + later._lines)[:SHOWN]

    def findings(self, message: str = "") -> Iterable[DataFinding]:
        """The finding, if any row had it; ``message``: instead of its own."""
        if self.count:
            yield replace(self._head, message=message or self._head.message, count=self.count, lines=tuple(self._lines))


class RowChecks:
    """Checks of one row after the other: ``add`` each, ``merge`` those of later rows, then ``findings``."""

    def __init__(self) -> None:
        self._collectors: dict[str, Collector] = {}

    def collector(self, code: str, severity: Severity, message: str, remedy: str) -> Collector:
        """The rows that have one kind of problem."""
        return self._collectors.setdefault(code, Collector(code, severity, message, remedy))

    def add(self, conversation: Conversation) -> None:
        """Look at a row."""
        raise NotImplementedError

    def merge(self, later: RowChecks) -> None:
        """Take in what was found in later rows."""
        for code, collector in later._collectors.items():
            if code in self._collectors:
                self._collectors[code].merge(collector)
            else:
                self._collectors[code] = collector

    def findings(self) -> Iterable[DataFinding]:
        """Everything that was found."""
        for collector in self._collectors.values():
            yield from collector.findings()
