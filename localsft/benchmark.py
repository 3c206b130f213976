"""A user's own figures in a minute: products, training and generation on this machine, and what they mean for data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from localsft.batch import PackedBatch
from localsft.config import LoraConfig, OptimConfig
from localsft.engine import open_engine
from localsft.engine.base import Engine, Sampling
from localsft.session import LoadedModel
from localsft.weights.config import ModelConfig

if TYPE_CHECKING:
    from localsft.engine.cpu.engine import CpuEngine

PRODUCT_ROWS = 1024
STEP_TOKENS = 1024
STEP_SEQUENCES = 4
PEAK_SECONDS = 3.0
DECODED = 48
PROMPT = 32


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure: ``value`` in ``unit``, the median of ``runs`` runs, of the peak the best; ``of_peak``: as a share of that."""

    name: str
    value: float
    unit: str
    runs: int
    of_peak: float | None = None


def measure(model: LoadedModel, engine_name: str, threads: int | None) -> Iterator[Figure]:
    """The figures one after the other, as they are measured; the cpu engine's products and peak come first."""
    engine = open_engine(engine_name, model.base, LoraConfig(), OptimConfig(), threads=threads)
    peak = None
    if engine.info.name == "cpu":
        from localsft.engine.cpu.engine import CpuEngine

        assert isinstance(engine, CpuEngine)
        peak, runs = _peak(engine)
        yield Figure("peak of the multiply-add units", peak / 1e9, "GFLOP/s", runs)
        for name, rate, runs in _products(engine):
            yield Figure(name, rate / 1e9, "GFLOP/s", runs, rate / peak)
    seconds, runs = _median_seconds(lambda: engine.accumulate(_step_batch(model.base.config.vocab_size)), 6.0)
    flops = step_flops(model.base.config, STEP_TOKENS, STEP_TOKENS // 2, STEP_TOKENS // 2)
    yield Figure(
        f"training, {STEP_SEQUENCES} x {STEP_TOKENS // STEP_SEQUENCES} tokens, half of them supervised",
        STEP_TOKENS / seconds,
        "tokens/s",
        runs,
        flops / seconds / peak if peak else None,
    )
    for batch in (1, 16):
        yield _decoding(engine, batch, model.base.config.vocab_size)


def _peak(engine: CpuEngine) -> tuple[float, int]:
    """FLOP/s of the best of some seconds of short runs, and how many. A virtual machine may have its threads on one core of the
    host for seconds, at first above all: what follows would seem to be faster than the machine can be."""
    rates: list[float] = []
    started = time.perf_counter()
    while not rates or time.perf_counter() - started < PEAK_SECONDS:
        rates.append(engine.ops.peak_flops())
    return max(rates), len(rates)


def _products(engine: CpuEngine) -> Iterator[tuple[str, float, int]]:
    """Name, FLOP/s and number of runs of the gate projection's products in both directions."""
    group = engine.model.layers[0].gate_up
    shape = f"{PRODUCT_ROWS} x {group.inputs} x {group.widths[0]}, weights as in the base"
    for name, call, flops in gate_products(engine, PRODUCT_ROWS):
        seconds, runs = _median_seconds(call, 1.0)
        yield f"{name} {shape}", flops / seconds, runs


def gate_products(engine: CpuEngine, rows: int) -> list[tuple[str, Callable[[], object], float]]:
    """The first layer's gate projection on ``rows`` rows, forward and backward without adapters: name, call, FLOPs."""
    ops, group = engine.ops, engine.model.layers[0].gate_up
    gate, inputs, outputs = ops.linears(group.weights[:1]), group.inputs, group.widths[0]
    x, dy = np.zeros((rows, inputs), ops.act_dtype), np.zeros((rows, outputs), ops.act_dtype)
    y, dx, u = np.zeros_like(dy), np.zeros_like(x), np.zeros((rows, 0), np.float32)
    flops = 2.0 * rows * inputs * outputs
    return [
        ("product", lambda: ops.linear_forward(x, gate, [y], u, False), flops),
        ("its backward", lambda: ops.linear_backward([dy], gate, x, u, dx, False), flops),
    ]


def product_rate(engine: CpuEngine, rows: int) -> float:
    """FLOP/s of the gate projection, both directions together, over about a fifth of a second."""
    parts = [(_median_seconds(call, 0.1)[0], flops) for _, call, flops in gate_products(engine, rows)]
    return sum(flops for _, flops in parts) / sum(seconds for seconds, _ in parts)


def _step_batch(vocab: int) -> PackedBatch:
    """Separate sequences; the second half of each is supervised."""
    length = STEP_TOKENS // STEP_SEQUENCES
    rows = np.concatenate([np.arange(s * length + length // 2 - 1, (s + 1) * length - 1) for s in range(STEP_SEQUENCES)])
    tokens = np.random.default_rng(0).integers(0, vocab, STEP_TOKENS)
    return PackedBatch(
        tokens=tokens.astype(np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), STEP_SEQUENCES),
        segment_starts=np.arange(0, STEP_TOKENS + 1, length, dtype=np.int32),
        segment_parents=np.full(STEP_SEQUENCES, -1, np.int32),
        target_rows=rows.astype(np.int32),
        target_ids=tokens[rows + 1].astype(np.int32),
        target_weights=np.ones(rows.size, np.float32),
    )


def step_flops(config: ModelConfig, tokens: int, query_rows: int, targets: int) -> float:
    """Of the products with frozen weights in one step: forward, and the gradient of the input.

    The last layer queries ``query_rows`` rows only, and the head sees ``targets``.
    """
    c = config
    attention, keys = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
    per_query, per_key = c.hidden_size * (2 * attention + 3 * c.ffn_size), c.hidden_size * 2 * keys
    layers = tokens * c.n_layers * per_key + (tokens * (c.n_layers - 1) + query_rows) * per_query
    return 4.0 * (layers + targets * c.hidden_size * c.vocab_size)


def _decoding(engine: Engine, batch: int, vocab: int) -> Figure:
    rates = decoding_rates(engine, batch, vocab, DECODED, 3)
    name = f"generation, {batch} at once" if batch > 1 else "generation, one answer"
    return Figure(name, statistics.median(rates), "tokens/s", len(rates))


def decoding_rates(engine: Engine, batch: int, vocab: int, tokens: int, rounds: int) -> list[float]:
    """Tokens per second of ``batch`` answers together, once their prompts are read: one figure a round."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, vocab, PROMPT).astype(np.int32) for _ in range(batch)]
    rates = []
    for _ in range(rounds):
        times = []
        for token in engine.generate(prompts, Sampling(max_tokens=tokens)):
            if token.prompt == batch - 1:
                times.append(time.perf_counter())
        rates.append(batch * (len(times) - 1) / (times[-1] - times[0]))
    return rates


def _median_seconds(call: Callable[[], object], budget: float) -> tuple[float, int]:
    """The median time of a call over about ``budget`` seconds (at least three calls, after one that warms up), and how many."""
    call()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < budget:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times), len(times)


def epoch_seconds(tokens_per_second: float, examples: int = 1000, tokens: int = 400) -> float:
    """What the training figure means for a dataset, before packing's and sharing's savings."""
    return examples * tokens / tokens_per_second
