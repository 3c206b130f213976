"""Which characters of a rendered conversation are supervised: the text of each example, cut into weighted spans.

What is supervised in an assistant turn is what the model must write after the generation prompt: the answer and its
end-of-turn token; the next role's header is not. Text is cut where supervision starts, so that the tokens before it are
exactly the prompt's tokens at inference.

A turn's span comes from the template's own ``{% generation %}`` blocks where it has them. Otherwise the prompt (everything
before the turn, with the generation prompt) must be the beginning of the rendered conversation. Templates that rewrite
earlier turns (thinking templates drop old reasoning) break that; then each assistant turn becomes an example of its own,
rendered as the model will see it. What can't be aligned is an error that names the row; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from localsft.data.conversation import Conversation, Message
from localsft.data.template import CLOSE, GUARD, MARKS, OPEN, ChatTemplate
from localsft.errors import InputError
from localsft.tokenizer import Tokenizer

Mask = Literal["assistant", "last", "all"]
_MARK = re.compile(f"[{''.join(MARKS)}]")

# What was done to a row, for reports.
SPLIT = "one example for each assistant turn, as the template rewrites earlier turns"
ADDED_END = "end-of-sequence token added, as the template does not end the turn with one"
OTHER_PROMPT = "the template writes a turn differently from its own generation prompt"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of an example's text; ``weight`` of its tokens as targets; ``ends_turn``: a supervised turn is whole here."""

    text: str
    weight: float
    ends_turn: bool = False


@dataclass(frozen=True, slots=True)
class TextExample:
    """One example before tokenization. ``add_end``: an end-of-sequence token must follow the last span, with its weight."""

    spans: tuple[Span, ...]
    add_end: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn to be marked: index of its message and its weight."""

    index: int
    weight: float


def supervised_turns(messages: Sequence[Message], mask: Mask) -> list[Turn]:
    """The assistant turns with their weights under ``mask``, up to the last that counts; empty if none does."""
    turns = [Turn(i, message.weight) for i, message in enumerate(messages) if message.role == "assistant"]
    if mask == "last":
        turns = [Turn(turn.index, turn.weight if turn is turns[-1] else 0.0) for turn in turns]
    while turns and not turns[-1].weight:
        turns.pop()
    return turns


def mark(conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, mask: Mask) -> list[TextExample]:
    """The examples of a conversation as text; none if no turn of it is supervised.

    Raises:
        InputError: the template refuses the conversation, or a turn can't be found in what it wrote.
    """
    if conversation.is_text:
        text: str = guard(conversation.messages[0].content, tokenizer, conversation.source)
        return [TextExample((Span("", 0.0), Span(text, 1.0, ends_turn=True)), add_end=tokenizer.eos_id is not None)]
    turns = supervised_turns(conversation.messages, mask)
    if not turns:
        return []
    messages = conversation.messages if mask == "all" else conversation.messages[: turns[-1].index + 1]
    rows = template_messages(messages, tokenizer, conversation.source)
    marker = _Marker(rows, conversation, tokenizer, template, outside=1.0 if mask == "all" else 0.0)
    return [marker.by_blocks(turns)] if template.marks_generation else marker.by_prompts(turns)


def template_messages(messages: Sequence[Message], tokenizer: Tokenizer, source: str) -> list[dict[str, Any]]:
    """Messages as templates read them, with every control token that somebody typed broken up by GUARD characters."""
    rows: list[dict[str, Any]] = []
    for message in messages:
        rows.append({"role": message.role, "content": guard(message.content, tokenizer, source)})
        if message.tool_calls:
            rows[-1]["tool_calls"] = guard(message.tool_calls, tokenizer, source)
        if message.extra:
            rows[-1] |= guard(message.extra, tokenizer, source)
    return rows


def guard(value: Any, tokenizer: Tokenizer, source: str) -> Any:
    """``value`` (a JSON value) with GUARD characters inside every control token's text."""
    if isinstance(value, str):
        if not value.isascii() and (found := _MARK.search(value)):
            raise InputError(f"{source}: the text holds U+{ord(found[0]):04X}, which Unicode keeps out of texts; remove it")
        pattern = tokenizer.control_pattern
        while pattern is not None and pattern.search(value):
            value = pattern.sub(lambda match: GUARD.join(match[0]), value)
        return value
    if isinstance(value, Mapping):
        return {guard(key, tokenizer, source): guard(child, tokenizer, source) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [guard(child, tokenizer, source) for child in value]
    return value


class _Marker:
    """Marks one conversation; ``outside`` is the weight of text that is no assistant turn."""

    def __init__(
        self, messages: list[dict[str, Any]], conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, outside: float
    ) -> None:
        self.messages = messages
        self.conversation = conversation
        self.tools = guard(conversation.tools, tokenizer, conversation.source)
        self.tokenizer = tokenizer
        self.template = template
        self.outside = outside

    def by_prompts(self, turns: Sequence[Turn]) -> list[TextExample]:
        """One example if every prompt is the beginning of the whole text, else one for each turn."""
        whole = self._text(len(self.messages))
        prompts = [self._text(turn.index, prompt=True) for turn in turns]
        lasts = [whole if turn.index + 1 == len(self.messages) else self._text(turn.index + 1) for turn in turns]
        stable = all(whole.startswith(prompt) and whole.startswith(last) for prompt, last in zip(prompts, lasts, strict=True))
        ends = [self._end(whole, len(prompt), len(last)) for prompt, last in zip(prompts, lasts, strict=True)] if stable else []
        if stable and all(end is not None for end in ends[:-1]):
            spans: list[Span] = []
            position = 0
            for turn, prompt, end in zip(turns, prompts, ends, strict=True):
                stop = len(whole) if end is None else end
                spans += [Span(whole[position : len(prompt)], self.outside), Span(whole[len(prompt) : stop], turn.weight, ends_turn=True)]
                position = stop
            if position < len(whole):
                spans.append(Span(whole[position:], self.outside))
            return [self._example(spans, add_end=ends[-1] is None)]
        many = (SPLIT,) if len(turns) > 1 else ()
        return [self._own(turn, prompt, last, many) for turn, prompt, last in zip(turns, prompts, lasts, strict=True) if turn.weight]

    def by_blocks(self, turns: Sequence[Turn]) -> TextExample:
        """The spans that the template encloses in ``{% generation %}`` blocks, each with its turn's weight."""
        before, *blocks = self.template.render(self.messages, self.tools, source=self.conversation.source).split(OPEN)
        parts = [block.split(CLOSE) for block in blocks]
        if CLOSE in before or any(len(part) != 2 for part in parts):
            raise self._error("the generation blocks of the chat template are nested or not closed")
        weights = [turn.weight for turn in turns]
        if len(parts) != len(turns):
            if not parts or len(set(weights)) > 1:
                raise self._error(f"the chat template marks {len(parts)} generation blocks for {len(turns)} assistant turns")
            weights = weights[:1] * len(parts)
        spans = [Span(before, self.outside)]
        end: int | None = None
        for (block, after), weight in zip(parts, weights, strict=True):
            end = self._end(block + after, 0, len(block))
            stop = max(end or 0, len(block))  # the block as it is, and the end-of-turn token where it leaves that out
            spans += [Span((block + after)[:stop], weight, ends_turn=True), Span((block + after)[stop:], self.outside)]
        return self._example([span for span in spans if span.text], add_end=end is None)

    def _own(self, turn: Turn, prompt: str, last: str, notes: tuple[str, ...]) -> TextExample:
        """An example of one turn, with the text that the template writes when that turn is the last."""
        start = len(prompt)
        if not last.startswith(prompt):
            notes = (*notes, OTHER_PROMPT)
            start = self._align(turn, prompt, last)
        end = self._end(last, start, len(last))
        stop = len(last) if end is None else end
        spans = [Span(last[:start], self.outside), Span(last[start:stop], turn.weight, ends_turn=True)]
        return self._example(spans, add_end=end is None, notes=notes)

    def _align(self, turn: Turn, prompt: str, last: str) -> int:
        """Where the turn starts in ``last``, although its generation prompt says otherwise: by its characters."""
        history = self._text(turn.index)
        if not last.startswith(history):
            raise self._error("the chat template rewrites earlier turns once an answer follows, so that the answer can't be found in it")
        start = next(i for i, pair in enumerate(zip_longest(prompt, last)) if pair[0] != pair[1])
        content = (self.messages[turn.index]["content"] or "").strip()
        found = last.find(content, len(history))
        if content and found < 0 and "</think>" not in content:
            raise self._error("the chat template does not write the assistant's answer as it stands")
        return min(start, found) if content and found >= 0 else start

    def _end(self, text: str, start: int, stop: int) -> int | None:
        """End of the supervised span that starts at ``start`` in a turn written up to ``stop``: after its end-of-turn token,
        which is the last control token of the turn, or else the stop token that begins the next one. None if there is none."""
        pattern = self.tokenizer.control_pattern
        if pattern is None:
            return None
        matches = list(pattern.finditer(text, start, stop))
        if matches and not text[matches[-1].end() : stop].strip():
            return matches[-1].end()
        following = pattern.match(text, stop)
        if following and self.tokenizer.control_tokens[following[0]] in self.tokenizer.stop_ids:
            return following.end()
        return None

    def _text(self, end: int, prompt: bool = False) -> str:
        return self.template.render(self.messages[:end], self.tools, add_generation_prompt=prompt, source=self.conversation.source)

    def _example(self, spans: list[Span], *, add_end: bool, notes: tuple[str, ...] = ()) -> TextExample:
        if add_end and self.tokenizer.eos_id is None:
            raise self._error("the chat template ends no assistant turn and the tokenizer has no end-of-sequence token")
        return TextExample(tuple(spans), add_end, (*notes, ADDED_END) if add_end else notes)

    def _error(self, what: str) -> InputError:
        return InputError(f"{self.conversation.source}: {what}; pass another template with --template")
