"""The shapes of rows that fine-tuning data comes in, each read as a conversation.

A row's shape is told by its keys; a file has one shape, and a row of another is an error (``formats.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from localsft.data.conversation import TEXT_ROLE, Conversation, Message
from localsft.data.openai import finished, openai_conversation, parse_messages
from localsft.data.rows import parse_object
from localsft.errors import InputError

_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function_response", "observation"), "tool"),
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """``keys``: all must be in a row of this shape; ``read(row, file, line)`` makes the conversation, or an InputError."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str, int], Conversation]

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has the keys of this shape."""
        return all(key in row for key in self.keys)


def shape_of(row: Mapping[str, Any], where: str) -> Shape:
    """The shape that the row's keys tell.

    Raises:
        InputError: the keys are those of no known shape.
    """
    for shape in SHAPES:
        if shape.fits(row):
            return shape
    keys = ", ".join(sorted(map(repr, row))[:8])
    if {"chosen", "rejected"} <= row.keys():
        raise InputError(f"{where}: preference pairs (chosen, rejected) can't be trained here; keep the chosen answers as messages")
    raise InputError(
        f"{where}: no known shape of row (its keys: {keys}); name the columns with --map prompt=COLUMN,completion=COLUMN "
        "in `localsft data convert`, or write messages"
    )


def _string(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise InputError(f'{where}: "{key}" is missing or is not text; write it as a string')
    return value


def _system(row: Mapping[str, Any], where: str) -> list[Message]:
    return [Message("system", _string(row, "system", where))] if row.get("system") else []


def _prompt_completion(row: Mapping[str, Any], file: str, line: int) -> Conversation:
    where = f"{file}:{line}"
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):  # both conversational, as TRL has it
        return finished(parse_messages([*prompt, *completion], where), row, file, line)
    turns = Message("user", _string(row, "prompt", where)), Message("assistant", _string(row, "completion", where))
    return finished((*_system(row, where), *turns), row, file, line)


def _alpaca(row: Mapping[str, Any], file: str, line: int) -> Conversation:
    where = f"{file}:{line}"
    messages = _system(row, where)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise InputError(f'{where}: "history" is not a list of [question, answer] pairs; correct or remove it')
    for question, answer in history:
        if not isinstance(question, str) or not isinstance(answer, str):
            raise InputError(f'{where}: "history" holds something that is not text; correct it')
        messages += [Message("user", question), Message("assistant", answer)]
    instruction = _string(row, "instruction", where)
    given = _string(row, "input", where) if row.get("input") else ""
    messages.append(Message("user", f"{instruction}\n\n{given}" if given else instruction))
    messages.append(Message("assistant", _string(row, "output", where)))
    return finished(tuple(messages), row, file, line)


def _sharegpt(row: Mapping[str, Any], file: str, line: int) -> Conversation:
    where = f"{file}:{line}"
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise InputError(f'{where}: "conversations" is empty or not a list of turns; write [{{"from": "human", "value": ...}}]')
    if all(isinstance(turn, dict) and "role" in turn for turn in turns):
        return finished(parse_messages(turns, where), row, file, line)
    messages = _system(row, where)
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise InputError(f'{where}: turn {number} is not {{"from": ..., "value": text}}; correct it')
        messages.append(_sharegpt_turn(turn["from"] if isinstance(turn.get("from"), str) else "", turn["value"], number, where))
    tools = row.get("tools")
    if isinstance(tools, str):  # written as a JSON string by some
        row = {**row, "tools": parse_object(f'{{"tools": {tools or "[]"}}}'.encode(), f'{where}: "tools"')["tools"]}
    return finished(tuple(messages), row, file, line)


def _sharegpt_turn(sender: str, value: str, number: int, where: str) -> Message:
    if sender == "function_call":
        call = parse_object(value.encode(), f"{where}: turn {number} (function_call)")
        function = {"name": call.get("name"), "arguments": call.get("arguments", {})}
        return parse_messages([{"role": "assistant", "content": None, "tool_calls": [{"function": function}]}], where)[0]
    role = _SHAREGPT_ROLES.get(sender)
    if role is None:
        raise InputError(f"{where}: turn {number} is from the unknown {sender!r}; use human, gpt, system, tool or function_call")
    return Message(role, value)


def _evals(row: Mapping[str, Any], file: str, line: int) -> Conversation:
    where = f"{file}:{line}"
    given, ideal = row.get("input"), row.get("ideal")
    answer = ideal[0] if isinstance(ideal, list) and ideal else ideal  # several accepted answers: the first
    if not isinstance(answer, str):
        raise InputError(f'{where}: "ideal" is not text or a list of texts; write the answer as a string')
    if isinstance(given, str):
        messages: tuple[Message, ...] = (Message("user", given),)
    elif isinstance(given, list):
        messages = parse_messages(given, where)
    else:
        raise InputError(f'{where}: "input" is neither text nor a list of messages; correct it')
    return finished((*messages, Message("assistant", answer)), row, file, line)


def _text(row: Mapping[str, Any], file: str, line: int) -> Conversation:
    where = f"{file}:{line}"
    text = _string(row, "text", where)
    if not text.strip():
        raise InputError(f'{where}: "text" is empty; remove the row')
    return finished((Message(TEXT_ROLE, text),), row, file, line)


OPENAI = Shape("OpenAI chat", ("messages",), openai_conversation)
SHAREGPT = Shape("ShareGPT", ("conversations",), _sharegpt)
PROMPT_COMPLETION = Shape("prompt/completion", ("prompt", "completion"), _prompt_completion)
ALPACA = Shape("Alpaca", ("instruction", "output"), _alpaca)
INPUT_IDEAL = Shape("input/ideal", ("input", "ideal"), _evals)
TEXT = Shape("plain text", ("text",), _text)
SHAPES = (OPENAI, SHAREGPT, PROMPT_COMPLETION, ALPACA, INPUT_IDEAL, TEXT)
