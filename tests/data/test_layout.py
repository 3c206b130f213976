"""Where packing cuts examples: what is said of each is what the packed batches hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localsft.batch import Example
from localsft.data.layout import Part, lay_out
from localsft.data.pack import pack_step

PREFIX = list(range(100, 120))


def example(ids: Sequence[int], targets: Sequence[int] = ()) -> Example:
    """An example whose last token is a target, and those at ``targets``."""
    weights = np.zeros(len(ids), np.float32)
    weights[[*targets, len(ids) - 1]] = 1
    return Example(np.array(ids, np.int32), weights)


def test_a_shared_prefix_is_a_part_of_its_own_and_the_last_target_is_in_none() -> None:
    examples = [example([*PREFIX, *range(k, k + 10)], targets=[25]) for k in (0, 30, 60)]
    (pack,) = lay_out(examples, batch_size=8, tokens_per_pack=100)
    assert (pack.step, pack.number, pack.tokens, pack.alone) == (1, 1, 20 + 3 * 9, 3 * 29)
    assert sorted(place.example for place in pack.places) == [0, 1, 2]
    assert pack.parents.count(-1) == 1 and len(pack.parents) == 4
    for place in pack.places:
        shared, own = place.parts
        assert (shared.begin, shared.end, shared.examples) == (0, 20, 3)
        assert (own.begin, own.end, own.examples) == (20, 29, 1)
        assert pack.parents[own.segment] == shared.segment
        assert place.cuts == (20,) and place.shared == 20


def test_an_example_that_is_the_beginning_of_another_ends_within_its_segment() -> None:
    long, short = example([*PREFIX, 1, 2, 3]), example(PREFIX[:10])
    (pack,) = lay_out([long, short], batch_size=2, tokens_per_pack=100)
    first, second = sorted(pack.places, key=lambda place: place.example)
    assert first.parts == (Part(0, 0, 9, 2), Part(0, 9, 22, 1)) and first.sizes == {0: 22}
    assert second.parts == (Part(0, 0, 9, 2),) and second.cuts == () and second.shared == 9
    assert pack.tokens == 22 and pack.alone == 31


@pytest.mark.parametrize(("pack", "share"), [(False, True), (True, False)])
def test_without_packing_or_sharing_nothing_is_cut(pack: bool, share: bool) -> None:
    examples = [example([*PREFIX, k, k]) for k in range(3)]
    packs = lay_out(examples, batch_size=8, tokens_per_pack=100, pack=pack, share_prefix=share)
    assert len(packs) == (1 if pack else 3)
    assert all(place.cuts == () and place.shared == 0 for pack in packs for place in pack.places)


def test_steps_take_the_examples_in_order_and_one_without_a_target_is_nowhere() -> None:
    nothing = Example(np.array([1, 2], np.int32), np.zeros(2, np.float32))
    packs = lay_out([example([1, 2]), nothing, example([3, 4])], batch_size=2, tokens_per_pack=10)
    assert [(pack.step, [place.example for place in pack.places]) for pack in packs] == [(1, [0]), (2, [2])]


@given(st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=40), min_size=1, max_size=12), st.integers(1, 120))
def test_parts_are_the_tokens_of_the_batches(sequences: list[list[int]], tokens_per_pack: int) -> None:
    examples = [example(ids) for ids in sequences]
    packs = lay_out(examples, batch_size=5, tokens_per_pack=tokens_per_pack)
    batches = [batch for first in range(0, len(examples), 5) for batch in pack_step(examples[first : first + 5], tokens_per_pack)]
    assert [pack.tokens for pack in packs] == [batch.n_tokens for batch in batches]
    assert sorted(place.example for pack in packs for place in pack.places) == list(range(len(examples)))
    for pack, batch in zip(packs, batches, strict=True):
        seen = np.zeros(pack.tokens, int)
        for place in pack.places:
            assert place.parts[0].begin == 0 and place.parts[-1].end == len(sequences[place.example]) - 1
            for part, after in zip(place.parts, place.parts[1:], strict=False):
                assert part.end == after.begin and part.examples >= after.examples
            for part in place.parts:
                rows = np.flatnonzero(
                    (np.searchsorted(batch.segment_starts, np.arange(pack.tokens), "right") - 1 == part.segment)
                    & (part.begin <= batch.positions)
                    & (batch.positions < part.end)
                )
                assert batch.tokens[rows].tolist() == sequences[place.example][part.begin : part.end]
                seen[rows] += 1
        for place in pack.places:
            for part in place.parts:
                start = batch.segment_starts[part.segment]
                offset = start - batch.positions[start]
                assert (seen[part.begin + offset : part.end + offset] == part.examples).all()
