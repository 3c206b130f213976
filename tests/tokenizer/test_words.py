"""The fast way to token ids, cut in C++, gives the ids of the slow way: for control tokens, guards, whitespace and memory."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from localsft import _core
from localsft.tokenizer import ControlToken, Tokenizer, Vocabulary
from localsft.tokenizer.plain import BpeEncoder
from localsft.tokenizer.words import WordSpans
from tests.tiny_vocab import tiny_tokenizer

GUARD = "\ufdd0"
CONTROL = (
    ControlToken(900, "<|a|>"),
    ControlToken(901, "<|a|>x"),
    ControlToken(902, "<l>", lstrip=True),
    ControlToken(903, "<r>", rstrip=True),
    ControlToken(904, "<é>", lstrip=True, rstrip=True),
)
FIXED = ("hello world", "<think>")
SPACES = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and chr(code).isspace())
parts = st.sampled_from(
    [
        *(token.text for token in CONTROL),
        *FIXED,
        GUARD,
        "<|a",
        "<",
        "hello",
        " ",
        " ",
        "  ",
        "é",
        "日本",
        "\u0301",
        "x" * 70,
        *"\n\t\x1c\x85",
    ]
) | st.characters(exclude_categories=["Cs"])
texts = st.lists(parts | st.sampled_from(SPACES), max_size=12).map("".join)


def both() -> tuple[Tokenizer, Tokenizer]:
    """The tiny vocabulary with tokens that swallow whitespace: the fast way and the slow one."""
    bare = tiny_tokenizer()._encoder._bare
    bare.add_tokens(list(FIXED))

    def tokenizer(by_spaces: bool) -> Tokenizer:
        encoder = BpeEncoder(bare, by_spaces=by_spaces, fixed=FIXED)
        return Tokenizer(Vocabulary(encoder, [b""] * 1000, CONTROL, None, None))

    return tokenizer(True), tokenizer(False)


FAST, SLOW = both()


def ids(found: Sequence[Sequence[bytes]]) -> list[list[list[int]]]:
    return [[np.frombuffer(span, np.int32).tolist() for span in spans] for spans in found]


@given(st.lists(st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=4))
@example([["hello <l>", "<r>  hello"], ["a \xa0 b <|a|>x", "<é>"], [f"<{GUARD}|a|>", f"{GUARD}"], ["", " "]])
@example([["\u2003<l>"], ["<r>\u3000"], ["a\u2029<é>\x1fb"]])
@settings(max_examples=300, deadline=None)
def test_the_fast_way_and_the_slow_way_give_the_same_ids(documents: list[list[str]]) -> None:
    for _ in range(2):  # the second time, all is known
        assert ids(FAST.encode_spans(documents, guard=GUARD)) == ids(SLOW.encode_spans(documents, guard=GUARD))
    flat = [text for document in documents for text in document]
    assert FAST.encode_batch(flat) == SLOW.encode_batch(flat)
    assert FAST.encode_batch(flat, parse_special=True) == SLOW.encode_batch(flat, parse_special=True)


@given(st.text(st.sampled_from(" ab\n" + SPACES) | st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=500, deadline=None)
def test_cuts_are_at_single_spaces_without_whitespace_beside_them(text: str) -> None:
    assert _core.split_at_spaces(text) == re.split(r"(?<=\S) (?=\S)", text)


def test_every_whitespace_character_is_known() -> None:
    for space in SPACES:
        for text in (f"a{space} b", f"a {space}b", f"{space} b", f"a {space}"):
            assert _core.split_at_spaces(text) == [text], hex(ord(space))
    for other in "\u180e\u200b\u2060\ufeff":
        assert _core.split_at_spaces(f"a{other} b") == [f"a{other}", "b"]


def test_each_piece_is_encoded_once_and_long_ones_are_forgotten() -> None:
    asked: list[list[str]] = []

    class Encoder:
        def encode_batch_fast(self, pieces: list[str], add_special_tokens: bool) -> list[object]:
            asked.append(pieces)
            return [type("Encoding", (), {"ids": [len(piece)]}) for piece in pieces]

    words = WordSpans(Encoder(), ["fixed"], CONTROL)  # type: ignore[arg-type]
    long = "y" * 65
    assert ids([words.encode(["a b b", f"b {long}"], control=True)]) == [[[1, 2, 2], [1, 66]]]
    assert asked == [["a", "b", " b", f" {long}"]]
    assert ids([words.encode(["b b<|a|>b"], control=True)]) == [[[1, 2, 900, 1]]] and len(asked) == 1
    words.encode([f"a {long}", "is fixed"], control=False)
    assert asked[1:] == [["is fixed", f" {long}"]]
    again = pickle.loads(pickle.dumps(FAST))  # without what was learned
    assert again.encode("hello there") == FAST.encode("hello there")


def test_a_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        FAST.encode("\ud800")
