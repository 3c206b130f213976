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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from localsft.data.conversation import Conversation, Message
from localsft.data.template import CLOSE, GUARD, MARKS, OPEN, ChatTemplate
from localsft.errors import InputError
from localsft.tokenizer import Tokenizer

Mask = Literal["assistant", "last", "all"]
_OPEN_TAG = re.compile(r"[<\[{][^\s<>\[\]{}]*$")
_MARK = re.compile(f"[{''.join(MARKS)}]")

# What was done to a row, for reports.
SPLIT = "one example for each assistant turn, as the template rewrites earlier turns"
ADDED_END = "end-of-sequence token added, as the template does not end the turn with one"
OTHER_PROMPT = "the template writes a turn differently from its own generation prompt"
CHANGED = "the template leaves out or changes a part of a message, an answer's reasoning for one"


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
    if isinstance(value, dict):
        return {guard(key, tokenizer, source): guard(child, tokenizer, source) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [guard(child, tokenizer, source) for child in value]
    return value


@dataclass(frozen=True, slots=True)
class _Written:
    """One assistant turn as the template writes it when it is the last: ``context`` + ``answer`` (with its end-of-turn token)
    is the text of an example of this turn alone. ``aligned``: the context is the prompt and both stand so in the template's
    text, ``last``. ``ended``: there is an end-of-turn token."""

    turn: Turn
    context: str
    answer: str
    last: str
    aligned: bool
    ended: bool


def _common(one: str, two: str) -> int:
    """Length of the beginning that two different texts have in common."""
    return next((i for i, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), min(len(one), len(two)))


class _Marker:
    """Marks one conversation; ``outside`` is the weight of text that is no assistant turn."""

    def __init__(
        self, messages: list[dict[str, Any]], conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, outside: float
    ) -> None:
        self.messages = messages
        self.source = conversation.source
        self.tools = guard(conversation.tools, tokenizer, self.source) if conversation.tools else ()
        self.tokenizer = tokenizer
        self.template = template
        self.outside = outside

    def by_prompts(self, turns: Sequence[Turn]) -> list[TextExample]:
        """One example if every prompt and turn stands unchanged in the whole text, else one for each turn."""
        whole = self._text(len(self.messages))
        written = [self._written(turn, whole) for turn in turns]
        notes = self._left_out(whole, written)
        spans: list[Span] = []
        position = 0
        for one in written:
            start = len(one.context)
            end = start + len(one.answer)
            if not one.ended and one is not written[-1]:
                following = self._stop_at(whole, end) if whole.startswith(one.last) else None
                if following is None:
                    break
                end = following
            if not (one.aligned and whole.startswith(one.context) and whole.startswith(one.answer, start)):
                break
            spans += [Span(whole[position:start], self.outside), Span(whole[start:end], one.turn.weight, ends_turn=True)]
            position = end
        else:
            if position < len(whole):
                spans.append(Span(whole[position:], self.outside))
            return [self._example(spans, written[-1].ended, notes)]
        if len(turns) > 1:
            notes.append(SPLIT)
        return [self._alone(one, notes) for one in written if one.turn.weight]

    def by_blocks(self, turns: Sequence[Turn]) -> TextExample:
        """The spans that the template encloses in ``{% generation %}`` blocks, each with its turn's weight."""
        whole = self._text(len(self.messages))
        before, *blocks = whole.split(OPEN)
        parts = [block.split(CLOSE) for block in blocks]
        if CLOSE in before or any(len(part) != 2 for part in parts):
            raise self._error("the generation blocks of the chat template are nested or not closed")
        weights = [turn.weight for turn in turns]
        if len(parts) != len(turns):
            if not parts or len(set(weights)) > 1:
                raise self._error(f"the chat template marks {len(parts)} generation blocks for {len(turns)} assistant turns")
            weights = weights[:1] * len(parts)
        spans = [Span(before, self.outside)]
        ended = False
        for (block, after), weight in zip(parts, weights, strict=True):
            text = block + after
            end = self._block_end(text, len(block))
            ended = end is not None
            stop = max(end or 0, len(block))  # the block as it is, and the end-of-turn token where it leaves that out
            spans += [Span(text[:stop], weight, ends_turn=True), Span(text[stop:], self.outside)]
        return self._example([span for span in spans if span.text], ended, self._left_out(whole, []))

    def _written(self, turn: Turn, whole: str) -> _Written:
        prompt = self._text(turn.index, prompt=True)
        last = whole if turn.index + 1 == len(self.messages) else self._text(turn.index + 1)
        context, start, stop = (prompt, len(prompt), len(last)) if last.startswith(prompt) else self._align(turn, prompt, last)
        content = (self.messages[turn.index]["content"] or "").strip()
        found = last.find(content, start, stop)
        end = self._end(last, start, stop, found + len(content) if found >= 0 else start)
        answer = last[start : stop if end is None else end]
        for call in self.messages[turn.index].get("tool_calls", ()):
            if call["function"]["name"] not in answer:
                raise self._error("the chat template does not write tool calls")
        return _Written(turn, context, answer, last, last.startswith(prompt), end is not None)

    def _align(self, turn: Turn, prompt: str, last: str) -> tuple[str, int, int]:
        """For a turn whose prompt is not how ``last`` begins: what goes before it, and where it starts and stops in ``last``."""
        history = self._text(turn.index)
        content = (self.messages[turn.index]["content"] or "").strip()
        if last.startswith(history):  # only the generation prompt differs: the turn starts where the two part, but not inside a tag
            common = _common(prompt, last)
            tag = _OPEN_TAG.search(last, len(history), common)
            start = tag.start() if tag else common
            found = last.find(content, len(history)) if content else -1
            start = min(start, found) if found >= 0 else start
            return last[:start], start, len(last)
        # The history itself differs, so the prompt is what the model will see, and the turn is what follows its header.
        header = prompt[len(history) :] if prompt.startswith(history) else ""
        start = last.rfind(header) + len(header) if header.strip() and header in last else self._find_turn(turn, prompt, last)
        if start < 0:
            raise self._error("the chat template rewrites earlier turns once an answer follows, so that the answer can't be found in it")
        stop = len(last) - _common(history[::-1], last[::-1])  # what the template puts after the last message, whoever wrote it
        stop = next((end for first, end in self._control_spans(last) if first < stop < end), stop)
        return prompt, start, stop if last.find(content, start, stop) >= 0 else len(last)

    def _find_turn(self, turn: Turn, prompt: str, last: str) -> int:
        """Where a turn without a header starts in ``last``: at its text, or at the control tokens before it that are not the
        prompt's own. -1 if it is not there."""
        message = self.messages[turn.index]
        content = (message["content"] or "").strip()
        anchor = content or next((call["function"]["name"] for call in message.get("tool_calls", ())), "")
        found = last.rfind(anchor) if anchor else -1
        if found < 0:
            return -1
        run = self._last_run(last[:found])
        if not run or (content and last[run[-1][1] : found].strip()):
            return found if content else -1
        own = [prompt[first:end] for first, end in self._last_run(prompt)]
        return next((first for i, (first, end) in enumerate(run) if own[i : i + 1] != [last[first:end]]), run[-1][1])

    def _control_spans(self, text: str) -> list[tuple[int, int]]:
        """Where control tokens stand in ``text``."""
        return [match.span() for match in self.tokenizer.control_pattern.finditer(text)] if self.tokenizer.control_pattern else []

    def _last_run(self, text: str) -> list[tuple[int, int]]:
        """Where the last control token of ``text`` stands, and those that lead up to it without a gap."""
        spans = self._control_spans(text)
        first = len(spans) - 1
        while first > 0 and spans[first - 1][1] == spans[first][0]:
            first -= 1
        return spans[max(first, 0) :]

    def _end(self, text: str, start: int, stop: int, written: int) -> int | None:
        """Where the turn that stands from ``start`` to ``stop``, its content up to ``written``, ends: after its end-of-turn token.
        That is the first token after the content at which generation stops; if there is none, the last control token, if it
        closes the turn. None where nothing does."""
        if self.tokenizer.control_pattern is None:
            return None
        position = start
        for match in self.tokenizer.control_pattern.finditer(text, start, stop):
            if match.start() >= written and self.tokenizer.control_tokens[match[0]] in self.tokenizer.stop_ids:
                return match.end()
            position = match.end()
        return self._stop_at(text, stop) or (position if position > start and not text[position:stop].strip() else None)

    def _block_end(self, text: str, stop: int) -> int | None:
        """The end of the last end-of-turn token in a generation block, ``text[:stop]``, or of the one right behind it."""
        spans = self._control_spans(text[:stop])
        return spans[-1][1] if spans and not text[spans[-1][1] : stop].strip() else self._stop_at(text, stop)

    def _stop_at(self, text: str, position: int) -> int | None:
        """The end of the token at ``position`` if generation stops at it, as at the next role's token in some templates."""
        match = self.tokenizer.control_pattern.match(text, position) if self.tokenizer.control_pattern else None
        return match.end() if match and self.tokenizer.control_tokens[match[0]] in self.tokenizer.stop_ids else None

    def _left_out(self, whole: str, written: Sequence[_Written]) -> list[str]:
        """A note if the template left out or changed the text of a message."""
        for message in self.messages:
            if message["role"] in ("system", "developer", "user") and message["content"].strip() not in whole:
                return [CHANGED]
        for one in written:
            if (self.messages[one.turn.index]["content"] or "").strip() not in one.answer:
                return [CHANGED]
        return []

    def _alone(self, one: _Written, notes: list[str]) -> TextExample:
        spans = [Span(one.context, self.outside), Span(one.answer, one.turn.weight, ends_turn=True)]
        return self._example(spans, one.ended, notes if one.aligned else [*notes, OTHER_PROMPT])

    def _text(self, end: int, prompt: bool = False) -> str:
        return self.template.render(self.messages[:end], self.tools, add_generation_prompt=prompt, source=self.source)

    def _example(self, spans: list[Span], ended: bool, notes: list[str]) -> TextExample:
        if ended:
            return TextExample(tuple(spans), notes=tuple(notes))
        if self.tokenizer.eos_id is None:
            raise self._error("the chat template ends no assistant turn and the tokenizer has no end-of-sequence token")
        return TextExample(tuple(spans), add_end=True, notes=(*notes, ADDED_END))

    def _error(self, what: str) -> InputError:
        return InputError(f"{self.source}: {what}; pass another template with --template")
