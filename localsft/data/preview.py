"""What the model will see of a row: the text of its very token ids, in pieces of equal supervision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localsft.batch import Example
from localsft.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one weight and kind, from token ``start`` of the example on. ``weight``: as targets, 0 for context.
    ``text``: of their bytes, whole characters."""

    start: int
    text: str
    ids: tuple[int, ...]
    weight: float
    is_control: bool

    @property
    def is_supervised(self) -> bool:
        return self.weight > 0


def pieces_of(example: Example, tokenizer: Tokenizer, cuts: Sequence[int] = ()) -> list[Piece]:
    """The pieces of an example; together their ids are the example's, and their texts are the text of its bytes. Before the tokens
    ``cuts``, a piece ends too.

    A character whose bytes have tokens of different weights is not cut: it goes with the first of them.
    """
    pieces: list[Piece] = []
    ids: list[int] = []
    data = b""
    kind = (0.0, False)
    cut = False
    for i, (token, weight) in enumerate(zip(example.token_ids.tolist(), example.target_weights.tolist(), strict=True)):
        control = tokenizer.is_control(token)
        cut |= i in cuts
        if ids and (cut or (weight, control) != kind) and (_is_whole(data) or control):
            pieces.append(Piece(i - len(ids), data.decode("utf-8", "replace"), tuple(ids), *kind))
            ids, data, cut = [], b"", False
        if not ids:
            kind = (weight, control)
        ids.append(token)
        data += tokenizer.token_bytes(token)
    if ids:
        pieces.append(Piece(len(example.token_ids) - len(ids), data.decode("utf-8", "replace"), tuple(ids), *kind))
    return pieces


def bos_count(example: Example, tokenizer: Tokenizer) -> int:
    """How many beginning-of-sequence tokens the example starts with; more than one is a template that adds its own."""
    count = 0
    for token in example.token_ids.tolist():
        if tokenizer.bos_id is None or token != tokenizer.bos_id:
            break
        count += 1
    return count


def _is_whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
