"""Two encoders of plain text, over ``tokenizers`` and over ``sentencepiece``; neither can yield a control token.

Both hold the model's own vocabulary with the control tokens renamed to strings that no text can contain, so text typed
by a user stays text. ``localsft.tokenizer.core`` puts the control tokens in.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from localsft.errors import InputError
from localsft.tokenizer.words import Control, WordSpans

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers


class PlainEncoder(Protocol):
    """Encodes runs of text between control tokens.

    ``prefix_at_start`` / ``prefix_after_control``: whether a run at the start of the text / right after a control token
    gets the vocabulary's leading space ("dummy prefix").
    """

    prefix_at_start: bool
    prefix_after_control: bool

    def encode_runs(self, texts: Sequence[str], *, prefix: bool) -> list[bytes]:
        """Ids of each text on its own, as the bytes of int32; ``prefix``: with the vocabulary's leading space, if it has one."""
        ...

    def words(self, control: Sequence[Control]) -> WordSpans | None:
        """A faster way to the same ids, where words never run over a space and no run gets a leading space; else None."""
        ...


def unreachable(token_id: int) -> str:
    """A vocabulary entry that no text yields: both kinds of vocabulary turn every space into another character."""
    return f" control {token_id}"


class BpeEncoder:
    """Plain text over the ``tokenizers`` package.

    ``by_spaces``: the pre-tokenizer never lets a word run over a space, so a text may be encoded in the pieces between
    single spaces (``localsft.tokenizer.words``). ``fixed``: texts that are tokens wherever they stand.
    """

    def __init__(
        self,
        bare: tokenizers.Tokenizer,
        prefixed: tokenizers.Tokenizer | None = None,
        *,
        prefix_after_control: bool = False,
        by_spaces: bool = False,
        fixed: Sequence[str] = (),
    ) -> None:
        self._bare = bare
        self._prefixed = prefixed or bare
        self._by_spaces = by_spaces
        self._fixed = fixed
        self.prefix_at_start = prefixed is not None
        self.prefix_after_control = prefix_after_control

    def encode_runs(self, texts: Sequence[str], *, prefix: bool) -> list[bytes]:
        encoder = self._prefixed if prefix else self._bare
        found = encoder.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        return [array("i", encoding.ids).tobytes() for encoding in found]

    def words(self, control: Sequence[Control]) -> WordSpans | None:
        if not self._by_spaces or self._prefixed is not self._bare:
            return None
        return WordSpans(self._bare, self._fixed, control)


class SentencePieceEncoder:
    """Plain text over the ``sentencepiece`` package; ``model`` is a serialized ModelProto."""

    def __init__(self, model: bytes, *, prefix: bool, where: str) -> None:
        self._bare = _load_processor(model + _field(3, _varint_field(3, 0)), where)  # A repeated message field merges.
        self._prefixed = _load_processor(model + _field(3, _varint_field(3, 1)), where) if prefix else self._bare
        self.prefix_at_start = prefix
        self.prefix_after_control = prefix

    def encode_runs(self, texts: Sequence[str], *, prefix: bool) -> list[bytes]:
        processor = self._prefixed if prefix else self._bare
        return [array("i", ids).tobytes() for ids in processor.encode(list(texts), out_type=int)]

    def words(self, control: Sequence[Control]) -> None:
        return None  # its pieces may hold spaces


def sentencepiece_model(pieces: Sequence[tuple[str, float, int]], *, byte_fallback: bool) -> bytes:
    """A serialized sentencepiece ModelProto of the BPE kind from (piece, score, type) rows; the type codes are those of
    sentencepiece_model.proto, which GGUF shares: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
    import struct

    rows = [
        _field(1, _field(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _varint_field(3, kind)) for piece, score, kind in pieces
    ]
    ids = {kind: next((i for i, row in enumerate(pieces) if row[2] == kind), -1) for kind in (2,)}
    trainer = (
        _varint_field(3, 2)  # model_type BPE
        + _varint_field(4, len(pieces))
        + _varint_field(35, int(byte_fallback))
        + _varint_field(40, ids[2])
        + b"".join(_varint_field(field, -1) for field in (41, 42, 43))  # bos, eos, pad: put in by core.py
    )
    normalizer = _field(1, b"identity") + _varint_field(4, 0) + _varint_field(5, 1)
    return b"".join(rows) + _field(2, trainer) + _field(3, normalizer)


def _load_processor(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{where}: the sentencepiece vocabulary can't be loaded ({error}); fetch the file again") from error


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload
