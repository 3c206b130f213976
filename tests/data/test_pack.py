"""Packing is lossless: what the batches ask for is what the examples ask for, prefix by prefix."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localsft import _core
from localsft.batch import Example, PackedBatch
from localsft.data.pack import ENOUGH_TOKENS, MIN_SHARED, epoch_order, pack_owned, pack_step

Wanted = dict[tuple[tuple[int, ...], int], float]  # (tokens before it, target token) -> summed weight


def example(ids: Sequence[int], weights: Sequence[float]) -> Example:
    return Example(np.array(ids, np.int32), np.array(weights, np.float32))


def wanted(examples: Sequence[Example]) -> Wanted:
    sums: Wanted = defaultdict(float)
    for each in examples:
        ids = each.token_ids.tolist()
        for i, weight in enumerate(each.target_weights.tolist()):
            if weight:
                sums[tuple(ids[:i]), ids[i]] += weight
    return dict(sums)


def paths(batch: PackedBatch) -> list[tuple[int, ...]]:
    """The tokens that each row sees, itself included: the ancestors' and its own segment's up to it."""
    seen: list[tuple[int, ...]] = []
    for s, parent in enumerate(batch.segment_parents.tolist()):
        assert -1 <= parent < s
        path = seen[batch.segment_starts[parent + 1] - 1] if parent >= 0 else ()
        for token in batch.tokens[batch.segment_starts[s] : batch.segment_starts[s + 1]].tolist():
            path = (*path, token)
            seen.append(path)
    return seen


def asked(batch: PackedBatch) -> Wanted:
    seen = paths(batch)
    targets = zip(batch.target_rows.tolist(), batch.target_ids.tolist(), batch.target_weights.tolist(), strict=True)
    sums: Wanted = defaultdict(float)
    for row, token, weight in targets:
        sums[seen[row], token] += weight
    return dict(sums)


def check_shape(batch: PackedBatch) -> None:
    assert [a.dtype.name for a in (batch.tokens, batch.positions, batch.segment_starts, batch.segment_parents)] == ["int32"] * 4
    assert [a.dtype.name for a in (batch.target_rows, batch.target_ids, batch.target_weights)] == ["int32", "int32", "float32"]
    assert batch.segment_starts[0] == 0 and batch.segment_starts[-1] == batch.n_tokens
    assert (np.diff(batch.segment_starts) > 0).all()
    assert (np.diff(batch.target_rows) >= 0).all()
    assert (batch.target_weights > 0).all()
    assert len(set(zip(batch.target_rows.tolist(), batch.target_ids.tolist(), strict=True))) == batch.n_targets
    assert [len(path) - 1 for path in paths(batch)] == batch.positions.tolist()
    leaves = set(range(len(batch.segment_parents))) - set(batch.segment_parents.tolist())
    last_rows = {int(batch.segment_starts[s + 1]) - 1 for s in leaves}
    assert last_rows <= set(batch.target_rows.tolist()), "tokens that influence nothing are computed"


@st.composite
def example_sets(draw: st.DrawFn) -> list[Example]:
    """Examples that branch off one another at any place: few token ids, prefixes of earlier ones, repetitions."""
    examples: list[Example] = []
    for _ in range(draw(st.integers(0, 8))):
        start: list[int] = []
        if examples and draw(st.booleans()):
            source = draw(st.sampled_from(examples)).token_ids.tolist()
            start = source[: draw(st.integers(0, len(source)))]
        ids = start + draw(st.lists(st.integers(0, 2), min_size=0 if start else 1, max_size=20))
        weights = draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.5]), min_size=len(ids), max_size=len(ids)))
        examples.append(example(ids, [0.0, *weights[1:]]))
    return examples


def total(parts: Sequence[Wanted]) -> Wanted:
    sums: Wanted = defaultdict(float)
    for part in parts:
        for key, weight in part.items():
            sums[key] += weight
    return dict(sums)


@given(example_sets(), st.integers(1, 70), st.integers(1, 70), st.booleans(), st.booleans())
def test_batches_ask_for_exactly_what_the_examples_ask_for(
    examples: list[Example], capacity: int, enough: int, pack: bool, share: bool
) -> None:
    with patch("localsft.data.pack.ENOUGH_TOKENS", enough):
        batches = pack_step(examples, capacity, pack, share)
    for batch in batches:
        check_shape(batch)
    assert total([asked(batch) for batch in batches]) == wanted(examples)


@given(example_sets(), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_limits_hold_but_for_a_single_longer_example(examples: list[Example], capacity: int, enough: int, share: bool) -> None:
    needed = [int(np.flatnonzero(e.target_weights)[-1]) for e in examples if e.target_weights.any()]
    with patch("localsft.data.pack.ENOUGH_TOKENS", enough):
        sizes = [batch.n_tokens for batch in pack_step(examples, capacity, share_prefix=share)]
    for size in sizes:
        assert size <= capacity or size in needed
    if share:
        assert sum(sizes) <= sum(needed)
    else:
        assert sum(sizes) == sum(needed)


@given(example_sets(), st.integers(1, 70), st.booleans(), st.booleans())
def test_owners_give_each_example_its_own_targets(examples: list[Example], capacity: int, pack: bool, share: bool) -> None:
    parts: list[Wanted] = [{} for _ in examples]
    for owned in pack_owned(examples, capacity, pack, share):
        seen = paths(owned.batch)
        for owner, target, weight in zip(owned.owners.tolist(), owned.targets.tolist(), owned.weights.tolist(), strict=True):
            parts[owner][seen[owned.batch.target_rows[target]], int(owned.batch.target_ids[target])] = weight
    assert parts == [wanted([each]) for each in examples]


@given(example_sets(), st.randoms(use_true_random=False))
def test_the_order_of_the_examples_does_not_matter(examples: list[Example], random: object) -> None:
    shuffled = list(examples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Counter(map(describe, pack_step(examples, 10**6))) == Counter(map(describe, pack_step(shuffled, 10**6)))


def describe(batch: PackedBatch) -> tuple[bytes, ...]:
    return (batch.tokens.tobytes(), batch.segment_starts.tobytes(), batch.segment_parents.tobytes(), batch.target_weights.tobytes())


SYSTEM = list(range(100, 100 + 3 * MIN_SHARED))


def conversation(*ids: int) -> Example:
    return example([*SYSTEM, *ids, 1], [0.0] * len(SYSTEM) + [1.0] * (len(ids) + 1))


def test_a_shared_prefix_is_computed_once_and_predicts_each_branch() -> None:
    (batch,) = pack_step([conversation(5, 6, 7), conversation(8, 9)], 1000)
    assert batch.segment_parents.tolist() == [-1, 0, 0]
    assert batch.n_tokens == len(SYSTEM) + 3 + 2
    first = batch.target_rows == len(SYSTEM) - 1
    assert batch.target_ids[first].tolist() == [5, 8]
    assert batch.positions[batch.segment_starts[2]] == len(SYSTEM)


def test_identical_examples_are_one_with_the_summed_weight() -> None:
    (batch,) = pack_step([conversation(5, 6)] * 3, 1000)
    assert batch.n_tokens == len(SYSTEM) + 2
    assert batch.target_weights.tolist() == [3.0, 3.0, 3.0]


def test_a_prefix_of_another_costs_nothing() -> None:
    (batch,) = pack_step([conversation(5), conversation(5, 6, 7, 8)], 1000)
    assert batch.segment_parents.tolist() == [-1]
    assert batch.n_tokens == len(SYSTEM) + 4
    assert batch.target_weights.tolist() == [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # 5 twice; then the end of the one and the 6 of the other


def test_tiny_prefixes_do_not_fragment() -> None:
    def branch(last: int) -> Example:
        return example([*range(MIN_SHARED - 1), last, last, 1], [0.0] * (MIN_SHARED + 1) + [1.0])

    (batch,) = pack_step([branch(50), branch(51)], 1000)
    assert batch.segment_parents.tolist() == [-1, -1]
    (longer,) = pack_step([example([90, *e.token_ids], [0.0, *e.target_weights]) for e in (branch(50), branch(51))], 1000)
    assert longer.segment_parents.tolist() == [-1, 0, 0]


def test_a_tree_above_the_limit_repeats_its_prefix() -> None:
    examples = [conversation(*[10 + k] * 10) for k in range(6)]
    batches = pack_step(examples, len(SYSTEM) + 2 * 11)
    assert [batch.n_tokens for batch in batches] == [len(SYSTEM) + 2 * 10] * 3
    assert [batch.segment_parents.tolist() for batch in batches] == [[-1, 0, 0]] * 3


def answered(*ids: int) -> Example:
    return example(ids, [0.0] * (len(ids) - 1) + [1.0])


@pytest.mark.parametrize("share", [True, False])
def test_batches_are_no_larger_than_enough_where_that_costs_nothing(share: bool) -> None:
    examples = [answered(*[k] * (ENOUGH_TOKENS // 2 + 1)) for k in range(6)]
    assert [batch.n_tokens for batch in pack_step(examples, 10**6, share_prefix=share)] == [ENOUGH_TOKENS] * 3
    long = [answered(*[k] * (2 * ENOUGH_TOKENS)) for k in range(2)]  # one that is longer still stands alone, within the limit
    assert [batch.n_tokens for batch in pack_step(long, 4 * ENOUGH_TOKENS, share_prefix=share)] == [2 * ENOUGH_TOKENS - 1] * 2


def test_a_long_shared_prefix_is_not_repeated_for_smaller_batches() -> None:
    prefix = [7] * (ENOUGH_TOKENS * 3 // 4)
    examples = [answered(*prefix, *[10 + k] * 100) for k in range(8)]
    (batch,) = pack_step(examples, 2 * ENOUGH_TOKENS)
    assert batch.n_tokens == len(prefix) + 8 * 99
    assert len(pack_step(examples, len(prefix) + 2 * 99)) == 4  # the limit itself is kept whatever it costs


def test_the_limit_holds_when_cutting_a_tree_moves_the_places_worth_sharing() -> None:
    def sequence(*ids: int) -> Example:
        return example([*ids, 1], [0.0] * len(ids) + [1.0])

    a = tuple(range(10, 10 + MIN_SHARED))  # shared by all; then in two tiny steps to four leaves
    b = tuple(range(30, 30 + MIN_SHARED - 2))
    c = tuple(range(50, 50 + MIN_SHARED - 2))
    examples = [sequence(*a, *[90] * 12), sequence(*a, *b, 80)] + [sequence(*a, *b, *c, leaf) for leaf in (81, 82, 83, 84)]
    limit = len(a) + (len(b) + 1) + (len(b) + len(c) + 4)
    sizes = [batch.n_tokens for batch in pack_step(examples, limit)]
    assert len(sizes) == 2
    assert max(sizes) <= limit


def test_what_follows_the_last_target_is_not_computed() -> None:
    (batch,) = pack_step([example([1, 2, 3, 4, 5], [0, 0, 1, 0, 0])], 1000)
    assert batch.tokens.tolist() == [1, 2]


def test_nothing_supervised_gives_no_batch() -> None:
    assert pack_step([], 10) == []
    assert pack_step([example([1, 2], [0, 0])], 10) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (example([1, 2], [1, 1]), "the first token can't be a target"),
        (example([1, 2], [0, -1]), "must be finite and not negative"),
        (example([1, 2], [0, float("nan")]), "must be finite and not negative"),
        (example([1, 2], [0]), "must be \\(n,\\) both"),
    ],
)
def test_bad_examples_are_refused(bad: Example, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_step([bad], 10)


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """Loads of the bins, by the definition, in O(n²)."""
    loads: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [k for k, load in enumerate(loads) if load + length <= capacity]
        if fitting:
            loads[max(fitting, key=lambda k: loads[k])] += length
        else:
            loads.append(length)
    return sorted(loads)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 250))
def test_bins_are_those_of_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    bins = _core.pack_lengths(np.array(lengths, np.int64), capacity)
    loads = np.bincount(bins, lengths).astype(int).tolist() if lengths else []
    assert sorted(loads) == best_fit_decreasing(lengths, capacity)


def test_bins_are_full() -> None:
    lengths = np.random.default_rng(0).integers(1, 2049, 20_000)
    bins = _core.pack_lengths(lengths, 2048)
    assert np.bincount(bins, lengths).max() <= 2048
    assert lengths.sum() / (2048 * (bins.max() + 1)) > 0.99


@pytest.mark.parametrize(
    ("lengths", "capacity"), [([0], 5), ([-1], 5), ([1 << 31], 5), ([1], 0), ([[1]], 5)], ids=["0", "negative", "huge", "capacity", "2-d"]
)
def test_bad_lengths_are_refused(lengths: list[int], capacity: int) -> None:
    with pytest.raises(ValueError, match="pack_lengths: "):
        _core.pack_lengths(np.array(lengths, np.int64), capacity)


@pytest.mark.parametrize("starts", [[0, 2, 2, 3], [0, 2], [1, 3], [0, 4], []])
def test_bad_sequences_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="prefix_forest: "):
        _core.prefix_forest(np.arange(3, dtype=np.int32), np.array(starts, np.int64), 1)


@pytest.mark.parametrize("min_shared", [1, 3])
def test_rows_hold_each_sequence_once(min_shared: int) -> None:
    """Token t of a sequence lies in row rows[t]; the same row stands for the same path in every sequence, and no row is unused."""
    rng = np.random.default_rng(min_shared)
    sequences = [rng.integers(0, 2, size) for size in rng.integers(1, 12, 40)]
    starts = np.cumsum([0, *(s.size for s in sequences)])
    forest = _core.prefix_forest(np.concatenate(sequences).astype(np.int32), starts, min_shared)
    rows = forest.rows(starts)
    assert sorted(set(rows.tolist())) == list(range(int((forest.ends - forest.begins).sum())))
    paths: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        for t, row in enumerate(rows[starts[i] : starts[i + 1]].tolist()):
            path = sequence[: t + 1].tolist()
            assert paths.setdefault(row, path) == path
    if min_shared == 1:
        assert len(paths) == len({tuple(path) for path in paths.values()})


@pytest.mark.parametrize("starts", [[0, 3], [0, 3, 9], [0, 0, 5], [1, 3, 6], [0, 5, 3], [0, 3, 5, 7]])
def test_rows_of_other_sequences_are_refused(starts: list[int]) -> None:
    forest = _core.prefix_forest(np.array([1, 2, 3, 1, 2], np.int32), np.array([0, 3, 5]), 1)
    assert forest.rows(np.array([0, 3, 5])).tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match=r"Forest\.rows: "):
        forest.rows(np.array(starts, np.int64))


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_only() -> None:
    order = epoch_order(10, seed=1, epoch=0).tolist()
    assert order == [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]  # fixed for all time: a continued run relies on it
    assert sorted(epoch_order(1000, seed=1, epoch=0).tolist()) == list(range(1000))
    assert epoch_order(10, seed=2, epoch=0).tolist() != order
    assert epoch_order(10, seed=1, epoch=1).tolist() != order
