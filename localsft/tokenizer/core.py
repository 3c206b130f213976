"""Text to token ids and back, with one rule: control tokens come from templates, never from what somebody typed."""

from __future__ import annotations

import codecs
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from localsft.tokenizer.plain import PlainEncoder

# Tokens by which models end a turn or a message, whatever their metadata say (the set that llama.cpp stops at).
_STOP_NAMES = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<turn|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
        "<|END_OF_TURN_TOKEN|>",
    )
)
_MEMO_RUNS = 65_536  # runs of text kept encoded: system prompts and headers repeat in every row
_MEMO_CHARS = 65_536  # longer runs than this are not kept


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A token that only a template may write; ``lstrip``/``rstrip``: it swallows the whitespace before/after it."""

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the readers of the three file formats yield.

    ``token_bytes``: the UTF-8 bytes that each id stands for (a part of a character for byte tokens); control tokens
    stand for their own name. ``strip_first_space``: decoding takes one leading space off, as the vocabulary added it.
    ``fingerprint``: a hash of the file contents that decide the ids.
    """

    encoder: PlainEncoder
    token_bytes: Sequence[bytes]
    control: Sequence[ControlToken]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None = None
    extra_stop_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    strip_first_space: bool = False
    chat_template: str | None = None
    source: str = ""
    fingerprint: str = ""


class Tokenizer:
    """Encodes and decodes with one model's vocabulary. Make one with ``load_tokenizer``.

    ``encode`` never adds a beginning-of-sequence token: ``add_bos`` says whether the model wants one, and
    ``localsft.data.render`` puts in exactly one.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._encoder = vocabulary.encoder
        self._words = vocabulary.encoder.words(vocabulary.control)
        self._bytes = vocabulary.token_bytes
        self._strip_first_space = vocabulary.strip_first_space
        self._memo: dict[bool, dict[str, bytes]] = {False: {}, True: {}}  # by prefix
        self._control = {token.text: token for token in vocabulary.control}
        self._ids_of_control = {token.text: token.id for token in vocabulary.control}
        self._control_ids = frozenset(token.id for token in vocabulary.control)
        self._id_bytes = {token.id: array("i", [token.id]).tobytes() for token in vocabulary.control}
        self._control_pattern = _control_pattern(vocabulary.control)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.pad_id = vocabulary.pad_id
        self.add_bos = vocabulary.add_bos and vocabulary.bos_id is not None
        self.chat_template = vocabulary.chat_template
        self.source = vocabulary.source
        self._fingerprint = vocabulary.fingerprint
        self.vocab_size = len(vocabulary.token_bytes)
        self.stop_ids = self._find_stop_ids(vocabulary)

    @property
    def control_tokens(self) -> dict[str, int]:
        """Text and id of every token that only a template may write."""
        return self._ids_of_control

    @property
    def control_pattern(self) -> re.Pattern[str] | None:
        """Matches the text of any control token; None where the vocabulary has none."""
        return self._control_pattern

    def is_control(self, token_id: int) -> bool:
        """Whether the id is a control token."""
        return token_id in self._control_ids

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the ids of a text."""
        return self._fingerprint

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Token ids of ``text``, without BOS. Control tokens in the text count as such only with ``parse_special``."""
        return self.encode_batch([text], parse_special)[0]

    def encode_batch(self, texts: Sequence[str], parse_special: bool = False) -> list[list[int]]:
        """``encode`` of many texts."""
        if parse_special:
            found = [b"".join(spans) for spans in self.encode_spans([[text] for text in texts])]
        else:
            found = self._encode_runs(texts, self._encoder.prefix_at_start)
        return [array("i", ids).tolist() for ids in found]

    def encode_spans(self, documents: Sequence[Sequence[str]], guard: str | None = None) -> list[list[bytes]]:
        """Token ids of rendered texts, each cut into consecutive spans so that no token crosses a cut.

        Control tokens in the text become control ids, except where their text holds the character ``guard``, which is
        taken out: so a renderer marks what somebody typed. Returns the ids of each span of each document, as the bytes of
        int32 in the machine's order.
        """
        if self._words is not None:
            spans_ids = iter(self._words.encode([span for document in documents for span in document], control=True, guard=guard or ""))
            return [list(islice(spans_ids, len(document))) for document in documents]
        spans_of: list[list[list[bytes]]] = []
        missing: dict[bool, list[tuple[str, list[bytes], int]]] = {False: [], True: []}  # text, where its ids go
        for document in documents:
            spans: list[list[bytes]] = []
            spans_of.append(spans)
            prefix = self._encoder.prefix_at_start
            for span in document:
                spans.append(found := [])
                for piece in self._split_control(span):
                    if isinstance(piece, bytes):
                        found.append(piece)
                        prefix = self._encoder.prefix_after_control
                        continue
                    text = piece.replace(guard, "") if guard else piece
                    ids = self._memo[prefix].get(text)
                    if ids is None:
                        missing[prefix].append((text, found, len(found)))
                    found.append(ids or b"")
                    prefix = False
        for prefix, places in missing.items():
            encoded = self._encode_runs([text for text, _, _ in places], prefix)
            for (_, found, index), ids in zip(places, encoded, strict=True):
                found[index] = ids
        return [[b"".join(found) for found in spans] for spans in spans_of]

    def decode(self, ids: Iterable[int], skip_control: bool = False) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD. ``skip_control`` leaves control tokens out."""
        stream = self.stream(skip_control)
        return "".join([stream.push(token) for token in ids]) + stream.finish()

    def stream(self, skip_control: bool = True) -> DecodeStream:
        """A decoder that takes ids one at a time and never gives out half a character."""
        return DecodeStream(self, skip_control, self._strip_first_space)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for; a control token stands for its name."""
        return self._bytes[token_id]

    def _split_control(self, text: str) -> Iterable[bytes | str]:
        """Runs of plain text, and the bytes of the ids of control tokens."""
        if self._control_pattern is None:
            return [text] if text else []
        pieces: list[bytes | str] = []
        start = 0
        for match in self._control_pattern.finditer(text):
            token = self._control[match[0]]
            before = text[start : match.start()]
            if before := before.rstrip() if token.lstrip else before:
                pieces.append(before)
            pieces.append(self._id_bytes[token.id])
            start = match.end()
            if token.rstrip:
                start = len(text) - len(text[start:].lstrip())
        if start < len(text):
            pieces.append(text[start:])
        return pieces

    def _encode_runs(self, texts: Sequence[str], prefix: bool) -> list[bytes]:
        """Ids of runs of plain text; those that come more than once are kept, as what repeats in a batch comes again."""
        if self._words is not None:
            return self._words.encode(texts, control=False)
        counts = Counter(texts)
        ids = dict(zip(counts, self._encoder.encode_runs(list(counts), prefix=prefix), strict=True))
        memo = self._memo[prefix]
        if len(memo) > _MEMO_RUNS:
            memo.clear()
        memo.update((text, ids[text]) for text, count in counts.items() if count > 1 and len(text) <= _MEMO_CHARS)
        return [ids[text] for text in texts]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_memo": {False: {}, True: {}}}  # a copy for another process starts without the memo

    def _find_stop_ids(self, vocabulary: Vocabulary) -> frozenset[int]:
        named = {token.id for token in vocabulary.control if token.text in _STOP_NAMES}
        if {"<|return|>", "<|call|>", "<|end|>"} <= self._control.keys():
            named.discard(self._control["<|end|>"].id)  # harmony: <|end|> ends a message, not the turn
        eos = set() if vocabulary.eos_id is None else {vocabulary.eos_id}
        return frozenset(named | eos | vocabulary.extra_stop_ids)


class DecodeStream:
    """Bytes of token ids to text, holding back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer, skip_control: bool, strip_first_space: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._strip = strip_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that became complete with this token; may be empty."""
        if self._tokenizer.is_control(token_id):
            text = self._utf8.decode(b"", final=True)
            self._utf8.reset()
            self._strip = False
            return text if self._skip_control else text + self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id))
        if self._strip and text:
            text = text.removeprefix(" ")
            self._strip = False
        return text

    def finish(self) -> str:
        """What was held back: U+FFFD if the ids end inside a character, else empty."""
        return self._utf8.decode(b"", final=True)


def _control_pattern(control: Sequence[ControlToken]) -> re.Pattern[str] | None:
    """Leftmost, longest match over the control tokens' texts."""
    texts = sorted((token.text for token in control), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None
