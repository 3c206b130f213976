"""Cutting a text at single spaces never changes its words, for every pre-tokenizer that GGUF names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from localsft._core import split_at_spaces
from localsft.tokenizer import load_tokenizer
from localsft.tokenizer.pretokenizers import find_pretokenizer
from tests.tiny_vocab import tiny_tokenizer

NAMES = (
    "gpt-2", "smollm", "llama-bpe", "minicpm5", "qwen2", "qwen35", "tekken", "gpt-4o", "deepseek-v3", "falcon", "default",
)  # fmt: skip
# Characters at the borders of the classes come up more often than by chance.
texts = st.text(
    st.sampled_from("  \n\r\t'\x08\x1c\x1f\x0b\xa0\u200b\u2003\u0301,.9½aAsSéЯ日ا$€_") | st.characters(exclude_categories=["Cs"]),
    max_size=30,
)


@pytest.mark.parametrize("name", NAMES)
@given(text=texts)
@example(text="I'LL say   \n\n it's 12345.67 ¿ñ\x1c ½ a\xa0b")
@example(text="don\u2019t  5  x 5 . \u0301")
@settings(max_examples=100, deadline=None)
def test_pieces_have_the_words_of_the_text(name: str, text: str) -> None:
    patterns = find_pretokenizer(name).patterns
    assert find_pretokenizer(name).by_spaces
    reference = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns])

    def words(text: str) -> list[str]:
        return [word for word, _ in reference.pre_tokenize_str(text)]

    head, *tails = split_at_spaces(text)
    assert " ".join([head, *tails]) == text
    assert words(head) + [word for tail in tails for word in words(f" {tail}")] == words(text)


@pytest.mark.parametrize(("name", "text"), [("deepseek-llm", "€ 5"), ("deepseek-coder", "€ 5"), ("bloom", "! ."), ("viking", "! .")])
def test_spaces_inside_of_words_are_not_cut(name: str, text: str) -> None:
    pretokenizer = find_pretokenizer(name)
    words = [text]
    for pattern in pretokenizer.patterns:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        words = [word for text in words for word, _ in split.pre_tokenize_str(text)]
    assert any(" " in word.strip() or word.endswith(" ") for word in words) and not pretokenizer.by_spaces


def test_pieces_and_whole_texts_get_the_same_ids() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["hello world  x", "日本 hello", "a <think> hello", "hello  \n\n5 world", "€ – ñ", "", " ", "x" * 100 + " hello"]
    assert [tokenizer.encode(text) for text in texts] == tokenizer.encode_batch(texts) == [tiny_tokenizer().encode(text) for text in texts]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@pytest.mark.parametrize(
    ("changes", "cuts"),
    [
        ({}, True),
        ({"normalizer": {"type": "NFC"}}, True),
        ({"normalizer": {"type": "Lowercase"}}, False),
        ({"pre_tokenizer": None}, False),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}}, False),
        ({"pre_tokenizer": {"type": "Whitespace"}}, False),
        ({"pre_tokenizer": {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": r"\p{N}+"}}}, False),
    ],
)
def test_only_known_pre_tokenizers_are_cut(tmp_path: Path, changes: dict, cuts: bool) -> None:
    from tests.tokenizer.test_tokenizer import tokenizer_json

    folder = tokenizer_json(tmp_path / "model", **changes)
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert load_tokenizer(folder)._encoder._by_spaces is cuts
