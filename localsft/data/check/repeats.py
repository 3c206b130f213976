"""Rows that repeat or contradict each other, and answers and tags that are out of balance.

Of a row only hashes, lengths and the set of its pieces are kept, the latter in a file: a million rows take some hundred MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from localsft.data.check.finding import Collector, DataFinding, RowChecks
from localsft.data.conversation import Conversation
from localsft.data.near import PieceFile, Pieces, common_pieces, near_earlier, pieces_of
from localsft.data.split import LABEL_LENGTH, MAX_LABELS
from localsft.data.texts import answer_text, identity, whole_text

NEAR = 0.9
IMBALANCE_ROWS = 30
IMBALANCE = 10  # times as many rows as the rarest label

_ROW = np.dtype([("line", "<i8"), ("name", "V16"), ("prompt", "<u8"), ("answer", "<u8")])


class RepeatRows(RowChecks):
    """What is kept of some rows. ``rows`` (n,): line, identity, and hashes of the prompt (0: none) and the answer."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        super().__init__()
        answers = [answer_text(conversation).strip() for conversation in conversations]
        self.rows: NDArray[np.void] = np.empty(len(conversations), _ROW)
        self.rows["line"] = [conversation.line for conversation in conversations]
        names = b"".join([bytes.fromhex(identity(conversation)) for conversation in conversations])
        self.rows["name"] = np.frombuffer(names, "V16")
        self.rows["prompt"] = [0 if conversation.is_text else _prompt_hash(conversation) for conversation in conversations]
        self.rows["answer"] = [_hash(answer) for answer in answers]
        self.pieces = pieces_of([whole_text(conversation) for conversation in conversations])
        self.labels = _few(Counter(answers))
        self.tags = Counter(tag for conversation in conversations for tag in conversation.tags)


class RepeatChecks:
    """Checks of rows against each other. Close it: it holds a file."""

    def __init__(self, file: str, few: int) -> None:
        self._file = file
        self._few = few
        self._chunks: list[NDArray[np.void]] = [np.empty(0, _ROW)]
        self._store = PieceFile()
        self._labels: Counter[str] | None = Counter()  # None: there are too many, or long ones
        self.tags: Counter[str] = Counter()

    def merge(self, later: RepeatRows) -> None:
        """Take in later rows."""
        self._chunks.append(later.rows)
        self._store.add(later.pieces)
        self._labels = None if self._labels is None or later.labels is None else _few(self._labels + later.labels)
        self.tags.update(later.tags)

    def close(self) -> None:
        """Remove the file."""
        self._store.close()

    def pieces(self) -> Pieces:
        """The pieces of all rows, the common ones ignored."""
        pieces = self._store.pieces()
        return pieces.ignoring(common_pieces(pieces))

    def rows(self) -> NDArray[np.void]:
        """All rows."""
        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0]

    def fingerprint(self) -> str:
        """As ``texts.dataset_fingerprint`` of the rows' identities."""
        return xxhash.xxh3_128_hexdigest(self.rows()["name"][self.order()].tobytes().hex().encode())

    def order(self) -> NDArray[np.int64]:
        """The rows (n,) in the order of their identities."""
        halves = np.ascontiguousarray(self.rows()["name"]).view(">u8").reshape(-1, 2)
        return np.lexsort((halves[:, 1], halves[:, 0]))

    def findings(self) -> Iterable[DataFinding]:
        """Everything that was found."""
        yield from self._duplicates()
        yield from self._contradictions()
        yield from self._imbalance()
        yield from self._rare_tags()

    def source(self, row: int | np.signedinteger[Any]) -> str:
        """``file:line``."""
        return f"{self._file}:{self.rows()['line'][row]}"

    def _duplicates(self) -> Iterable[DataFinding]:
        exact = Collector("duplicate", "warning", "a row stands there more than once and counts so often", "remove all but one")
        near = Collector("near-duplicate", "warning", "a row is nearly the same as an earlier one", "keep the better one")
        names = np.ascontiguousarray(self.rows()["name"]).view("<u8").reshape(-1, 2)[:, 0]
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        before = first[inverse]
        for row in np.flatnonzero(before != np.arange(len(before))):
            exact.add(self.source(row), f"as {self.source(before[row])}")
        earlier, similarity = near_earlier(self.pieces(), NEAR, np.sort(first))
        for row in np.flatnonzero(earlier >= 0):
            near.add(self.source(row), f"{similarity[row]:.0%} like {self.source(earlier[row])}")
        yield from exact.findings()
        yield from near.findings()

    def _contradictions(self) -> Iterable[DataFinding]:
        """Different answers to one prompt. Among labels only one can be right; of free answers both may be."""
        labels = {_hash(label): label for label in self._answer_labels()}
        head = "the same prompt has different answers"
        rows = (
            Collector("contradiction", "error", f"{head}, of which only one can be right", "decide for one answer")
            if labels
            else Collector("contradiction", "warning", head, "keep one, unless both are right")
        )
        prompts, answers = self.rows()["prompt"], self.rows()["answer"]
        _, first, inverse = np.unique(prompts, return_index=True, return_inverse=True)
        before = first[inverse]
        for row in np.flatnonzero((answers != answers[before]) & (prompts != 0)):
            if labels:
                mine, theirs = labels[int(answers[row])], labels[int(answers[before[row]])]
                rows.add(self.source(row), f"{mine!r}, but {theirs!r} in {self.source(before[row])}")
            else:
                rows.add(self.source(row), f"another than in {self.source(before[row])}")
        yield from rows.findings()

    def _answer_labels(self) -> Counter[str]:
        """Answers that are few, short and repeated, as classes are, with their rows; none if the answers are not."""
        labels = self._labels or Counter[str]()
        return labels if len(labels) <= labels.total() // 3 else Counter()

    def _imbalance(self) -> Iterable[DataFinding]:
        counts = self._answer_labels()
        if counts.total() < IMBALANCE_ROWS or len(counts) < 2:
            return
        (most, many), (least, few) = counts.most_common()[0], counts.most_common()[-1]
        if many > IMBALANCE * few:
            message = f"{most!r} is the answer of {many:,} rows, {least!r} of {few:,}: the model may learn to say the former always"
            yield DataFinding("label-imbalance", "warning", message, "add rows with the rarer answers", len(counts))

    def _rare_tags(self) -> Iterable[DataFinding]:
        rare = sorted(tag for tag, count in self.tags.items() if count < self._few)
        if rare:
            lines = tuple(f"{tag}: {self.tags[tag]}" for tag in rare[:10])
            yield DataFinding("rare-tag", "note", f"tags with fewer than {self._few} rows", "add rows of these kinds", len(rare), lines)


def _few(answers: Counter[str]) -> Counter[str] | None:
    return answers if len(answers) <= MAX_LABELS and all(len(answer) <= LABEL_LENGTH for answer in answers) else None


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def _prompt_hash(conversation: Conversation) -> int:
    """Of all that comes before the last answer, system prompt and tools included; 0 if no prompt is there."""
    last = max((i for i, m in enumerate(conversation.messages) if m.role == "assistant"), default=0)
    return int(identity(Conversation(conversation.messages[:last], conversation.tools))[:16], 16) | 1 if last else 0
