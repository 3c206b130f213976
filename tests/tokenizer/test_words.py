"""The word splitter cuts exactly as the tokenizers package does, for every pre-tokenizer that GGUF names."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_vocab import tiny_tokenizer
from tokenizers import pre_tokenizers

from localsft.tokenizer.pretokenizers import PreTokenizer, find_pretokenizer
from localsft.tokenizer.words import _ALPHABET, translate, word_splitter

NAMES = (
    "gpt-2", "smollm", "llama-bpe", "minicpm5", "qwen2", "qwen35", "tekken", "gpt-4o", "deepseek-v3", "deepseek-coder", "falcon",
    "bloom", "viking", "default",
)  # fmt: skip
# Characters at the borders of the classes come up more often than by chance.
texts = st.text(st.sampled_from(_ALPHABET) | st.sampled_from(" \n\r\t'\x1c\x1f\x0b\xa09aAsSéЯ.½²ª–$_"), max_size=30)


@pytest.mark.parametrize("name", NAMES)
@given(text=texts)
@example(text="I'LL say   \n\n it's 12345.67 ¿ñ\x1c ½ a\xa0b")
@example(text="don\u2019t  5  x")
@settings(max_examples=60, deadline=None)
def test_as_tokenizers_cuts(name: str, text: str) -> None:
    pretokenizer: PreTokenizer = find_pretokenizer(name)
    splitter = word_splitter(pretokenizer.patterns)
    assert splitter is not None
    reference = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in pretokenizer.patterns])
    words = splitter.split(text)
    assert words is None or words == [word for word, _ in reference.pre_tokenize_str(text)]


def test_other_alphabets_are_left_alone() -> None:
    splitter = word_splitter(find_pretokenizer("gpt-2").patterns)
    assert splitter is not None
    assert splitter.split("日本") is None and splitter.split("ª") is None
    assert splitter.split("e\u0301") is None
    assert splitter.split("Größe €5") == ["Größe", " €", "5"]
    assert splitter.split("") == []


@pytest.mark.parametrize(
    "pattern", [r"\d+", r"\w", r"\b", r"a++", r"a?+", "[[a-z]]", r"\s+$", r"(?<=a)b", r"(?>a)", "[a", r"\p{Han}", ".", "(a)"]
)
def test_what_is_not_understood_is_not_translated(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        translate(pattern)
    assert word_splitter([pattern]) is None


def test_words_and_whole_texts_get_the_same_ids() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["hello world  x", "日本 hello", "a<think>hello", "hello  \n\n5 world", "€ – ñ"]
    assert [tokenizer.encode(text) for text in texts] == tokenizer.encode_batch(texts)
    words = tiny_tokenizer(**{"tokenizer.ggml.pre": "deepseek-llm"})  # has no splitter
    assert words.decode(words.encode(texts[0])) == texts[0]
