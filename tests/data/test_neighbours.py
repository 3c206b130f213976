"""Neighbours of prompts: the index gives what plain cosines give, and groups are those of the whole graph, in any order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localsft import _core
from localsft.data.conversation import Conversation, Message
from localsft.data.near import Pieces
from localsft.data.neighbours import LEAST, MOST, Neighbours, prompt_pieces

TERMS = 16


def laid_out(sets: list[list[int]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Members spread over the 32 bits, so that the upper four are the term."""
    members = np.concatenate([np.zeros(0, np.uint32), *(np.array(sorted(one), np.uint32) for one in sets)])
    return members, np.cumsum([0, *map(len, sets)])


def cosines(sets: list[list[int]], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, n) in float64, 0 on the diagonal."""
    vectors = np.zeros((len(sets), TERMS))
    for row, members in enumerate(sets):
        vectors[row, [member >> 28 for member in members]] = 1
    vectors *= np.sqrt(weights.astype(np.float64))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    products = vectors @ vectors.T
    np.fill_diagonal(products, 0)
    return products


# Terms 0 to 15 in the upper four bits, two members of each: they count once.
members = st.lists(st.integers(0, 2 * TERMS - 1).map(lambda i: (i // 2 << 28) + i % 2), unique=True, max_size=12)


@given(st.lists(members, min_size=1, max_size=20), st.integers(0, 20), st.floats(0.05, 0.95))
def test_cosines_are_those_of_the_sets(sets: list[list[int]], base: int, threshold: float) -> None:
    base = min(base, len(sets))
    weights = np.linspace(0, 3, TERMS, dtype=np.float32)
    expected = cosines(sets, weights)[:, :base]
    queries = np.arange(len(sets))[::-1].copy()
    best, query, found = _core.nearest_sets(*laid_out(sets), base, weights, queries, threshold, 0)
    # Sums of up to 16 float32 weights, a product of two roots and a quotient: some 20 roundings of 2^-24.
    tolerance = 20 * 2.0**-24
    assert best == pytest.approx(expected[queries].max(axis=1, initial=0), abs=tolerance)
    pairs = set(zip(queries[query].tolist(), found.tolist(), strict=True))
    for one in range(len(sets)):
        for other in range(base):
            if abs(expected[one, other] - threshold) > tolerance:
                assert ((one, other) in pairs) == (expected[one, other] > threshold)


def test_the_search_goes_over_all_shards_and_stops_when_it_has_enough() -> None:
    sets = [[k % TERMS << 28] for k in range(5000)]
    weights = np.ones(TERMS, np.float32)
    _, query, found = _core.nearest_sets(*laid_out(sets), 5000, weights, np.array([3, 4999]), 0.5, 0)
    assert found[query == 0].tolist() == [k for k in range(3, 5000, TERMS) if k != 3]
    assert found[query == 1].tolist() == list(range(4999 % TERMS, 4999, TERMS))
    _, query, found = _core.nearest_sets(*laid_out(sets), 5000, weights, np.array([3, 4999]), 0.5, 200)
    assert np.bincount(query).tolist() == [200, 200] and found[query == 0].max() > 2048


def test_arguments_that_do_not_fit_are_refused() -> None:
    data, starts = laid_out([[1 << 28], [2 << 28]])
    weights, rows = np.ones(TERMS, np.float32), np.array([0])
    for message, changed in {
        "power of two": (data, starts, 2, np.ones(15, np.float32), rows, 0.5, 0),
        "base": (data, starts, 3, weights, rows, 0.5, 0),
        "not there": (data, starts, 2, weights, np.array([2]), 0.5, 0),
        "negative": (data, starts, 2, weights, rows, 0.5, -1),
        "from 0 to 2": (data, starts[:-1], 1, weights, rows, 0.5, 0),
    }.items():
        with pytest.raises(ValueError, match=message):
            _core.nearest_sets(*changed)


def test_groups_are_the_small_components_of_the_graph_in_any_order() -> None:
    source = np.random.default_rng(0)
    words = ["".join(source.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(120)]
    prompts = [" ".join(source.choice(words, 4)) for _ in range(200)]
    pieces = prompt_pieces([ask(prompt) for prompt in prompts])
    for few in (1, 2, 3, 5, 200):
        neighbours = Neighbours(pieces, len(prompts), np.arange(len(prompts)))
        groups = {frozenset(group.tolist()) for group in neighbours.groups(few)}
        assert groups == {group for group in components(neighbours, pieces, len(prompts)) if len(group) < few}
        order = source.permutation(len(prompts))
        mixed = Neighbours(prompt_pieces([ask(prompts[i]) for i in order]), len(prompts), np.arange(len(prompts)))
        assert mixed.limit == neighbours.limit
        assert {frozenset(order[group].tolist()) for group in mixed.groups(few)} == groups
    assert len(groups) > 3


def ask(prompt: str) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", "yes")))


def components(neighbours: Neighbours, pieces: Pieces, count: int) -> list[frozenset[int]]:
    """Of the graph of all near pairs, by following every edge."""
    _, query, near = neighbours._nearest(np.arange(count), neighbours.limit, 0)
    edges: dict[int, set[int]] = {i: set() for i in range(count)}
    for one, other in zip(query.tolist(), near.tolist(), strict=True):
        edges[one].add(other)
    left, found = set(range(count)), []
    while left:
        group, waiting = set[int](), [left.pop()]
        while waiting:
            one = waiting.pop()
            group.add(one)
            waiting += edges[one] - group
        left -= group
        found.append(frozenset(group))
    return found


def test_numbers_and_the_middle_of_a_long_prompt_do_not_count() -> None:
    def members_of(prompt: str) -> list[int]:
        return prompt_pieces([ask(prompt)]).members.tolist()

    assert members_of("order 48373 is late") == members_of("Order 7 is late!") != members_of("order x is late")
    assert members_of("a b " * 75 + "xyz" * 100 + "c d " * 75) == members_of("a b " * 75 + "uvw" * 200 + "c d " * 75)
    assert members_of("a b " * 75 + "xyz" * 100 + "c d " * 75) != members_of("a b " * 74 + "xyz" * 100 + "c d " * 75)


def test_near_is_what_98_of_100_prompts_reach_between_two_limits() -> None:
    alike = [ask(f"how do I return the {word} that I bought") for word in ("hat", "tie", "coat", "scarf", "glove") * 20]
    assert Neighbours(prompt_pieces(alike), 100, np.arange(100)).limit == MOST
    apart = [ask(letter * 9) for letter in "abcdefghijklmnopqrstuvwxyzäöüéèà"]
    assert Neighbours(prompt_pieces(apart), len(apart), np.arange(len(apart))).limit == LEAST
    source = np.random.default_rng(1)
    words = ["".join(source.choice(list("abcdefghijklmnopqrstuvwxyz"), 6)) for _ in range(150)]
    between = [ask(" ".join(source.choice(words, 8))) for _ in range(200)]
    neighbours = Neighbours(prompt_pieces(between), 200, np.arange(200))
    highest = neighbours.highest(np.arange(200))
    assert LEAST < neighbours.limit < MOST and (highest < neighbours.limit).sum() == 3  # the fourth is the 2 % quantile of 200
