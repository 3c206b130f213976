"""Ids of rendered spans where words never run over a space: cut in C++ (csrc/spans.h), each distinct piece encoded once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from localsft._core import SpanEncoder

if TYPE_CHECKING:
    import tokenizers


class Control(Protocol):
    """What must be known of a control token (``localsft.tokenizer.core.ControlToken``)."""

    @property
    def id(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def lstrip(self) -> bool: ...
    @property
    def rstrip(self) -> bool: ...


class WordSpans:
    """Encodes texts over ``encoder``. ``fixed``: texts that are tokens wherever they stand; a run with one is encoded whole."""

    def __init__(self, encoder: tokenizers.Tokenizer, fixed: Sequence[str], control: Sequence[Control]) -> None:
        self._encoder = encoder
        self._fixed = list(fixed)
        self._control = [(token.text, token.id, token.lstrip, token.rstrip) for token in control]
        self._spans = SpanEncoder(self._control, self._fixed)

    def encode(self, texts: Sequence[str], *, control: bool, guard: str = "") -> list[bytes]:
        """Ids of each text on its own, as the bytes of int32. With ``control``, control tokens in the texts become their ids, and
        ``guard`` is taken out of what stands between them."""
        found, heads, tails = self._spans.encode(list(texts), control, guard)
        if not heads and not tails:
            return found
        encodings = self._encoder.encode_batch_fast([*heads, *(f" {piece}" for piece in tails)], add_special_tokens=False)
        ids = [array("i", encoding.ids).tobytes() for encoding in encodings]
        self._spans.learn(False, heads, ids[: len(heads)])
        self._spans.learn(True, tails, ids[len(heads) :])
        again = [i for i, one in enumerate(found) if one is None]
        for i, one in zip(again, self._spans.encode([texts[i] for i in again], control, guard)[0], strict=True):
            found[i] = one
        self._spans.trim()
        return found

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_spans": None}  # a copy for another process starts with nothing learned

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._spans = SpanEncoder(self._control, self._fixed)
