"""From examples to packed batches, without losing or repeating a supervised token.

An example with token ids x and target weights w asks for Σ w[i]·CE(x[i] | x[:i]). That sum over a set of examples is what
a set of packed batches must give, exactly, whatever is packed together or shared:

- Only tokens before the last target influence anything, so the rest (the end-of-turn token itself, a trailing user turn)
  is not computed.
- With sharing, a prefix that several examples have in common is computed once. Rows of a shared prefix that predict the same
  token in several examples become one target with the summed weight; a row may predict a different token for each branch.
- ``tokens_per_pack`` bounds the tokens of a batch. A tree of examples that is larger is cut into several that repeat the
  prefix; a single example that is larger gets a batch of its own. Where it costs next to nothing, batches are smaller than
  they could be (``ENOUGH_TOKENS``): memory grows with the tokens of a batch, speed hardly does from there on.

Best-fit-decreasing packing and the prefix tree are C++ (csrc/pack.h).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsft import _core
from localsft.batch import Example, Float32, Int32, PackedBatch

Int64 = NDArray[np.int64]

# A branching after fewer shared tokens than this is not worth a segment: the branches repeat those tokens. On the cpu engine a
# segment pays for itself from about 2 tokens on; an engine that makes a call for each segment needs more. On the conversations
# of examples/billing-support, limits from 2 to 32 change the computed tokens by less than 0.1 %.
MIN_SHARED = 8

# Tokens of a batch that make training about as fast as it gets, and by what factor the tokens to compute may grow, where
# cutting repeats a shared prefix, to have batches of no more. On AVX2, rows of 600 tokens trained as fast in packs of 1,024 as
# of 2,048, in 60 % of the memory (bench/RESULTS.md).
ENOUGH_TOKENS, MOST_GROWTH = 1024, 1.03


@dataclass(frozen=True, slots=True)
class OwnedBatch:
    """A packed batch that remembers whose targets it holds, for figures by example.

    The loss of example e is -Σ weights[k]·logprob[targets[k]] over the k with owners[k] == e; ``targets`` index the
    batch's N targets. A shared target has an entry for each example that it stands for.
    """

    batch: PackedBatch
    owners: Int64  # (M,) index of the example in the sequence that was packed
    targets: Int64  # (M,) index of the target in the batch
    weights: Float32  # (M,) > 0


def pack_step(examples: Sequence[Example], tokens_per_pack: int, pack: bool = True, share_prefix: bool = True) -> list[PackedBatch]:
    """The batches of one optimizer step.

    ``pack=False`` computes each example alone; nothing can be shared then. Examples without a target give nothing.
    The order of the examples decides at most how equal lengths are packed.
    Raises ``ValueError`` for an example whose arrays do not fit together, or with a negative, non-finite or first-token weight.
    """
    return [owned.batch for owned in pack_owned(examples, tokens_per_pack, pack, share_prefix)]


def pack_eval(examples: Sequence[Example], tokens_per_pack: int, pack: bool = True, share_prefix: bool = True) -> list[PackedBatch]:
    """The batches of a whole evaluation set: every example once, shared and packed over the whole set as in ``pack_step``."""
    return pack_step(examples, tokens_per_pack, pack, share_prefix)


def pack_owned(examples: Sequence[Example], tokens_per_pack: int, pack: bool = True, share_prefix: bool = True) -> list[OwnedBatch]:
    """The same batches with the owners of each target, for figures by example."""
    if tokens_per_pack < 1:
        raise ValueError("tokens_per_pack must be at least 1")
    needed = [(index, *_needed(example)) for index, example in enumerate(examples)]
    sequences = [(index, ids, targets) for index, ids, targets in needed if targets.size]
    if not sequences:
        return []
    if not pack:
        return [_build([sequence], examples, None) for sequence in sequences]
    forest = _forest(sequences, MIN_SHARED) if share_prefix else None
    lengths = np.array([ids.size for _, ids, _ in sequences], np.int64)

    def within(limit: int) -> list[OwnedBatch]:
        bins = forest.pack(limit) if forest is not None else _core.pack_lengths(lengths, limit)
        if not bins.any():
            return [_build(sequences, examples, forest)]
        order = np.argsort(bins, kind="stable")
        groups = [[sequences[k] for k in group] for group in np.split(order, np.flatnonzero(np.diff(bins[order])) + 1)]
        return [_build(group, examples, _forest_within(group, limit) if share_prefix else None) for group in groups]

    batches = within(tokens_per_pack)
    if any(batch.batch.n_tokens > ENOUGH_TOKENS for batch in batches) and tokens_per_pack > ENOUGH_TOKENS:
        smaller = within(ENOUGH_TOKENS)
        if _total(smaller) <= MOST_GROWTH * _total(batches):
            return smaller
    return batches


@functools.lru_cache(maxsize=1)
def epoch_order(count: int, seed: int, epoch: int) -> Int64:
    """The order (count,), not to be written to, in which an epoch goes through the examples.

    A function of the arguments alone, on every machine: ranks of 64-bit values of the counter-based Philox generator, keyed by
    (seed, epoch); NumPy keeps the raw stream of a bit generator stable (NEP 19), unlike ``Generator.permutation``.
    """
    values = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    order = np.argsort(values, kind="stable")
    order.flags.writeable = False  # the next step of the epoch gets the same array
    return order


def _total(batches: Sequence[OwnedBatch]) -> int:
    return sum(batch.batch.n_tokens for batch in batches)


def _needed(example: Example) -> tuple[Int32, Int64]:
    """The tokens before the last target, and the indices of the targets."""
    ids, weights = example.token_ids, example.target_weights
    where = f" ({example.source})" if example.source else ""
    if ids.ndim != 1 or ids.shape != weights.shape:
        raise ValueError(f"token_ids {ids.shape} and target_weights {weights.shape} must be (n,) both{where}")
    targets = np.flatnonzero(weights)
    if not targets.size:
        return ids[:0], targets
    chosen = weights[targets]
    if not (chosen.min() > 0 and chosen.max() < np.inf):
        raise ValueError(f"target_weights must be finite and not negative{where}")
    if targets[0] == 0:
        raise ValueError(f"the first token can't be a target{where}")
    return ids[: targets[-1]], targets


_Sequence = tuple[int, Int32, Int64]  # the index of an example, its tokens, its targets


def _starts(lengths: Sequence[int] | Int64) -> Int64:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _forest(group: Sequence[_Sequence], min_shared: int) -> _core.Forest:
    return _core.prefix_forest(np.concatenate([ids for _, ids, _ in group]), _starts([ids.size for _, ids, _ in group]), min_shared)


def _forest_within(group: Sequence[_Sequence], limit: int) -> _core.Forest:
    """Of sequences that ``Forest.pack`` put together: no more than ``limit`` tokens, where they aren't a single sequence."""
    forest = _forest(group, MIN_SHARED)
    if len(group) > 1 and int((forest.ends - forest.begins).sum()) > limit:
        # Cutting a tree can leave a branching closer to the next one than it was: then share every token.
        forest = _forest(group, 1)
    return forest


def _build(group: Sequence[_Sequence], examples: Sequence[Example], forest: _core.Forest | None) -> OwnedBatch:
    """One batch of the given sequences: the segments of their forest, or without one each a segment of its own."""
    ids, lengths = np.concatenate([ids for _, ids, _ in group]), [ids.size for _, ids, _ in group]
    first = _starts(lengths)  # of each sequence in ids
    if forest is not None:
        rows, parents = forest.rows(first), forest.parents
        starts = _starts(forest.ends - forest.begins)
    else:
        rows, parents, starts = np.arange(ids.size), np.full(len(group), -1, np.int32), first
    tokens, positions = np.empty((2, starts[-1]), np.int32)
    tokens[rows] = ids
    positions[rows] = np.arange(ids.size) - np.repeat(first[:-1], lengths)

    counts = [targets.size for _, _, targets in group]
    target_rows = rows[np.concatenate([targets for _, _, targets in group]) - 1 + np.repeat(first[:-1], counts)]
    target_ids = np.concatenate([examples[index].token_ids[targets] for index, _, targets in group])
    each_weight = np.concatenate([examples[index].target_weights[targets] for index, _, targets in group])
    unique, inverse = np.unique(target_rows << 32 | target_ids, return_inverse=True)
    batch = PackedBatch(
        tokens=tokens,
        positions=positions,
        segment_starts=starts.astype(np.int32),
        segment_parents=parents,
        target_rows=(unique >> 32).astype(np.int32),
        target_ids=(unique & 0xFFFFFFFF).astype(np.int32),
        target_weights=np.bincount(inverse, each_weight, unique.size).astype(np.float32),
    )
    return OwnedBatch(batch, np.repeat(np.array([index for index, _, _ in group], np.int64), counts), inverse, each_weight)
