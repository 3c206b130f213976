"""Rows that repeat or contradict each other, and answers that are out of balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import xxhash

from localsft.data.check.finding import Collector, DataFinding
from localsft.data.conversation import Conversation
from localsft.data.near import PieceFile, all_pieces, common_pieces, near_earlier
from localsft.data.split import LABEL_LENGTH, MAX_LABELS
from localsft.data.texts import answer_text, identity, whole_text

NEAR = 0.9
IMBALANCE_ROWS = 30
IMBALANCE = 10  # times as many rows as the rarest label
OUTLIER = 8  # times the median length of an answer
OUTLIER_LENGTH = 400  # characters; a shorter answer is no outlier
FEW = 5  # rows of a tag


class RepeatChecks:
    """One row after the other, then ``findings``."""

    def __init__(self) -> None:
        self.identities: list[str] = []
        self._sources: list[str] = []
        self._texts: list[str] = []
        self._answers: list[str] = []
        self._prompts: list[bytes] = []
        self._tags: Counter[str] = Counter()

    def add(self, conversation: Conversation) -> None:
        """Look at a row."""
        self.identities.append(identity(conversation))
        self._sources.append(conversation.source)
        self._texts.append(whole_text(conversation))
        self._answers.append(answer_text(conversation))
        self._prompts.append(b"" if conversation.is_text else _prompt_hash(conversation))
        self._tags.update(conversation.tags)

    def findings(self) -> Iterable[DataFinding]:
        """Everything that was found."""
        yield from self._duplicates()
        yield from self._contradictions()
        yield from self._labels()
        yield from self._outliers()
        yield from self._rare_tags()

    def _duplicates(self) -> Iterable[DataFinding]:
        exact = Collector("duplicate", "warning", "a row stands there more than once and counts so often", "remove all but one")
        near = Collector("near-duplicate", "warning", "a row is nearly the same as an earlier one", "keep the better one")
        first: dict[str, int] = {}
        rows: list[int] = []  # the first of each content
        for i, (name, source) in enumerate(zip(self.identities, self._sources, strict=True)):
            if name in first:
                exact.add(source, f"as {self._sources[first[name]]}")
            else:
                first[name] = i
                rows.append(i)
        with PieceFile() as file:
            pieces = all_pieces((self._texts[i] for i in rows), file)
            earlier, similarity = near_earlier(pieces.ignoring(common_pieces(pieces)), NEAR)
        for i, before, value in zip(rows, earlier.tolist(), similarity.tolist(), strict=True):
            if before >= 0:
                near.add(self._sources[i], f"{value:.0%} like {self._sources[rows[before]]}")
        yield from exact.findings()
        yield from near.findings()

    def _contradictions(self) -> Iterable[DataFinding]:
        """Different answers to one prompt. Among labels only one can be right; of free answers both may be."""
        labels = self._are_labels()
        head = "the same prompt has different answers"
        rows = (
            Collector("contradiction", "error", f"{head}, of which only one can be right", "decide for one answer")
            if labels
            else Collector("contradiction", "warning", head, "keep one, unless both are right")
        )
        first: dict[bytes, int] = {}
        for i, prompt in enumerate(self._prompts):
            if prompt and (before := first.setdefault(prompt, i)) != i and self._answers[before].strip() != self._answers[i].strip():
                seen = f"{self._answers[i].strip()[:40]!r}, but " if labels else ""
                theirs = f"{self._answers[before].strip()[:40]!r} in " if labels else "another than in "
                rows.add(self._sources[i], f"{seen}{theirs}{self._sources[before]}")
        yield from rows.findings()

    def _are_labels(self) -> bool:
        """Whether answers are few, short and repeated, as classes are."""
        kinds = {answer.strip() for answer in self._answers}
        return len(kinds) <= min(MAX_LABELS, len(self._answers) // 3) and all(len(kind) <= LABEL_LENGTH for kind in kinds)

    def _labels(self) -> Iterable[DataFinding]:
        if len(self._answers) < IMBALANCE_ROWS or not self._are_labels():
            return
        counts = Counter(answer.strip() for answer in self._answers)
        (most, many), (least, few) = counts.most_common()[0], counts.most_common()[-1]
        if len(counts) > 1 and many > IMBALANCE * few:
            message = f"{most!r} is the answer of {many:,} rows, {least!r} of {few:,}: the model may learn to say the former always"
            yield DataFinding("label-imbalance", "warning", message, "add rows with the rarer answers", len(counts), ())

    def _outliers(self) -> Iterable[DataFinding]:
        lengths = sorted(map(len, self._answers))
        limit = max(OUTLIER_LENGTH, OUTLIER * lengths[len(lengths) // 2]) if lengths else 0
        long = Collector("length-outlier", "warning", f"an answer is longer than {limit:,} characters, far beyond the others", "look at it")
        for source, answer in zip(self._sources, self._answers, strict=True):
            if len(answer) > limit:
                long.add(source, f"{len(answer):,} characters")
        yield from long.findings()

    def _rare_tags(self) -> Iterable[DataFinding]:
        rare = sorted(tag for tag, count in self._tags.items() if count < FEW)
        if rare:
            lines = tuple(f"{tag}: {self._tags[tag]}" for tag in rare[:10])
            yield DataFinding("rare-tag", "note", f"tags with fewer than {FEW} rows", "add rows of these kinds", len(rare), lines)


def _prompt_hash(conversation: Conversation) -> bytes:
    """All that comes before the last answer, system prompt and tools included; empty if no prompt is there."""
    last = max((i for i, m in enumerate(conversation.messages) if m.role == "assistant"), default=0)
    asked = Conversation(conversation.messages[:last], conversation.tools)
    return xxhash.xxh3_128_digest(identity(asked).encode()) if last else b""
