"""What a run will take, before it starts: tokens, steps, memory; and settings that fit the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from localsft.batch import Example, PackedBatch
from localsft.config import TrainConfig
from localsft.data.pack import epoch_order, pack_eval, pack_step
from localsft.engine.base import BatchSize, Engine
from localsft.errors import Refused
from localsft.train import Plan

SMALLEST_PACK = 128


@dataclass(frozen=True, slots=True)
class Work:
    """A run's tokens, counted on the batches of its first epoch. ``tokens``: as an unpacked, unshared run would process."""

    plan: Plan
    tokens: int
    tokens_computed: int
    batches_per_step: float
    largest: BatchSize  # of training
    largest_scored: BatchSize  # of validation; 0 where there is none
    typical: PackedBatch  # the batch of median size


def count_work(examples: Sequence[Example], valid: Sequence[Example], config: TrainConfig) -> Work:
    """Packs the first epoch, and the validation set, as the run will."""
    plan = Plan.of(len(examples), config)
    data, size = config.data, config.batch_size
    order = epoch_order(len(examples), config.seed, 0)
    steps = [[examples[i] for i in order[first : first + size]] for first in range(0, len(order), size)]
    batches = [batch for step in steps for batch in pack_step(step, data.tokens_per_pack, pack=data.pack, share_prefix=data.share_prefix)]
    by_size = sorted(batches, key=lambda batch: batch.n_tokens)
    return Work(
        plan,
        round(sum(len(example.token_ids) for example in examples) * plan.epochs),
        round(sum(batch.n_tokens for batch in batches) * plan.epochs),
        len(batches) / len(steps),
        _largest(batches),
        _largest(pack_eval(valid, data.tokens_per_pack, pack=data.pack, share_prefix=data.share_prefix)),
        by_size[len(by_size) // 2],
    )


def _largest(batches: Sequence[PackedBatch]) -> BatchSize:
    return BatchSize(
        max((batch.n_tokens for batch in batches), default=0),
        max((batch.n_targets for batch in batches), default=0),
        max((int(batch.positions.max(initial=-1)) + 1 for batch in batches), default=0),
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """Settings that fit: how many tokens a pack, whether layers are recomputed, and the bytes that takes."""

    tokens_per_pack: int
    recompute: bool
    memory: int


def fit_memory(memory: Callable[[BatchSize, BatchSize, bool], int], work: Work, tokens_per_pack: int, available: int) -> Fit:
    """The largest packs that fit ``available`` bytes: as set, then with recomputed layers, then halved until they do.

    ``memory`` is the engine's. None of this changes what is learned. Raises Refused when nothing fits.
    """

    def needed(limit: int, recompute: bool) -> int:
        train, score = work.largest, work.largest_scored
        if limit < tokens_per_pack:
            train, score = (replace(size, tokens=min(size.tokens, limit), targets=min(size.targets, limit)) for size in (train, score))
        return memory(train, score, recompute)

    limit, recompute = tokens_per_pack, False
    while True:
        takes = needed(limit, recompute)
        if takes <= available:
            return Fit(limit, recompute, takes)
        if not recompute:
            recompute = True
        elif limit // 2 >= SMALLEST_PACK:
            limit //= 2
        else:
            raise Refused(
                f"training would need {takes / 1e6:,.0f} MB of memory even with packs of {limit} tokens, and {available / 1e6:,.0f} MB "
                "are free; choose a smaller --model, a shorter --max-length, or fewer --layers"
            )


def measure_speed(engine: Engine, batch: PackedBatch, seconds: float = 2.0) -> float:
    """Computed tokens per second of forward and backward on this machine, now: the batch is run for about ``seconds``.

    The gradient is dropped; the engine's parameters stay as they are.
    """
    engine.accumulate(batch)  # the first run also brings memory and caches up
    started = time.perf_counter()
    runs = 0
    while runs == 0 or time.perf_counter() - started < seconds:
        engine.accumulate(batch)
        runs += 1
    rate = runs * batch.n_tokens / (time.perf_counter() - started)
    engine.step(0.0)
    return rate
