"""Figures of a dataset: how long its examples are, how much of them is learned, and what packing and sharing save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Example
from localsft.data.conversation import Conversation
from localsft.data.pack import epoch_order, pack_step

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
BARS = 12  # of a histogram
PACKED = 20_000  # examples that are packed for the figures of packing; of more, so many are drawn
COMMON = 10  # tags that are listed


@dataclass(frozen=True, slots=True)
class Lengths:
    """Counts of one kind over all examples. ``percentiles``: by name, "p50" for the median, "min" and "max"."""

    total: int
    mean: float
    percentiles: Mapping[str, int]
    histogram: tuple[tuple[int, int, int], ...]  # from, below, examples; the last one holds all that is longer

    @staticmethod
    def of(counts: NDArray[np.int64]) -> Lengths:
        """Of counts (n,), n > 0."""
        values = np.percentile(counts, PERCENTILES, method="inverted_cdf").astype(int).tolist()
        names = ["min", *(f"p{p}" for p in PERCENTILES[1:-1]), "max"]
        return Lengths(int(counts.sum()), float(counts.mean()), dict(zip(names, values, strict=True)), histogram(counts))


@dataclass(frozen=True, slots=True)
class Packing:
    """Tokens that one epoch computes, over ``examples`` examples in steps as a run takes them.

    ``padded``: if each step were one batch, filled up to its longest example. ``packed``: examples beside each other without
    padding, each up to its last target. ``shared``: as ``packed``, each common prefix of a pack once.
    """

    examples: int
    steps: int
    padded: int
    packed: int
    shared: int
    packs: int  # batches of ``shared``
    largest: int  # tokens of the largest of them


@dataclass(frozen=True, slots=True)
class Turns:
    """What the rows are made of. ``answers``: how many assistant turns a row has -> rows; ``tags``: the most frequent."""

    rows: int
    answers: Mapping[int, int]
    roles: Mapping[str, int]  # -> messages
    system_prompts: int  # different ones
    rows_with_system: int
    rows_with_tools: int
    rows_with_calls: int
    tags: Mapping[str, int]


def turns_of(conversations: Iterable[Conversation]) -> Turns:
    """Counts over rows, one pass."""
    answers: Counter[int] = Counter()
    roles: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    prompts: set[int] = set()
    rows = system = tools = calls = 0
    for conversation in conversations:
        rows += 1
        names = [message.role for message in conversation.messages]
        roles.update(names)
        answers[names.count("assistant")] += 1
        tags.update(conversation.tags)
        own = [message.content for message in conversation.messages if message.role in ("system", "developer")]
        prompts.update(map(hash, own))
        system += bool(own)
        tools += bool(conversation.tools)
        calls += any(message.tool_calls for message in conversation.messages)
    return Turns(rows, dict(sorted(answers.items())), dict(roles), len(prompts), system, tools, calls, dict(tags.most_common(COMMON)))


def packing_of(examples: Sequence[Example], tokens_per_pack: int, batch_size: int, seed: int = 0) -> Packing:
    """What the packer makes of one epoch; of more than ``PACKED`` examples, of so many of them in the order of the epoch."""
    order = epoch_order(len(examples), seed, 0)[:PACKED]
    steps = [[examples[i] for i in order[first : first + batch_size]] for first in range(0, len(order), batch_size)]
    packs = [batch.n_tokens for step in steps for batch in pack_step(step, tokens_per_pack)]
    return Packing(
        examples=len(order),
        steps=len(steps),
        padded=sum(len(step) * max(len(example.token_ids) for example in step) for step in steps),
        packed=sum(int(np.flatnonzero(example.target_weights)[-1]) for step in steps for example in step),
        shared=sum(packs),
        packs=len(packs),
        largest=max(packs, default=0),
    )


def histogram(counts: NDArray[np.int64]) -> tuple[tuple[int, int, int], ...]:
    """At most ``BARS`` bars of one round width up to the 99th percentile; what is longer goes into the last."""
    low, high = int(counts.min()), int(np.percentile(counts, 99, method="inverted_cdf")) + 1
    widths = (step * 10**power for power in range(12) for step in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < BARS)
    first = low // width
    bars = np.bincount(np.minimum(counts // width - first, high // width - first))
    edges = [(first + i) * width for i in range(len(bars) + 1)]
    edges[-1] = max(edges[-1], int(counts.max()) + 1)
    return tuple((edges[i], edges[i + 1], int(bar)) for i, bar in enumerate(bars))
