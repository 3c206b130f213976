"""Near duplicates: what is reported is so, and little is missed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from localsft import _core
from localsft.data.near import PieceFile, all_pieces, common_pieces, near_earlier, near_groups, near_pairs, pieces_of

WORDS = ("invoice", "refund", "card", "charge", "account", "plan", "month", "renew", "cancel", "credit", "receipt", "address", "seat")


def sentence(source: random.Random, words: int = 40) -> list[str]:
    return [source.choice(WORDS) + str(source.randrange(100)) for _ in range(words)]


def sets(texts: list[str]) -> list[set[str]]:
    return [{text[i : i + 5] for i in range(max(1, len(text) - 4))} if text else set() for text in texts]


def test_pieces_are_the_sets_of_five_characters() -> None:
    texts = ["", "ab", "abcde", "abcdefgh", "héllo wörld 日本語を ok", "aaaaaaaaaa", "no", "x" * 300 + "end"]
    pieces = pieces_of(texts)
    for i, expected in enumerate(sets(texts)):
        own = pieces.members[pieces.starts[i] : pieces.starts[i + 1]]
        assert len(own) == len(expected)
        assert (np.diff(own.astype(np.int64)) > 0).all()
    one, other = np.meshgrid(np.arange(len(texts)), np.arange(len(texts)))
    expected_values = [len(a & b) / len(a | b) if a | b else 0.0 for b in sets(texts) for a in sets(texts)]
    assert pieces.similarity(one.ravel(), other.ravel()) == pytest.approx(expected_values)


def test_case_punctuation_and_spaces_do_not_count() -> None:
    pieces = pieces_of(["Straße, 12!  nord", "STRASSE 12\nNord.", "..."])
    assert pieces.similarity(np.array([0]), np.array([1])) == [1.0]
    assert np.diff(pieces.starts)[2] == 0


def test_what_does_not_fit_together_is_refused() -> None:
    codes, starts = np.arange(5, dtype=np.uint32), np.array([0, 2, 5])
    for bad in (np.array([0, 6]), np.array([1, 5]), np.array([0, 4, 2, 5]), np.zeros(0, np.int64)):
        with pytest.raises(ValueError, match="starts"):
            _core.text_pieces(codes, bad, 5)
    with pytest.raises(ValueError, match="length"):
        _core.text_pieces(codes, starts, 0)
    with pytest.raises(ValueError, match="not there"):
        _core.jaccard(codes, starts, np.array([0]), np.array([2]))


def test_an_edited_text_is_found_and_an_unrelated_one_is_not() -> None:
    source = random.Random(1)
    texts = [sentence(source) for _ in range(300)]
    edited = [" ".join([*words[:20], "another", *words[21:]]).upper() + "!" for words in texts]
    pieces = pieces_of([*map(" ".join, texts), *edited])
    later, early, values = near_pairs(pieces, 300, 0.8)
    assert (later - 300).tolist() == early.tolist() == list(range(300))
    assert (values >= 0.8).all() and (values < 1).all()
    found, similarity = near_earlier(pieces, 0.8)
    assert found.tolist() == [-1] * 300 + list(range(300))
    assert similarity[300:] == pytest.approx(values)


def test_pairs_come_with_the_most_similar_first() -> None:
    source = random.Random(3)
    words = sentence(source)
    far, close = [*words[:30], *sentence(source, 6), *words[36:]], [*words[:39], "x"]
    later, early, values = near_pairs(pieces_of([" ".join(text) for text in (far, close, sentence(source), words)]), 3, 0.5)
    assert (later.tolist(), early.tolist()) == ([3, 3], [1, 0])
    assert values[0] > values[1] >= 0.5


def test_a_bucket_full_of_equal_texts_takes_no_pair_of_all() -> None:
    texts = ["the very same words again and again"] * 3000 + ["something else altogether, said only once"]
    found, _ = near_earlier(pieces_of(texts), 0.9)
    assert found[0] == -1 and found[-1] == -1 and (found[1:-1] >= 0).all()
    assert len(set(near_groups(pieces_of(texts), 0.9))) == 2


def test_groups_are_linked_through_others_and_named_by_their_first() -> None:
    source = random.Random(2)
    one = sentence(source)
    other = [*one[:3], "x", *one[4:]]
    third = [*other[:30], "y", *other[31:]]
    texts = [" ".join(words) for words in (sentence(source), one, third, sentence(source), other, one)]
    assert near_groups(pieces_of(texts), 0.85) == [0, 1, 1, 3, 1, 1]


def test_pieces_that_many_texts_have_do_not_count() -> None:
    texts = [f"What is the code of the job title {word}" for word in WORDS]
    pieces = pieces_of([*texts, "What is the code of the job title plumber", texts[3]])
    ignored = common_pieces(pieces)
    assert set(pieces_of(["job title"]).members) <= set(ignored)
    assert not any(set(pieces_of([word]).members) & set(ignored) for word in WORDS)
    assert near_earlier(pieces, 0.6)[0].tolist() != [-1] * 15
    assert near_earlier(pieces.ignoring(ignored), 0.6)[0].tolist() == [-1] * 14 + [3]


def test_a_file_of_pieces_has_what_went_in() -> None:
    source = random.Random(4)
    texts = [" ".join(sentence(source, source.randrange(30))) for _ in range(9000)]
    with PieceFile() as file:
        kept = all_pieces(texts, file)
        straight = pieces_of(texts)
        assert (kept.members == straight.members).all() and (kept.starts == straight.starts).all()
    with PieceFile() as file:
        assert len(all_pieces([], file)) == 0
        assert near_earlier(file.pieces())[0].tolist() == near_groups(file.pieces()) == []
