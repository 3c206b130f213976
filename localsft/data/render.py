"""Conversations to examples: token ids and target weights, born together from one render of the chat template."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from localsft.batch import Example
from localsft.data.conversation import Conversation, Message
from localsft.data.supervision import Mask, TextExample, guard, mark, template_messages
from localsft.data.template import GUARD, ChatTemplate
from localsft.data.vetting import vet
from localsft.errors import InputError
from localsft.tokenizer import Tokenizer

# Why an example was left out, or what was done to it; for reports, beside those of supervision.py.
NO_TARGET = "no supervised token"
TOO_LONG = "longer than max_length before its first supervised turn ends"
TRUNCATED = "turns beyond max_length cut off"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One example, compact: ``ids`` the bytes of int32 token ids; ``runs`` (start, end, weight) of the tokens that are targets,
    ascending, apart or of other weights, each with weight > 0."""

    ids: bytes
    runs: tuple[tuple[int, int, float], ...]

    def example(self, source: str) -> Example:
        """As arrays."""
        token_ids = np.frombuffer(self.ids, np.int32)
        target_weights = np.zeros(len(token_ids), np.float32)
        for start, end, weight in self.runs:
            target_weights[start:end] = weight
        return Example(token_ids, target_weights, source)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The examples of one conversation, usually one; ``skipped``: why examples were left out; ``notes``: what was done."""

    tokens: tuple[Tokens, ...]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = field(default="", compare=False)

    @property
    def examples(self) -> tuple[Example, ...]:
        """``tokens`` as arrays."""
        return tuple([tokens.example(self.source) for tokens in self.tokens])


def chat_template(tokenizer: Tokenizer, source: str | None = None, where: str = "the chat template") -> ChatTemplate:
    """The model's own chat template, or ``source`` instead, tried out in a child process.

    Raises:
        InputError: there is none, it is no template, or it takes more time or memory than a template does.
    """
    text = source or tokenizer.chat_template
    if not text:
        raise InputError(f"{tokenizer.source}: the model has no chat template; pass one with --template")

    def name(token_id: int | None) -> str:
        return "" if token_id is None else tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    bos, eos = name(tokenizer.bos_id), name(tokenizer.eos_id)
    vet(text, bos=bos, eos=eos, where=where)  # before it is compiled: that alone can end a process
    return ChatTemplate(text, bos=bos, eos=eos, where=where)


def render(conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate, *, mask: Mask, max_length: int) -> Rendered:
    """The examples of one conversation.

    An example of more than ``max_length`` tokens is cut after the last whole supervised turn that fits, or left out.

    Raises:
        InputError: the template refuses the conversation, or a turn can't be found in what it wrote.
    """
    return render_batch([conversation], tokenizer, template, mask=mask, max_length=max_length)[0]


def render_batch(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, template: ChatTemplate, *, mask: Mask, max_length: int
) -> list[Rendered]:
    """``render`` of many conversations; their texts are encoded together, on all cores."""
    return encode_marked([(row, mark(row, tokenizer, template, mask)) for row in conversations], tokenizer, max_length=max_length)


def encode_marked(marked: Sequence[tuple[Conversation, Sequence[TextExample]]], tokenizer: Tokenizer, *, max_length: int) -> list[Rendered]:
    """Token ids and weights of marked texts."""
    texts = [example for _, examples in marked for example in examples]
    ids = iter(tokenizer.encode_spans([[span.text for span in example.spans] for example in texts], guard=GUARD))
    results = []
    for conversation, examples in marked:
        found: list[Tokens] = []
        skipped: list[str] = [] if examples else [NO_TARGET]
        notes: list[str] = []
        for text in examples:
            tokens, problem = _tokens(text, next(ids), tokenizer, max_length)
            if tokens is None:
                skipped.append(problem)
                continue
            found.append(tokens)
            notes += [*text.notes, problem] if problem else text.notes
        results.append(Rendered(tuple(found), tuple(skipped), tuple(dict.fromkeys(notes)), conversation.source))
    return results


def _tokens(text: TextExample, span_ids: list[bytes], tokenizer: Tokenizer, max_length: int) -> tuple[Tokens | None, str]:
    """The example, or None and why it is left out; with an example, what was done to it. ``span_ids``: bytes of int32."""
    if text.add_end and tokenizer.eos_id is not None:
        span_ids[-1] += _id_bytes(tokenizer.eos_id)
    if tokenizer.add_bos and tokenizer.bos_id is not None and not b"".join(span_ids).startswith(_id_bytes(tokenizer.bos_id)):
        span_ids[0] = _id_bytes(tokenizer.bos_id) + span_ids[0]
    problem = ""
    if sum(map(len, span_ids)) > 4 * max_length:
        keep = _whole_turns(text, span_ids, max_length)
        if keep == 0:
            return None, TOO_LONG
        problem = TRUNCATED
        del span_ids[keep:]
    runs: list[tuple[int, int, float]] = []
    end = 0
    for span, ids in zip(text.spans, span_ids, strict=False):
        start, end = end, end + len(ids) // 4
        if span.weight and end > max(start, 1):
            start = start or 1  # nothing predicts the first token
            if runs and runs[-1][1:] == (start, span.weight):
                start = runs.pop()[0]
            runs.append((start, end, span.weight))
    return (Tokens(b"".join(span_ids), tuple(runs)), problem) if runs else (None, NO_TARGET)


def _whole_turns(text: TextExample, span_ids: list[bytes], max_length: int) -> int:
    """How many spans to keep so that the last supervised turn among them is whole and all fit; 0 if none does."""
    keep = length = 0
    for number, (span, ids) in enumerate(zip(text.spans, span_ids, strict=True), 1):
        length += len(ids) // 4
        if length > max_length:
            break
        if span.ends_turn and span.weight > 0:
            keep = number
    return keep


def _id_bytes(token_id: int) -> bytes:
    return array("i", [token_id]).tobytes()


def render_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, template: ChatTemplate, tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """Token ids of a conversation up to and with the generation prompt, BOS once: what the model continues from."""
    source = "the prompt"
    text = template.render(
        template_messages(messages, tokenizer, source), guard(list(tools), tokenizer, source), add_generation_prompt=True, source=source
    )
    ids: list[int] = np.frombuffer(tokenizer.encode_spans([[text]], guard=GUARD)[0][0], np.int32).tolist()
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *ids]
    return ids
