"""A conversation as localsft holds it, whatever file format it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_ROLE = "text"  # the one message of a plain-text row: no chat template, every token supervised


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``weight`` counts for assistant turns only: 0 takes the turn out of the loss.

    ``tool_calls``: as chat templates read them, ``{"type": "function", "function": {"name", "arguments": object}}``.
    ``extra``: further keys of the row that a template may read (``name``, ``tool_call_id``, ``reasoning_content``).
    """

    role: str
    content: str | None
    weight: float = 1.0
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, the tools that were offered, tags for slicing, and where it stands.

    ``line`` counts from 1; 0 means that it came from no file.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tags: tuple[str, ...] = ()
    file: str = ""
    line: int = 0

    @property
    def is_text(self) -> bool:
        """Whether this is plain text rather than a conversation."""
        return self.messages[0].role == TEXT_ROLE

    @property
    def source(self) -> str:
        """``file:line``, for messages."""
        return f"{self.file}:{self.line}" if self.line else self.file
