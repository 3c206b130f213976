"""Rows and blocks hold every token where the segment tree says, and little else."""

from __future__ import annotations

import numpy as np
import pytest

from localsft.batch import PackedBatch
from localsft.engine.mlx.layout import Layout, round_up, shared_layout, single_layout, unshared_layout
from tests.engine.mlx.mlx_cases import packed, random_tree

TREES = {
    "flat": ([-1] * 9, [3, 17, 40, 2, 9, 9, 1, 64, 5]),
    "one prompt, several answers": ([-1, 0, 0, 0, 0, 0], [50, 7, 12, 3, 30, 8]),
    "deep": ([-1, 0, 1, 2, 3, 2, 1, 0, -1, 8], [5, 4, 3, 2, 6, 1, 9, 2, 11, 3]),
    "two systems": ([-1, -1, 0, 1, 0, 1, 0], [20, 33, 4, 5, 6, 7, 8]),
}


@pytest.fixture(params=TREES)
def batch(request: pytest.FixtureRequest) -> PackedBatch:
    return random_tree(50, *TREES[request.param])


def contexts(layout: Layout) -> list[tuple[list[tuple[int, int]], int, float]]:
    """For each real target: (token, position) of all that its row sees, in order of position; its id; its weight."""
    tokens = np.concatenate([block.tokens.ravel() for block in layout.blocks])
    where = [(block, b, i) for block in layout.blocks for b in range(block.tokens.shape[0]) for i in range(block.tokens.shape[1])]
    found = []
    for n in range(layout.n_targets):
        block, b, i = where[layout.target_slots[n]]
        order = block.order[b, i]
        seen = [(int(block.tokens[b, j]), int(block.positions[b, j])) for j in range(i + 1) if block.order[b, j] == order]
        for p in range(block.prefix_slots.shape[1]):
            if block.prefix_order[b, p] < order < block.prefix_last[b, p]:
                seen.append((int(tokens[block.prefix_slots[b, p]]), int(block.prefix_positions[b, p])))
        found.append((sorted(seen, key=lambda pair: pair[1]), int(layout.target_ids[n]), float(layout.target_weights[n])))
    return found


def expected_contexts(batch: PackedBatch) -> list[tuple[list[tuple[int, int]], int, float]]:
    """The same from the definition of a packed batch."""
    segment = np.searchsorted(batch.segment_starts, np.arange(batch.n_tokens), side="right") - 1
    found = []
    for row, target, weight in zip(batch.target_rows, batch.target_ids, batch.target_weights, strict=True):
        line, s = {int(segment[row])}, int(segment[row])
        while (s := int(batch.segment_parents[s])) >= 0:
            line.add(s)
        seen = [(int(batch.tokens[t]), int(batch.positions[t])) for t in range(row + 1) if segment[t] in line]
        found.append((seen, int(target), float(weight)))
    return found


@pytest.mark.parametrize("kind", ["shared", "single", "unshared"])
def test_every_target_sees_its_own_past_and_nothing_else(batch: PackedBatch, kind: str) -> None:
    layout = {"shared": lambda b: shared_layout(b, 64), "single": single_layout, "unshared": unshared_layout}[kind](batch)
    found, expected = contexts(layout), expected_contexts(batch)
    assert len(found) == len(expected)
    for (seen, target, weight), (should, its_id, its_weight) in zip(found, expected, strict=True):
        assert seen == should
        assert (target, weight) == (its_id, pytest.approx(its_weight))
    assert (layout.target_weights[layout.n_targets :] == 0).all()


def test_shared_rows_compute_each_token_once(batch: PackedBatch) -> None:
    real = sum(int((block.order >= 0).sum()) for block in shared_layout(batch, 64).blocks)
    assert real == batch.n_tokens


def test_little_padding_on_mixed_lengths() -> None:
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(5, 0.8, 40).astype(int) + 5, 1000)
    batch = packed([(random.integers(0, 50, n), np.ones(n)) for n in lengths])
    layout = shared_layout(batch, 1024)
    assert layout.n_slots < 1.2 * batch.n_tokens
    assert layout.blocks[0].tokens.shape[1] < 2 * lengths.max()  # rows stay short: attention is quadratic in them


def test_the_grid_is_coarse_and_never_too_small() -> None:
    for steps in (2, 4):
        sizes = {round_up(n, steps) for n in range(1, 4097)}
        assert all(round_up(n, steps) >= n for n in range(4097))
        assert all(round_up(n, steps) <= n * (1 + 1 / steps) for n in range(1, 4097))
        assert len(sizes) <= 13 * steps
    assert round_up(0, 4) == 0


def test_a_parent_behind_its_child_is_refused() -> None:
    batch = random_tree(50, [-1, 0], [3, 4])
    broken = PackedBatch(**{**{name: getattr(batch, name) for name in PackedBatch.__slots__}, "segment_parents": np.array([1, -1])})
    with pytest.raises(ValueError, match="before its children"):
        shared_layout(broken, 64)
