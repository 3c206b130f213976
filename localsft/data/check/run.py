"""All checks over the rows of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localsft.data.check.answers import AnswerChecks
from localsft.data.check.finding import Collector, DataFinding
from localsft.data.check.private import PrivateChecks
from localsft.data.check.repeats import FEW, RepeatChecks
from localsft.data.conversation import Conversation
from localsft.data.formats import open_data, read_conversations
from localsft.data.leakage import find_leaks
from localsft.data.texts import dataset_fingerprint
from localsft.errors import InputError

_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found in one dataset. ``fingerprint``: of its rows, whatever their order."""

    file: str
    format: str
    rows: int
    fingerprint: str
    findings: tuple[DataFinding, ...]

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)


def check(file: Path, holdout: Path | None = None, mapping: Mapping[str, str] | None = None, skip_bad: bool = False) -> CheckReport:
    """Look at every row of ``file``, and at what ``holdout`` has in common with it.

    Raises:
        InputError: a file can't be read, or a row is bad (unless ``skip_bad``, which makes it a finding).
    """
    bad = Collector("bad-row", "error", "a row can't be read", "correct or remove it")
    checks = (AnswerChecks(), PrivateChecks(), repeats := RepeatChecks())
    count = 0
    for conversation in _rows(file, bad if skip_bad else None, mapping):
        count += 1
        for one in checks:
            one.add(conversation)
    findings = [*bad.findings(), *(finding for one in checks for finding in one.findings())]
    if holdout is not None:
        findings += _beside(file, holdout, mapping, skip_bad)
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    return CheckReport(str(file), open_data(file, mapping).label, count, dataset_fingerprint(repeats.identities), tuple(findings))


def _rows(file: Path, bad: Collector | None, mapping: Mapping[str, str] | None) -> Iterator[Conversation]:
    def skip(error: InputError) -> None:
        if bad:
            bad.add(str(error))

    return read_conversations(file, skip if bad else None, mapping)


def _beside(file: Path, holdout: Path, mapping: Mapping[str, str] | None, skip_bad: bool) -> Iterator[DataFinding]:
    """Leakage between the two, and holdout rows that nothing in the training data prepares for."""
    bad = Collector("bad-holdout-row", "error", "a holdout row can't be read", "correct or remove it")
    ignored = Collector("", "note", "", "") if skip_bad else None  # reported already
    exact = Collector("leakage", "error", "a holdout row stands in the training data", "remove it from one side")
    near = Collector("leakage-near", "warning", "a holdout row is nearly a training row", "remove it from one side, or split again")
    for leak in find_leaks(_rows(file, ignored, mapping), _rows(holdout, bad if skip_bad else None, mapping)):
        (exact if leak.exact else near).add(leak.holdout, str(leak).partition(" is ")[2])
    known = Counter(tag for conversation in _rows(file, ignored, mapping) for tag in conversation.tags)
    alone = Collector("not-covered", "note", f"a holdout tag has fewer than {FEW} training rows", "add rows of its kind if it matters")
    asked = Counter(tag for conversation in _rows(holdout, ignored, mapping) for tag in conversation.tags)
    for tag in sorted(asked):
        if known[tag] < FEW:
            alone.add(tag, f"{asked[tag]} holdout rows, {known[tag]} training rows")
    for collector in (bad, exact, near, alone):
        yield from collector.findings()
