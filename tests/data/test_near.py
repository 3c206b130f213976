"""Near duplicates: what is reported is so, and little is missed."""

from __future__ import annotations

import random

import pytest

from localsft.data.near import NearIndex, common_pieces, near_groups

WORDS = ("invoice", "refund", "card", "charge", "account", "plan", "month", "renew", "cancel", "credit", "receipt", "address", "seat")


def sentence(source: random.Random, words: int = 40) -> list[str]:
    return [source.choice(WORDS) + str(source.randrange(100)) for _ in range(words)]


def test_an_edited_text_is_found_and_an_unrelated_one_is_not() -> None:
    source = random.Random(1)
    texts = [sentence(source) for _ in range(300)]
    index = NearIndex(0.8)
    for key, words in enumerate(texts):
        index.add(key, " ".join(words))
    for key, words in enumerate(texts):
        edited = [*words[:20], "another", *words[21:]]
        assert [found for found, _ in index.near(" ".join(edited).upper() + "!")] == [key]


def test_similarity_is_the_jaccard_similarity_of_pieces() -> None:
    index = NearIndex(0.1)
    index.add(7, "abcdefgh")  # abcde bcdef cdefg defgh
    assert index.near("Abcdefg.") == [(7, pytest.approx(3 / 4))]
    assert index.near("abcdefgh") == [(7, 1.0)]
    assert index.near("...") == []


def test_groups_are_linked_through_others_and_named_by_their_first() -> None:
    source = random.Random(2)
    one = sentence(source)
    other = [*one[:3], "x", *one[4:]]
    third = [*other[:30], "y", *other[31:]]
    texts = [" ".join(words) for words in (sentence(source), one, third, sentence(source), other, one)]
    assert near_groups(texts, 0.85) == [0, 1, 1, 3, 1, 1]


def test_pieces_that_many_texts_have_do_not_count() -> None:
    texts = [f"What is the code of the job title {word}" for word in WORDS]
    ignored = common_pieces(texts)
    assert "s the" in ignored and not any(word[:5] in ignored for word in WORDS)
    index = NearIndex(0.8, ignored)
    for key, text in enumerate(texts):
        index.add(key, text)
    assert index.near("What is the code of the job title plumber") == []
    assert [key for key, _ in index.near(texts[3])] == [3]
