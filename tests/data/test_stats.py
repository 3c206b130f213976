"""Figures of a dataset: they add up, and those of packing are the packer's."""

from __future__ import annotations

import numpy as np
import pytest

from localsft.batch import Example
from localsft.data.conversation import Conversation, Message
from localsft.data.pack import epoch_order, pack_step
from localsft.data.stats import BARS, Lengths, histogram, packing_of, turns_of


def example(ids: list[int], targets: slice) -> Example:
    weights = np.zeros(len(ids), np.float32)
    weights[targets] = 1
    return Example(np.array(ids, np.int32), weights)


def test_percentiles_are_lengths_that_there_are() -> None:
    lengths = Lengths.of(np.arange(1, 101))
    assert lengths.percentiles == {"min": 1, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100}
    assert (lengths.total, lengths.mean) == (5050, 50.5)
    assert Lengths.of(np.array([7])).percentiles["p99"] == 7


@pytest.mark.parametrize(
    "counts", [np.array([3]), np.arange(1000), np.array([5] * 99 + [100_000]), np.random.default_rng(0).lognormal(5, 1, 5000).astype(int)]
)
def test_every_length_is_in_one_bar(counts: np.ndarray) -> None:
    bars = histogram(counts)
    assert len(bars) <= BARS
    assert [count for _, _, count in bars] == [int(((counts >= first) & (counts < below)).sum()) for first, below, _ in bars]
    assert sum(count for _, _, count in bars) == len(counts)
    assert bars[0][0] <= counts.min() and bars[-1][1] > counts.max()


def test_packing_counts_what_the_packer_makes() -> None:
    head = list(range(40))
    examples = [example([*head, *range(100 + 50 * i, 120 + 50 * i + 7 * i)], slice(45, 52)) for i in range(11)]
    packing = packing_of(examples, 256, 4)
    order = epoch_order(len(examples), 0, 0)
    steps = [[examples[i] for i in order[first : first + 4]] for first in range(0, 11, 4)]
    assert packing.examples == 11 and packing.steps == 3
    assert packing.shared == sum(batch.n_tokens for step in steps for batch in pack_step(step, 256))
    assert packing.packed == sum(batch.n_tokens for step in steps for batch in pack_step(step, 256, share_prefix=False)) == 11 * 51
    assert packing.packs == sum(len(pack_step(step, 256)) for step in steps)
    assert packing.shared == 11 * 51 - (11 - packing.packs) * 40
    assert packing.padded == sum(len(step) * max(len(one.token_ids) for one in step) for step in steps)
    assert packing.largest == max(batch.n_tokens for step in steps for batch in pack_step(step, 256))


def test_rows_are_counted_by_what_they_are_made_of() -> None:
    call = ({"type": "function", "function": {"name": "look", "arguments": {}}},)
    asked = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"))
    rows = [
        Conversation(asked, tags=("x", "y")),
        Conversation((*asked, Message("user", "c"), Message("assistant", "d"))),
        Conversation((Message("user", "a"), Message("assistant", None, tool_calls=call)), tools=({"type": "function"},), tags=("x",)),
    ]
    turns = turns_of(rows)
    assert turns.rows == 3 and turns.answers == {1: 2, 2: 1}
    assert turns.roles == {"system": 2, "user": 4, "assistant": 4}
    assert (turns.system_prompts, turns.rows_with_system, turns.rows_with_tools, turns.rows_with_calls) == (1, 2, 1, 1)
    assert turns.tags == {"x": 2, "y": 1}
