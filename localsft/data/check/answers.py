"""Answers that teach nothing or the wrong thing: empty ones, boilerplate, damaged text, JSON that does not parse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import orjson

from localsft.data.check.finding import Collector, DataFinding, RowChecks
from localsft.data.conversation import Conversation, Message

# What another model says of itself; told from a customer's words by its being the answer.
_BOILERPLATE = re.compile(
    r"\bas an? (?:large )?(?:ai|artificial intelligence|language)\b[^.]{0,20}\b(?:model|assistant)\b|\bmy (?:knowledge|training) cutoff\b",
    re.I,
)
# UTF-8 that was read as Windows-1252: a lead byte's letter and a continuation byte's sign, which no language writes together.
_MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf\u2018-\u2122]|â€[\u0090-\u00ff\u2018-\u2122\u0153]|ï¿½|\ufffd")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]")
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
JSON_SHARE = 0.9  # of the answers that are JSON objects, from which on they have a schema
JSON_ROWS = 10
MAX_SCHEMAS = 1000  # different sets of keys; with more there is no schema


class AnswerChecks(RowChecks):
    """Single answers and texts."""

    def __init__(self) -> None:
        super().__init__()
        self._empty = self.collector(
            "empty-answer",
            "error",
            "an assistant turn is empty, so the model would learn to say nothing",
            "write the answer, or remove the row",
        )
        self._order = self.collector(
            "role-order", "warning", "turns do not alternate: two of a user's or an assistant's follow each other, or none asks",
            "join the turns, or correct their roles",
        )  # fmt: skip
        self._boilerplate = self.collector(
            "boilerplate", "warning", "an answer speaks as another AI model does of itself", "rewrite the answer in your own voice"
        )
        self._mojibake = self.collector(
            "mojibake", "warning", "a text was damaged by a wrong encoding", "read the source again as UTF-8, and write the row anew"
        )
        self._control = self.collector(
            "control-characters",
            "warning",
            "a text has control or invisible characters",
            "remove them, or they become a part of what is learned",
        )

    def add(self, conversation: Conversation) -> None:
        source = conversation.source
        supervised = [m for m in conversation.messages if m.role == "assistant" and m.weight]
        if any(not (message.content or "").strip() and not message.tool_calls for message in supervised):
            self._empty.add(source)
        if not conversation.is_text and (fault := _order_fault(conversation.messages)):
            self._order.add(source, fault)
        if found := _first(_BOILERPLATE, [message.content or "" for message in supervised]):
            self._boilerplate.add(source, found)
        text = "\n".join([message.content or "" for message in conversation.messages])
        if text.isascii():
            if control := _ASCII_CONTROL.search(text):
                self._control.add(source, f"U+{ord(control[0]):04X}")
            return
        if damage := _MOJIBAKE.search(text):
            self._mojibake.add(source, damage[0])
        if control := _CONTROL.search(text):
            self._control.add(source, f"U+{ord(control[0]):04X}")


class JsonChecks(RowChecks):
    """Answers that begin as JSON objects: whether they parse, and have the keys that the others have."""

    def __init__(self) -> None:
        super().__init__()
        self._broken = self.collector(
            "json-broken", "error", "an answer begins as a JSON object, as the others are, but does not parse", "correct the JSON"
        )
        self._objects = 0
        self._schemas: Counter[str] = Counter()  # keys, sorted and joined -> answers
        self._rows: dict[str, Collector] = {}  # of those that have them

    def add(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            if message.role == "assistant" and message.weight and (message.content or "").lstrip().startswith("{"):
                self._look(str(message.content).strip(), conversation.source)

    def _look(self, answer: str, source: str) -> None:
        try:
            value: Any = orjson.loads(answer)
        except orjson.JSONDecodeError as error:
            self._broken.add(source, str(error).split(":")[0])
            return
        self._objects += 1
        keys = ", ".join(sorted(value))
        self._schemas[keys] += 1
        if keys not in self._rows and len(self._rows) < MAX_SCHEMAS:
            self._rows[keys] = Collector("json-schema", "warning", "", "give it the keys of the others")
        if keys in self._rows:
            self._rows[keys].add(source, keys)

    def merge(self, later: RowChecks) -> None:
        super().merge(later)
        assert isinstance(later, JsonChecks)
        self._objects += later._objects
        self._schemas.update(later._schemas)
        for keys, rows in later._rows.items():
            if keys in self._rows:
                self._rows[keys].merge(rows)
            elif len(self._rows) < MAX_SCHEMAS:
                self._rows[keys] = rows

    def findings(self) -> Iterable[DataFinding]:
        if self._objects < JSON_ROWS or self._objects < JSON_SHARE * (self._objects + self._broken.count):
            return
        yield from self._broken.findings()
        common, count = self._schemas.most_common(1)[0]
        if count < JSON_SHARE * self._objects:
            return
        other = Collector("json-schema", "warning", f"a JSON answer has other keys than most ({common})", "give it the keys of the others")
        for keys, rows in self._rows.items():
            if keys != common:
                other.merge(rows)
        yield from other.findings()


def _order_fault(messages: tuple[Message, ...]) -> str:
    turns = [message.role for message in messages if message.role not in ("system", "developer")]
    if turns and turns[0] == "assistant":
        return "it begins with an answer"
    for i, (one, other) in enumerate(pairwise(turns), 1):
        if one == other and one != "tool":
            return f"turns {i} and {i + 1} are both the {one}'s"
    return ""


def _first(pattern: re.Pattern[str], texts: list[str]) -> str:
    return next((found[0] for text in texts if (found := pattern.search(text))), "")
