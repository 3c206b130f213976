"""What of a conversation is compared with others: its prompt, its answer, its words, and a name for its content."""

from __future__ import annotations

from collections.abc import Iterable

import orjson
import xxhash

from localsft.data.conversation import Conversation, Message


def prompt_text(conversation: Conversation) -> str:
    """What was asked: every message before the last assistant turn except system prompts. Empty for plain text."""
    if conversation.is_text:
        return ""
    return "\n".join(_content(message) for message in conversation.messages[: _last_answer(conversation)] if not _is_system(message))


def answer_text(conversation: Conversation) -> str:
    """The last assistant turn, its tool calls as JSON; the whole text of a plain-text row; empty where nothing answers."""
    if conversation.is_text:
        return conversation.messages[0].content or ""
    return "\n".join(_content(message) for message in conversation.messages[_last_answer(conversation) :][:1])


def whole_text(conversation: Conversation) -> str:
    """Every message except system prompts."""
    return "\n".join(_content(message) for message in conversation.messages if not _is_system(message))


def identity(conversation: Conversation) -> str:
    """32 hex digits (xxh3-128) for roles, contents, weights, tool calls, other keys and tools; not for tags or the place in a file."""
    document = [
        [[m.role, m.content, float(m.weight), [dict(call) for call in m.tool_calls], dict(m.extra or {})] for m in conversation.messages],
        [dict(tool) for tool in conversation.tools],
    ]
    return xxhash.xxh3_128_hexdigest(orjson.dumps(document, option=orjson.OPT_SORT_KEYS))


def dataset_fingerprint(identities: Iterable[str]) -> str:
    """32 hex digits for a set of rows, counting repeated ones, whatever their order."""
    return xxhash.xxh3_128_hexdigest("".join(sorted(identities)).encode())


def _last_answer(conversation: Conversation) -> int:
    """Index of the last assistant message; the number of messages if there is none."""
    messages = conversation.messages
    return max((i for i, message in enumerate(messages) if message.role == "assistant"), default=len(messages))


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


def _content(message: Message) -> str:
    calls = [orjson.dumps(call.get("function"), option=orjson.OPT_SORT_KEYS).decode() for call in message.tool_calls]
    return "\n".join([part for part in (message.content, *calls) if part])
