"""How the segments of a packed batch are laid into rectangular blocks of rows, which is what a GPU wants.

mlx-lm's models take (B, L) tokens and compute attention over all pairs within a row; on Metal its backward pass holds the
scores (heads, L, L) of every row. So a batch becomes rows about as long as its longest segment, several segments to a row,
rather than one row of T tokens. Segments at one depth of the tree form a block; a row of it has, in front of its own tokens,
P slots that hold keys and values of its segments' ancestors, taken from the blocks before. Where a family can't have several
segments in a row, each gets its own; where it can't have prefixes either, every path from a root to a leaf becomes a row.

Sizes are rounded up to a coarse grid, so that ``mx.compile`` sees few shapes. They depend on the batch only, never on the
batches before it: a resumed run computes exactly what the first would have.

Letters: B rows, L tokens in a row, P prefix slots of a row, T tokens, S segments, N targets. A slot is an index into the
tokens of all blocks laid one after the other, padding included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from localsft.batch import Float32, Int32, PackedBatch

MIN_ROW = 16
MIN_TARGETS = 32


@dataclass(frozen=True, slots=True)
class Block:
    """(B, L) tokens that are computed in one pass. ``order`` and ``last`` number the segments so that a segment's descendants
    are exactly those with order in [order, last); padding has order -1 and attends among itself."""

    tokens: Int32  # (B, L)
    positions: Int32  # (B, L)
    order: Int32  # (B, L)
    prefix_slots: Int32  # (B, P) slots of the blocks before; 0 where unused
    prefix_positions: Int32  # (B, P)
    prefix_order: Int32  # (B, P)
    prefix_last: Int32  # (B, P) 0 where unused, so that nothing attends there


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole batch. The targets are padded with weight 0."""

    blocks: tuple[Block, ...]
    target_slots: Int32  # (N,)
    target_ids: Int32  # (N,)
    target_weights: Float32  # (N,)
    n_targets: int  # real ones, the first

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """What ``mx.compile`` would retrace for: (B, L, P) of every block, and (N,)."""
        return (*((*block.tokens.shape, block.prefix_slots.shape[1]) for block in self.blocks), self.target_slots.shape)

    @property
    def n_slots(self) -> int:
        """Tokens that are computed, padding included."""
        return sum(block.tokens.size for block in self.blocks)


def round_up(n: int, steps: int) -> int:
    """The least number ≥ n of the grid {2^k·(1 + i/steps)}: at most ``steps`` sizes between two powers of two."""
    if n <= steps:
        return n
    unit = max(1, (1 << (n.bit_length() - 1)) // steps)
    return -(-n // unit) * unit


def shared_layout(batch: PackedBatch, hidden_size: int) -> Layout:
    """Rows of several segments; ancestors in front. ``hidden_size`` weighs attention against the linear layers."""
    tree = _Tree.of(batch)
    return _laid_out(batch, tree, [_best_rows(tree, segments, hidden_size) for segments in tree.levels])


def single_layout(batch: PackedBatch) -> Layout:
    """One segment a row; ancestors in front. Segments of a level go into blocks by their length."""
    tree = _Tree.of(batch)
    plans: list[_Plan] = []
    for segments in tree.levels:
        by_length: dict[int, list[_Row]] = {}
        for s in segments:
            length = max(MIN_ROW, round_up(int(tree.length[s]), 2))
            by_length.setdefault(length, []).append(_Row([s], tree.ancestors(s)))
        for length, rows in sorted(by_length.items()):
            prefix = round_up(max(sum(int(tree.length[a]) for a in row.prefix) for row in rows), 4)
            plans.append(_Plan(rows, length, prefix))
    return _laid_out(batch, tree, plans)


def unshared_layout(batch: PackedBatch) -> Layout:
    """One row for each path from a root to a leaf, nothing else in it; a shared token's targets count in one of its rows.

    Raises ValueError where positions do not count from 0 along a path: without a cache a model could not be told.
    """
    tree = _Tree.of(batch)
    has_child = np.zeros(len(tree.length), bool)
    has_child[tree.parent[tree.parent >= 0]] = True
    paths = [[*tree.ancestors(s), s] for s in map(int, np.flatnonzero(~has_child))]
    lengths = [sum(int(tree.length[s]) for s in path) for path in paths]
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_length.setdefault(max(MIN_ROW, round_up(length, 2)), []).append(i)
    slot_of_token = np.zeros(batch.n_tokens, np.int32)
    blocks: list[Block] = []
    first_slot = 0
    for length, members in sorted(by_length.items()):
        block = _empty_block(round_up(len(members), 4), length, 0)
        for b, i in enumerate(members):
            tokens = np.concatenate([np.arange(tree.start[s], tree.start[s] + tree.length[s]) for s in paths[i]])
            n = len(tokens)
            if not np.array_equal(batch.positions[tokens], np.arange(n)):
                raise ValueError("positions must count from 0 along every path of the segment tree")
            block.tokens[b, :n] = batch.tokens[tokens]
            block.positions[b, :n] = np.arange(n)
            block.order[b, :n] = 0
            slot_of_token[tokens] = first_slot + b * length + np.arange(n)
        blocks.append(block)
        first_slot += block.tokens.size
    return _with_targets(blocks, batch, slot_of_token[batch.target_rows])


@dataclass(frozen=True, slots=True)
class _Tree:
    """The segments of a batch. ``order`` is a preorder number, ``last`` one past that of the last descendant."""

    start: Int32  # (S,)
    length: Int32  # (S,)
    parent: Int32  # (S,)
    order: Int32  # (S,)
    last: Int32  # (S,)
    levels: tuple[list[int], ...]  # segments by depth

    @staticmethod
    def of(batch: PackedBatch) -> _Tree:
        start, parent = batch.segment_starts[:-1], batch.segment_parents
        length = np.diff(batch.segment_starts)
        count = len(length)
        children: list[list[int]] = [[] for _ in range(count)]
        depth = np.zeros(count, np.int32)
        for s in range(count):
            if parent[s] >= s:
                raise ValueError("a parent segment must come before its children")
            if parent[s] >= 0:
                children[parent[s]].append(s)
                depth[s] = depth[parent[s]] + 1
        size = np.ones(count, np.int32)
        for s in reversed(range(count)):
            if parent[s] >= 0:
                size[parent[s]] += size[s]
        order, free = np.zeros(count, np.int32), 0
        for s in range(count):
            if parent[s] < 0:
                order[s], free = free, free + size[s]
            below = order[s] + 1
            for child in children[s]:
                order[child], below = below, below + size[child]
        levels = tuple([int(s) for s in np.flatnonzero(depth == d)] for d in range(int(depth.max(initial=-1)) + 1))
        return _Tree(start, length.astype(np.int32), parent, order, order + size, levels)

    def tokens(self, s: int) -> slice:
        return slice(int(self.start[s]), int(self.start[s] + self.length[s]))

    def ancestors(self, s: int) -> list[int]:
        """From the root down, without s."""
        path: list[int] = []
        while (s := int(self.parent[s])) >= 0:
            path.append(s)
        return path[::-1]


@dataclass(slots=True)
class _Row:
    segments: list[int]
    prefix: list[int]  # segments
    used: int = 0
    prefix_used: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """A block to be: what its rows hold, L and P."""

    rows: list[_Row]
    length: int
    prefix: int


def _best_rows(tree: _Tree, segments: list[int], hidden_size: int) -> _Plan:
    """The cheapest of a few row lengths: padding costs linear layers, long rows cost attention."""
    longest = int(tree.length[segments].max())
    total = int(tree.length[segments].sum())
    prefix = max(sum(int(tree.length[a]) for a in tree.ancestors(s)) for s in segments)
    prefix = round_up(prefix, 4)
    best: tuple[float, _Plan] | None = None
    length = max(MIN_ROW, round_up(longest, 4))
    for _ in range(8):
        rows = _fill_rows(tree, segments, length, prefix)
        # A token costs 24·D² in a layer's linears and 4·D per key; attention runs at a fraction of their speed.
        cost = round_up(len(rows), 4) * length * (1 + (prefix + length) / (2 * hidden_size))
        if best is None or cost < best[0]:
            best = cost, _Plan(rows, length, prefix)
        if length >= total:
            break
        length = round_up(length + 1, 4)
    assert best is not None
    return best[1]


def _fill_rows(tree: _Tree, segments: list[int], length: int, prefix: int) -> list[_Row]:
    """Best fit decreasing: into the row that needs the fewest new prefix slots, then the fullest one."""
    rows: list[_Row] = []
    for s in sorted(segments, key=lambda s: (-int(tree.length[s]), s)):
        n, ancestors = int(tree.length[s]), tree.ancestors(s)
        best: tuple[int, int, int] | None = None
        for b, row in enumerate(rows):
            if row.used + n > length:
                continue
            new = sum(int(tree.length[a]) for a in ancestors if a not in row.prefix)
            if row.prefix_used + new <= prefix and (best is None or (new, -row.used, b) < best):
                best = new, -row.used, b
        if best is None:
            rows.append(_Row([], []))
        row = rows[best[2] if best else -1]
        row.segments.append(s)
        row.used += n
        for a in ancestors:
            if a not in row.prefix:
                row.prefix.append(a)
                row.prefix_used += int(tree.length[a])
    return rows


def _laid_out(batch: PackedBatch, tree: _Tree, plans: list[_Plan]) -> Layout:
    slot_of_token = np.zeros(batch.n_tokens, np.int32)
    blocks: list[Block] = []
    first_slot = 0
    for plan in plans:
        block = _empty_block(round_up(len(plan.rows), 4), plan.length, plan.prefix)
        for b, row in enumerate(plan.rows):
            _fill_prefix(block, b, row, tree, batch, slot_of_token)
            at = 0
            for s in row.segments:
                tokens, into = tree.tokens(s), slice(at, at + int(tree.length[s]))
                block.tokens[b, into] = batch.tokens[tokens]
                block.positions[b, into] = batch.positions[tokens]
                block.order[b, into] = tree.order[s]
                slot_of_token[tokens] = first_slot + b * plan.length + np.arange(at, into.stop)
                at = into.stop
        blocks.append(block)
        first_slot += block.tokens.size
    return _with_targets(blocks, batch, slot_of_token[batch.target_rows])


def _empty_block(rows: int, length: int, prefix: int) -> Block:
    def zeros(width: int) -> Int32:
        return np.zeros((rows, width), np.int32)

    return Block(
        tokens=zeros(length),
        positions=zeros(length),
        order=np.full((rows, length), -1, np.int32),
        prefix_slots=zeros(prefix),
        prefix_positions=zeros(prefix),
        prefix_order=zeros(prefix),
        prefix_last=zeros(prefix),
    )


def _fill_prefix(block: Block, b: int, row: _Row, tree: _Tree, batch: PackedBatch, slot_of_token: Int32) -> None:
    at = 0
    for a in row.prefix:
        tokens, into = tree.tokens(a), slice(at, at + int(tree.length[a]))
        block.prefix_slots[b, into] = slot_of_token[tokens]
        block.prefix_positions[b, into] = batch.positions[tokens]
        block.prefix_order[b, into] = tree.order[a]
        block.prefix_last[b, into] = tree.last[a]
        at = into.stop


def _with_targets(blocks: list[Block], batch: PackedBatch, slots: Int32) -> Layout:
    """Targets padded to the grid with weight 0 (slot 0, id 0)."""
    n = batch.n_targets
    padding = max(MIN_TARGETS, round_up(n, 2)) - n
    return Layout(
        blocks=tuple(blocks),
        target_slots=np.pad(slots, (0, padding)).astype(np.int32),
        target_ids=np.pad(batch.target_ids, (0, padding)).astype(np.int32),
        target_weights=np.pad(batch.target_weights, (0, padding)).astype(np.float32),
        n_targets=n,
    )
