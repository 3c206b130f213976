"""Answers that teach nothing or the wrong thing: empty ones, boilerplate, damaged text, JSON that does not parse."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import orjson

from localsft.data.check.finding import Collector, DataFinding
from localsft.data.conversation import Conversation, Message

# What another model says of itself; told from a customer's words by its being the answer.
_BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial intelligence)\b[^.]{0,20}\b(?:model|assistant)\b|\bmy (?:knowledge|training) cutoff\b", re.I
)
# UTF-8 that was read as Windows-1252: a lead byte's letter and a continuation byte's sign, which no language writes together.
_MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf\u2018-\u2122]|â€[\u0090-\u00ff\u2018-\u2122\u0153]|ï¿½|\ufffd")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]")
JSON_SHARE = 0.9  # of the answers that are JSON objects, from which on they have a schema
JSON_ROWS = 10


class AnswerChecks:
    """One row after the other, then ``findings``."""

    def __init__(self) -> None:
        self._empty = Collector(
            "empty-answer",
            "error",
            "an assistant turn is empty, so the model would learn to say nothing",
            "write the answer, or remove the row",
        )
        self._order = Collector(
            "role-order", "warning", "turns do not alternate: two of a user's or an assistant's follow each other, or none asks",
            "join the turns, or correct their roles",
        )  # fmt: skip
        self._boilerplate = Collector(
            "boilerplate", "warning", "an answer speaks as another AI model does of itself", "rewrite the answer in your own voice"
        )
        self._mojibake = Collector(
            "mojibake", "warning", "a text was damaged by a wrong encoding", "read the source again as UTF-8, and write the row anew"
        )
        self._control = Collector(
            "control-characters",
            "warning",
            "a text has control or invisible characters",
            "remove them, or they become a part of what is learned",
        )
        self._json: dict[str, tuple[int, str]] = {}  # keys of JSON answers -> rows, first
        self._objects = 0
        self._broken: list[tuple[str, str]] = []
        self._kinds: list[tuple[str, str]] = []

    def add(self, conversation: Conversation) -> None:
        """Look at a row."""
        source = conversation.source
        supervised = [m for m in conversation.messages if m.role == "assistant" and m.weight]
        if any(not (message.content or "").strip() and not message.tool_calls for message in supervised):
            self._empty.add(source)
        if not conversation.is_text and (fault := _order_fault(conversation.messages)):
            self._order.add(source, fault)
        answers = [message.content or "" for message in supervised]
        if found := _first(_BOILERPLATE, answers):
            self._boilerplate.add(source, found)
        texts = [message.content or "" for message in conversation.messages]
        if found := _first(_MOJIBAKE, texts):
            self._mojibake.add(source, found)
        if found := _first(_CONTROL, texts):
            self._control.add(source, f"U+{ord(found):04X}")
        for answer in answers:
            self._look_at_json(answer.strip(), source)

    def _look_at_json(self, answer: str, source: str) -> None:
        if not answer.startswith("{"):
            return
        try:
            value: Any = orjson.loads(answer)
        except orjson.JSONDecodeError as error:
            self._broken.append((source, str(error).split(":")[0]))
            return
        self._objects += 1
        self._kinds.append((source, ", ".join(sorted(value))))

    def findings(self) -> Iterable[DataFinding]:
        """Everything that was found."""
        for collector in (self._empty, self._order, self._boilerplate, self._mojibake, self._control):
            yield from collector.findings()
        if self._objects >= JSON_ROWS and self._objects >= JSON_SHARE * (self._objects + len(self._broken)):
            broken = Collector(
                "json-broken", "error", "an answer begins as a JSON object, as the others are, but does not parse", "correct the JSON"
            )
            for source, why in self._broken:
                broken.add(source, why)
            yield from broken.findings()
            yield from self._schema()

    def _schema(self) -> Iterable[DataFinding]:
        counts: dict[str, int] = {}
        for _, keys in self._kinds:
            counts[keys] = counts.get(keys, 0) + 1
        common = max(counts, key=lambda keys: counts[keys])
        if counts[common] < JSON_SHARE * self._objects:
            return
        other = Collector("json-schema", "warning", f"a JSON answer has other keys than most ({common})", "give it the keys of the others")
        for source, keys in self._kinds:
            if keys != common:
                other.add(source, keys)
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
