"""OpenAI's chat form, the native one here: {"messages": [...], "tools": [...], "tags": [...]}, read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from localsft.data.conversation import ROLES, TEXT_ROLE, Conversation, Message
from localsft.data.rows import parse_object
from localsft.errors import InputError

_KNOWN_MESSAGE_KEYS = frozenset(("role", "content", "weight", "train", "tool_calls"))


def openai_conversation(row: Mapping[str, Any], file: str, line: int) -> Conversation:
    """A conversation from OpenAI's chat form, checked.

    Raises:
        InputError: names file and line, what is wrong, and the remedy.
    """
    return finished(openai_messages(row.get("messages"), f"{file}:{line}"), row, file, line)


def openai_messages(rows: Any, where: str) -> tuple[Message, ...]:
    """The value of "messages", checked. Raises ``InputError`` as ``openai_conversation`` does."""
    if not isinstance(rows, list) or not rows:
        raise InputError(f'{where}: "messages" is missing or not a list; write {{"messages": [{{"role": ..., "content": ...}}]}}')
    return parse_messages(rows, where)


def finished(messages: tuple[Message, ...], row: Mapping[str, Any], file: str, line: int) -> Conversation:
    """A conversation of ``messages`` with the row's tools and tags, if somebody answers in it.

    Raises:
        InputError: no assistant turn, or malformed tools or tags.
    """
    where = f"{file}:{line}"
    for message in reversed(messages):
        if message.role in ("assistant", TEXT_ROLE):
            break
    else:
        raise InputError(f"{where}: no assistant turn, so nothing to learn; add the answer or remove the row")
    return Conversation(messages, objects(row, "tools", where), tags(row, where), file, line)


def parse_messages(rows: Sequence[Any], where: str) -> tuple[Message, ...]:
    """Messages of {"role", "content", ...} objects, each checked. Raises ``InputError`` at the first bad one."""
    return tuple([_message(item, number, where) for number, item in enumerate(rows, 1)])


def to_openai(conversation: Conversation) -> dict[str, Any]:
    """The row that reads back as ``conversation``; tool-call arguments as OpenAI writes them, as a string."""
    row: dict[str, Any] = {"messages": [_write_message(message) for message in conversation.messages]}
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    if conversation.tags:
        row["tags"] = list(conversation.tags)
    return row


def _write_message(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content, **(message.extra or {})}
    if message.weight != 1:
        row["weight"] = message.weight
    if message.tool_calls:
        row["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
            for call in message.tool_calls
        ]
    return row


def _message(item: Any, number: int, where: str) -> Message:
    if not isinstance(item, dict):
        raise InputError(f'{where}: message {number} is not an object; write {{"role": ..., "content": ...}}')
    role = item.get("role")
    if role not in ROLES:
        raise InputError(f"{where}: message {number} has the unknown role {role!r}; use one of {', '.join(ROLES)}")
    content = item.get("content")
    if len(item) == 2 and isinstance(content, str):
        return Message(role, content)  # as nearly all are
    content = _content(content, number, where)
    calls = _tool_calls(item, number, where) if item.get("tool_calls") else ()
    if content is None and not (calls and role == "assistant"):
        raise InputError(f"{where}: message {number} ({role}) has no content; add it or remove the message")
    extra = {key: value for key, value in item.items() if key not in _KNOWN_MESSAGE_KEYS and value is not None}
    return Message(role, content, _weight(item, number, where), calls, extra or None)


def _content(value: Any, number: int, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):  # parts: only text can be trained
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in value]
        if all(isinstance(text, str) for text in texts):
            return "".join(text for text in texts if text is not None)
        raise InputError(f"{where}: message {number} has a part that is not text; remove images, audio and files")
    raise InputError(f"{where}: the content of message {number} is not text; write it as a JSON string")


def _weight(item: Mapping[str, Any], number: int, where: str) -> float:
    weight = item.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise InputError(f"{where}: the weight of message {number} is {weight!r}; it must be a number of at least 0")
    train = item.get("train", True)
    if not isinstance(train, bool):
        raise InputError(f'{where}: "train" of message {number} is {train!r}; it must be true or false')
    return float(weight) if train else 0.0


def _tool_calls(item: Mapping[str, Any], number: int, where: str) -> tuple[Mapping[str, Any], ...]:
    return tuple([_tool_call(call, number, where) for call in objects(item, "tool_calls", where)])


def _tool_call(call: Mapping[str, Any], number: int, where: str) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError(
            f'{where}: a tool call of message {number} has no function name; write {{"function": {{"name": ..., "arguments": ...}}}}'
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI writes an object as a string; templates want the object
        try:
            arguments = parse_object(arguments.encode() or b"{}", where)
        except (InputError, UnicodeEncodeError):
            raise InputError(f"{where}: the arguments of a tool call in message {number} are not a JSON object; correct them") from None
    if not isinstance(arguments, dict):
        raise InputError(f"{where}: the arguments of a tool call in message {number} are not a JSON object; correct them")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def objects(row: Mapping[str, Any], key: str, where: str) -> tuple[Mapping[str, Any], ...]:
    """The list of objects under ``key``, empty if there is none. Raises ``InputError`` if it is anything else."""
    value = row.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f'{where}: "{key}" is not a list of objects; correct or remove it')
    return tuple(value)


def tags(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The row's tags: a string or a list of strings. Raises ``InputError`` if they are anything else."""
    value = row.get("tags")
    if value is None or value == "":
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(tag, str) for tag in found):
        raise InputError(f'{where}: "tags" is not a list of strings; correct or remove it')
    return tuple(found)
