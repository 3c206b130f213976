"""What a base model's template and vocabulary make of the rows: what is supervised, cut off, left out or lost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from localsft.batch import Example
from localsft.data.check.finding import DataFinding, RowChecks
from localsft.data.conversation import Conversation
from localsft.data.render import NO_TARGET, encode_marked
from localsft.data.supervision import ADDED_END, CHANGED, OTHER_PROMPT, Mask, TextExample, mark
from localsft.data.template import ChatTemplate
from localsft.errors import InputError
from localsft.tokenizer import Tokenizer

_NO_LIMIT = 1 << 40  # tokens
POLICIES = ("whole turns", "the end cut off", "the start cut off", "rows left out")


@dataclass(frozen=True, slots=True)
class TokenRules:
    """How rows become tokens, as for training. ``known``: characters that were tried, and whether the vocabulary loses them."""

    tokenizer: Tokenizer
    template: ChatTemplate
    mask: Mask
    max_length: int
    known: dict[str, bool] = field(default_factory=dict)


@dataclass(slots=True)
class Lost:
    """What one way to shorten over-long examples loses: tokens, supervised ones among them, and end-of-turn tokens of answers of which
    a part stays, so that the model learns to stop nowhere."""

    tokens: int = 0
    supervised: int = 0
    ends: int = 0

    def add(self, other: Lost) -> None:
        """Sum up."""
        self.tokens += other.tokens
        self.supervised += other.supervised
        self.ends += other.ends


class TokenChecks(RowChecks):
    """Needs a tokenizer; rows are added many at a time."""

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.tokens = self.supervised = self.over_long = 0
        self.lost = {policy: Lost() for policy in POLICIES}
        self._untold = self.collector(
            "no-target", "error", "no token of a row is supervised, so it teaches nothing", "add an answer with a weight, or remove the row"
        )
        self._refused = self.collector(
            "template-error", "error", "the chat template refuses a row, at which training would stop", "correct or remove the row"
        )
        self._too_long = self.collector("too-long", "warning", "", "split or shorten the rows, or raise --max-length (here and for train)")
        self._cut = self.collector("cut-off", "warning", "", "split or shorten the rows, or raise --max-length (here and for train)")
        self._changed = self.collector(
            "template-changes", "warning", "the chat template leaves out or changes a part of a message", "look at it with data preview"
        )
        self._prompt = self.collector(
            "other-prompt", "warning", "the chat template writes a turn differently from its own prompt", "look at it with data preview"
        )
        self._end = self.collector(
            "end-added", "note", "the chat template does not end a turn with a token that stops; one was added", "nothing, if so intended"
        )
        self._losses = self.collector(
            "lost-characters", "warning", "the vocabulary has no token for a character, which the model will not see", "replace it"
        )
        self._typed = self.collector(
            "control-token", "note", "a text holds the name of a control token; it is read as plain text", "remove it, if it is left over"
        )

    def look(self, conversations: Sequence[Conversation], rules: TokenRules) -> None:
        """Look at some rows."""
        marked: list[tuple[Conversation, list[TextExample]]] = []
        for conversation in conversations:
            try:
                marked.append((conversation, mark(conversation, rules.tokenizer, rules.template, rules.mask)))
            except InputError as error:
                self._refused.add(conversation.source, str(error).removeprefix(f"{conversation.source}: "))
        long: list[tuple[Conversation, list[TextExample]]] = []
        wholes: list[tuple[Example, ...]] = []
        for row, result in zip(marked, encode_marked(marked, rules.tokenizer, max_length=_NO_LIMIT), strict=True):
            source = row[0].source
            for example in result.examples:
                self.tokens += len(example.token_ids)
                self.supervised += int(np.count_nonzero(example.target_weights))
            if NO_TARGET in result.skipped:
                self._untold.add(source)
            for note, rows in ((CHANGED, self._changed), (OTHER_PROMPT, self._prompt), (ADDED_END, self._end)):
                if note in result.notes:
                    rows.add(source)
            if any(len(example.token_ids) > rules.max_length for example in result.examples):
                long.append(row)
                wholes.append(result.examples)
        for (conversation, _), whole, kept in zip(
            long, wholes, encode_marked(long, rules.tokenizer, max_length=rules.max_length), strict=True
        ):
            self._shorten(conversation.source, whole, kept.examples)
        self._look_at_characters(conversations, rules)

    def _shorten(self, source: str, whole: Sequence[Example], kept: Sequence[Example]) -> None:
        limit = self.max_length
        self.over_long += 1
        all_of = _sizes(whole)
        rest = _sizes(kept)
        self.lost["whole turns"].add(Lost(all_of.tokens - rest.tokens, all_of.supervised - rest.supervised))
        for example in whole:
            weights = example.target_weights
            if (beyond := len(weights) - limit) <= 0:
                continue
            cut_turn = int(weights[limit - 1] > 0 and weights[limit] > 0)
            self.lost["the end cut off"].add(Lost(beyond, int(np.count_nonzero(weights[limit:])), cut_turn))
            self.lost["the start cut off"].add(Lost(beyond, int(np.count_nonzero(weights[:beyond]))))
            self.lost["rows left out"].add(Lost(len(weights), int(np.count_nonzero(weights))))
        longest = max(len(example.token_ids) for example in whole)
        if rest.supervised:
            self._cut.add(source, f"{longest:,} tokens, of which {all_of.tokens - rest.tokens:,} are cut off")
        else:
            self._too_long.add(source, f"{longest:,} tokens")

    def _look_at_characters(self, conversations: Sequence[Conversation], rules: TokenRules) -> None:
        texts = ["\n".join([message.content or "" for message in conversation.messages]) for conversation in conversations]
        for character in set().union(*texts) - rules.known.keys():
            rules.known[character] = _is_lost(character, rules.tokenizer)
        lost = "".join(character for character, gone in rules.known.items() if gone)
        pattern = re.compile(f"[{re.escape(lost)}]") if lost else None
        for conversation, text in zip(conversations, texts, strict=True):
            if pattern and (found := pattern.search(text)):
                self._losses.add(conversation.source, f"U+{ord(found[0]):04X}")
            if rules.tokenizer.control_pattern and (token := rules.tokenizer.control_pattern.search(text)):
                self._typed.add(conversation.source, token[0])

    def merge(self, later: RowChecks) -> None:
        super().merge(later)
        assert isinstance(later, TokenChecks)
        self.tokens += later.tokens
        self.supervised += later.supervised
        self.over_long += later.over_long
        for policy, lost in later.lost.items():
            self.lost[policy].add(lost)

    def figures(self) -> dict[str, Any]:
        """For the report: tokens of all rows at full length, and what each way to shorten them loses."""
        return {
            "max_length": self.max_length,
            "tokens": self.tokens,
            "supervised": self.supervised,
            "over_long": self.over_long,
            "lost": {policy: asdict(lost) for policy, lost in self.lost.items()},
        }

    def findings(self) -> Iterable[DataFinding]:
        losses = ", ".join(
            f"{policy}: {lost.tokens:,} tokens ({lost.supervised:,} supervised{f', {lost.ends:,} ends of turn' if lost.ends else ''})"
            for policy, lost in self.lost.items()
        )
        limit = f"{self.max_length:,} tokens"
        for collector in self._collectors.values():
            if collector is self._too_long:
                yield from collector.findings(
                    message=f"no whole answer fits into {limit}, and train leaves the row out; lost, with {losses}"
                )
            elif collector is self._cut:
                yield from collector.findings(message=f"answers beyond {limit} are cut off, after a whole turn; lost, with {losses}")
            else:
                yield from collector.findings()


def _sizes(examples: Sequence[Example]) -> Lost:
    return Lost(
        sum(len(example.token_ids) for example in examples), sum(int(np.count_nonzero(example.target_weights)) for example in examples)
    )


def _is_lost(character: str, tokenizer: Tokenizer) -> bool:
    """Whether nothing of it comes back from its tokens. A vocabulary that writes it otherwise (a ligature in letters) keeps it."""
    if character.isspace():
        return False
    back = tokenizer.decode(tokenizer.encode(f"x{character}x"))
    return back.strip() in ("xx", "x x") or ("\ufffd" in back and character != "\ufffd")
