"""All checks over the rows of a dataset, chunk by chunk, on all cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localsft.data.check.answers import AnswerChecks, JsonChecks
from localsft.data.check.coverage import Coverage, CoverageChecks, group_findings, holdout_findings, read_holdout
from localsft.data.check.finding import SHOWN, Collector, DataFinding, RowChecks
from localsft.data.check.private import PrivateChecks
from localsft.data.check.repeats import RepeatChecks, RepeatRows
from localsft.data.check.style import Style, StyleChecks
from localsft.data.check.tokens import TokenChecks, TokenRules
from localsft.data.conversation import Conversation
from localsft.data.formats import DataFile, open_data, read_conversations, readable_rows
from localsft.data.leakage import find_leaks
from localsft.data.near import Pieces
from localsft.data.neighbours import prompt_pieces
from localsft.data.pipeline import map_rows
from localsft.data.rows import Row
from localsft.errors import InputError

FEW = 5  # rows of a tag, or of a group of prompts
_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found in one dataset. ``fingerprint``: of its rows, whatever their order. ``tokens``: what the template and the
    vocabulary of a base model make of it, and what each way to shorten over-long rows loses; None without a model. ``coverage``: None
    where there are too few rows to tell."""

    file: str
    format: str
    rows: int
    fingerprint: str
    style: Style
    tokens: dict[str, Any] | None
    coverage: Coverage | None
    findings: tuple[DataFinding, ...]

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class CheckRecipe:
    """What a worker needs to look at rows."""

    data: DataFile
    skip_bad: bool
    tokens: TokenRules | None


@dataclass(slots=True)
class Looked:
    """What was seen in some rows."""

    count: int
    bad: Collector
    checks: list[RowChecks]
    repeats: RepeatRows
    prompts: Pieces


def look(rows: list[Row], recipe: CheckRecipe) -> Looked:
    """Look at some rows. Raises InputError for a bad one, unless ``recipe.skip_bad``."""
    bad = _bad_rows()
    conversations: list[Conversation] = []
    for row in rows:
        try:
            conversations.append(recipe.data.conversation(row))
        except InputError as error:
            if not recipe.skip_bad:
                raise
            bad.add(str(error))
    checks: list[RowChecks] = [AnswerChecks(), JsonChecks(), PrivateChecks(), StyleChecks()]
    for conversation in conversations:
        for check in checks:
            check.add(conversation)
    if recipe.tokens:
        tokens = TokenChecks(recipe.tokens.max_length)
        tokens.look(conversations, recipe.tokens)
        checks.append(tokens)
    return Looked(len(conversations), bad, checks, RepeatRows(conversations), prompt_pieces(conversations))


def check(
    file: Path,
    holdout: Path | None = None,
    mapping: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    tokens: TokenRules | None = None,
    few: int = FEW,
) -> CheckReport:
    """Look at every row of ``file``, and at what ``holdout`` has in common with it. ``tokens``: how rows become tokens; without it the
    checks that need a base model are left out. ``few``: tags and groups of prompts with fewer rows are named.

    Raises:
        InputError: a file can't be read, or a row is bad (unless ``skip_bad``, which makes it a finding).
    """
    data = open_data(file, mapping)
    bad = _bad_rows()
    rows = readable_rows(data, (lambda error: bad.add(str(error))) if skip_bad else None)
    checks: list[RowChecks] = []
    count = 0
    with closing(RepeatChecks(str(file), few)) as repeats, closing(CoverageChecks(few)) as prompts:
        for looked in map_rows(look, rows, CheckRecipe(data, skip_bad, tokens)):
            count += looked.count
            bad.merge(looked.bad)
            repeats.merge(looked.repeats)
            prompts.merge(looked.prompts)
            if not checks:
                checks = looked.checks
                continue
            for check, later in zip(checks, looked.checks, strict=True):
                check.merge(later)
        findings = [*bad.findings(), *(finding for check in checks for finding in check.findings()), *repeats.findings()]
        fingerprint = repeats.fingerprint()
        lines = repeats.rows()["line"].astype(np.int64)
        # Rows of the holdout that can't be read are told of beside what is compared with them row by row.
        read = None if holdout is None else read_holdout(_rows(holdout, _bad_rows() if skip_bad else None, mapping))
        coverage, far, groups = prompts.look(repeats.order(), read)
    if coverage:
        findings += holdout_findings(coverage, far)
        shown = _rows_at(data, {one for one, _ in groups[:SHOWN]}, mapping, skip_bad)
        findings += group_findings(coverage, groups, lines, shown)
    if holdout is not None:
        findings += _beside(file, holdout, mapping, skip_bad, few)
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    style = next(check.style() for check in checks if isinstance(check, StyleChecks))
    figures = next((check.figures() for check in checks if isinstance(check, TokenChecks)), None)
    return CheckReport(str(file), data.label, count, fingerprint, style, figures, coverage, tuple(findings))


def _rows_at(data: DataFile, places: set[int], mapping: Mapping[str, str] | None, skip_bad: bool) -> dict[int, Conversation]:
    """The rows at some places among those that can be read, by place."""
    if not places:
        return {}
    if skip_bad:
        return {place: row for place, row in enumerate(_rows(data.container.file, _bad_rows(), mapping)) if place in places}
    return {place: data.conversation(row) for place, row in enumerate(readable_rows(data)) if place in places}  # only these are parsed


def _bad_rows() -> Collector:
    return Collector("bad-row", "error", "a row can't be read", "correct or remove it")


def _rows(file: Path, bad: Collector | None, mapping: Mapping[str, str] | None) -> Iterator[Conversation]:
    def skip(error: InputError) -> None:
        if bad:
            bad.add(str(error))

    return read_conversations(file, skip if bad else None, mapping)


def _beside(file: Path, holdout: Path, mapping: Mapping[str, str] | None, skip_bad: bool, few: int) -> Iterator[DataFinding]:
    """Leakage between the two, and holdout rows that nothing in the training data prepares for."""
    bad = Collector("bad-holdout-row", "error", "a holdout row can't be read", "correct or remove it")
    ignored = Collector("", "note", "", "") if skip_bad else None  # reported already
    exact = Collector("leakage", "error", "a holdout row stands in the training data", "remove it from one side")
    near = Collector("leakage-near", "warning", "a holdout row is nearly a training row", "remove it from one side, or split again")
    for leak in find_leaks(_rows(file, ignored, mapping), _rows(holdout, bad if skip_bad else None, mapping)):
        (exact if leak.exact else near).add(leak.holdout, str(leak).partition(" is ")[2])
    known = Counter(tag for conversation in _rows(file, ignored, mapping) for tag in conversation.tags)
    alone = Collector("not-covered", "note", f"a holdout tag has fewer than {few} training rows", "add rows of its kind if it matters")
    asked = Counter(tag for conversation in _rows(holdout, ignored, mapping) for tag in conversation.tags)
    for tag in sorted(asked):
        if known[tag] < few:
            alone.add(tag, f"{asked[tag]} holdout rows, {known[tag]} training rows")
    for collector in (bad, exact, near, alone):
        yield from collector.findings()
