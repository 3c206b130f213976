"""Conversations written in another shape, never with a loss: each row is read back and compared before it is kept."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from localsft.atomic import atomic_file
from localsft.data.conversation import Conversation
from localsft.data.formats import SkipBad
from localsft.data.openai import to_openai
from localsft.data.shapes import ALPACA, INPUT_IDEAL, OPENAI, PROMPT_COMPLETION, SHAREGPT, TEXT, Shape
from localsft.errors import InputError, UsageError

_SHAREGPT_SENDERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


@dataclass(frozen=True, slots=True)
class Target:
    """A shape that rows can be written in; ``write`` gives None for a conversation that has no place in it."""

    shape: Shape
    write: Callable[[Conversation], dict[str, Any] | None]

    def row(self, conversation: Conversation) -> dict[str, Any]:
        """The conversation as a row.

        Raises:
            InputError: it can't be written in this shape without losing something.
        """
        row = self.write(conversation)
        if row is not None and conversation.tags:
            row["tags"] = list(conversation.tags)
        back = None if row is None else self._read_back(row, conversation)
        if row is not None and back == conversation:
            return row
        raise InputError(
            f"{conversation.source}: this conversation can't be written as {self.shape.name} without losing "
            f"{_lost(back, conversation)}; use --to openai"
        )

    def _read_back(self, row: Mapping[str, Any], conversation: Conversation) -> Conversation | None:
        try:
            return self.shape.read(row, conversation.file, conversation.line)
        except InputError:
            return None


def _lost(back: Conversation | None, conversation: Conversation) -> str:
    """What of a conversation does not come back, in words."""
    if back is None or [(m.role, m.content) for m in back.messages] != [(m.role, m.content) for m in conversation.messages]:
        calls = any(message.tool_calls for message in conversation.messages)
        return "its tool calls or the order of its turns" if calls else "the order or the roles of its turns"
    pairs = list(zip(back.messages, conversation.messages, strict=True))
    lost = {
        "its tools": back.tools != conversation.tools,
        "its tool calls": any(one.tool_calls != two.tool_calls for one, two in pairs),
        "the weights of its messages": any(one.weight != two.weight for one, two in pairs),
        "further keys of its messages": any(one.extra != two.extra for one, two in pairs),
        "its tags": back.tags != conversation.tags,
    }
    return " and ".join(name for name, gone in lost.items() if gone)


def convert(conversations: Iterable[Conversation], target: Target, out: Path, skip_bad: SkipBad | None = None) -> int:
    """Write conversations to ``out`` (.jsonl, .csv or .tsv, with .gz if need be), whole or not at all; returns the rows.

    Raises:
        UsageError: ``out`` has another ending, or a table can't hold the shape.
        InputError: a conversation has no place in the shape (unless ``skip_bad``), or the disk is full.
    """
    suffix = Path(out.stem if out.suffix == ".gz" else out.name).suffix
    if suffix not in (".jsonl", ".csv", ".tsv"):
        raise UsageError(f"{out}: can't tell the format from the name; end it in .jsonl, .csv or .tsv, with .gz if you like")
    count = 0
    with _writer(out) as file:
        table = _Table(file, "\t" if suffix == ".tsv" else ",", target) if suffix != ".jsonl" else None
        for conversation in conversations:
            try:
                row = target.row(conversation)
            except InputError as error:
                if skip_bad is None:
                    raise
                skip_bad(error)
                continue
            if table is None:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            else:
                table.write(row, conversation.source)
            count += 1
    return count


@contextmanager
def _writer(out: Path) -> Iterator[IO[bytes]]:
    with atomic_file(out) as file:
        if out.suffix != ".gz":
            yield file
            return
        with gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:  # no time: same rows, same bytes
            yield cast("IO[bytes]", packed)


class _Table:
    """Rows of texts as CSV; the columns are those that the target's shape may have."""

    def __init__(self, file: IO[bytes], delimiter: str, target: Target) -> None:
        if target.shape not in (PROMPT_COMPLETION, ALPACA, TEXT):
            raise UsageError(f"--to {target.shape.name}: a table has no place for messages; write .jsonl")
        self._file = file
        self._delimiter = delimiter
        self._columns = ["system", *target.shape.keys, *(["input"] if target.shape is ALPACA else []), "tags"]
        self._put(self._columns)

    def write(self, row: Mapping[str, Any], source: str) -> None:
        cells = dict(row)
        tags = cells.get("tags", [])
        if len(tags) > 1 or not all(isinstance(cell, str) and cell for key, cell in cells.items() if key != "tags"):
            raise InputError(f"{source}: several tags, a history or an empty text have no place in a table; write .jsonl")
        cells["tags"] = tags[0] if tags else ""
        self._put([cells.get(column, "") for column in self._columns])

    def _put(self, cells: list[str]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self._delimiter, lineterminator="\n").writerow(cells)
        self._file.write(text.getvalue().encode())


def _with_system(conversation: Conversation) -> tuple[dict[str, Any], list[str | None]]:
    """{"system": ...} if the conversation begins so, and the contents of the other messages."""
    messages = conversation.messages
    if messages[0].role == "system":
        return {"system": messages[0].content}, [message.content for message in messages[1:]]
    return {}, [message.content for message in messages]


def _to_prompt_completion(conversation: Conversation) -> dict[str, Any] | None:
    row, contents = _with_system(conversation)
    return {**row, "prompt": contents[0], "completion": contents[1]} if len(contents) == 2 else None


def _to_alpaca(conversation: Conversation) -> dict[str, Any] | None:
    row, contents = _with_system(conversation)
    if len(contents) % 2:
        return None
    pairs = [list(pair) for pair in zip(contents[::2], contents[1::2], strict=True)]
    history = {"history": pairs[:-1]} if len(pairs) > 1 else {}
    return {**row, **history, "instruction": pairs[-1][0], "output": pairs[-1][1]}


def _to_sharegpt(conversation: Conversation) -> dict[str, Any] | None:
    turns = []
    for message in conversation.messages:
        sender, value = _SHAREGPT_SENDERS.get(message.role, message.role), message.content
        if message.tool_calls and value is None and len(message.tool_calls) == 1:
            sender, value = "function_call", json.dumps(dict(message.tool_calls[0]["function"]), ensure_ascii=False)
        turns.append({"from": sender, "value": value})
    row: dict[str, Any] = {"conversations": turns}
    return row | {"tools": list(conversation.tools)} if conversation.tools else row


def _to_input_ideal(conversation: Conversation) -> dict[str, Any] | None:
    *given, answer = to_openai(conversation)["messages"]
    return {"input": given, "ideal": answer["content"]} if answer["role"] == "assistant" else None


def _to_text(conversation: Conversation) -> dict[str, Any] | None:
    return {"text": conversation.messages[0].content} if conversation.is_text else None


TARGETS: Mapping[str, Target] = {
    "openai": Target(OPENAI, to_openai),
    "prompt-completion": Target(PROMPT_COMPLETION, _to_prompt_completion),
    "alpaca": Target(ALPACA, _to_alpaca),
    "sharegpt": Target(SHAREGPT, _to_sharegpt),
    "input-ideal": Target(INPUT_IDEAL, _to_input_ideal),
    "text": Target(TEXT, _to_text),
}


def find_target(name: str) -> Target:
    """The target of ``--to``. Raises ``UsageError`` for an unknown name."""
    if name not in TARGETS:
        raise UsageError(f"--to {name}: no such shape; use one of {', '.join(TARGETS)}")
    return TARGETS[name]
