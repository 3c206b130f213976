"""Where a training step goes: tokens/s, its share of the products' rate, one thread beside two, and seconds by operation.

    python bench/step.py MODEL.gguf [--sequences 4] [--length 1024] [--threads 2] [--checkpoint] [--rounds 3]
    python bench/step.py MODEL.gguf --data DATA.jsonl [--batch 8]      the first rows as they are packed, prefixes shared

Dense random tokens, every one supervised, separate sequences, rank 8 on all linears; or real rows. ``share_of_product_rate``: the
floating-point work of the products with frozen weights (forward, input gradient; the head on supervised rows only) over the step's
time, as a share of the rate of the model's own gate projection in both directions, measured in turn. Prints one JSON object.

``--one-thread`` also gives, round by round, the speed-up by the threads and what it is for a loop on registers alone, between the two
steps: two virtual processors are at times one core's two hardware threads, and then no program gains much from the second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from localsft.batch import PackedBatch
from localsft.benchmark import product_rate, step_flops
from localsft.config import LoraConfig, OptimConfig, resolve
from localsft.data.pack import pack_step
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops
from localsft.session import available_memory, load_examples, load_model, peak_memory_mb


class TimedOps(Ops):
    """Adds up the seconds of each operation by name, while ``timing``."""

    timing = False

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)
        self.seconds: defaultdict[str, float]

        def timed(*arguments: Any, **options: Any) -> Any:
            if not self.timing:
                return call(*arguments, **options)
            started = time.perf_counter()
            result = call(*arguments, **options)
            self.seconds[name] += time.perf_counter() - started
            return result

        setattr(self, name, timed)
        return timed


def dense(sequences: int, length: int, vocab: int) -> PackedBatch:
    tokens = np.random.default_rng(0).integers(0, vocab, sequences * length).astype(np.int32)
    rows = np.arange(sequences * length, dtype=np.int32)
    rows = rows[rows % length != length - 1]
    return PackedBatch(
        tokens, np.tile(np.arange(length, dtype=np.int32), sequences), np.arange(0, sequences * length + 1, length, dtype=np.int32),
        np.full(sequences, -1, np.int32), rows, tokens[rows + 1], np.ones(rows.size, np.float32),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for name, default in {"sequences": 4, "length": 1024, "threads": 2, "rounds": 3, "batch": 8, "layers": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--isa", default="")
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--one-thread", action="store_true", help="one thread in turn with the others: speed, and that the bits are equal")
    a = parser.parse_args()
    model = load_model("base", a.model)
    config = model.base.config
    if a.data:
        examples = load_examples(resolve({"data.path": str(a.data)}), model).train[: a.batch]
        batches = pack_step(examples, 1 << 20, pack=True, share_prefix=True)
    else:
        batches = [dense(a.sequences, a.length, config.vocab_size)]
    tokens, targets = sum(b.n_tokens for b in batches), sum(b.n_targets for b in batches)

    def engine_of(threads: int) -> tuple[CpuEngine, TimedOps]:
        ops = TimedOps(a.isa, threads)
        ops.seconds = defaultdict(float)
        engine = CpuEngine(
            model.base, LoraConfig(layers=a.layers) if a.layers else LoraConfig(), OptimConfig(), ops, checkpoint=a.checkpoint
        )
        engine.speed_up(max(batch.n_tokens for batch in batches), available_memory())
        return engine, ops

    sides = {threads: engine_of(threads) for threads in ([a.threads, 1] if a.one_thread else [a.threads])}
    times: dict[int, list[float]] = {threads: [] for threads in sides}
    losses: dict[int, list[float]] = {threads: [] for threads in sides}
    rates = []
    peaks: list[float] = []
    for round_ in range(a.rounds + 1):
        for threads, (engine, ops) in sides.items():
            ops.timing = round_ > 0 and threads == a.threads
            started = time.perf_counter()
            losses[threads] += [engine.accumulate(batch).loss for batch in batches]
            engine.step(1e-3)
            if round_:
                times[threads].append(time.perf_counter() - started)
            ops.timing = False
            if round_ and a.one_thread and threads == a.threads:
                peaks.append(ops.peak_flops() / sides[1][1].peak_flops())
        rates.append(product_rate(sides[a.threads][0], min(tokens, 1024)))
    engine, ops = sides[a.threads]
    seconds, rate = statistics.median(times[a.threads]), statistics.median(rates)
    flops = sum(step_flops(config, b.n_tokens, np.unique(b.target_rows).size, b.n_targets) for b in batches)
    mean = {name: total / a.rounds for name, total in sorted(ops.seconds.items(), key=lambda item: -item[1])}
    report: dict[str, Any] = {
        "isa": engine.info.isa, "threads": a.threads, "tokens": tokens, "targets": targets, "seconds": seconds,
        "tokens_per_second": tokens / seconds, "product_gflops": rate / 1e9, "peak_gflops": ops.peak_flops() / 1e9,
        "share_of_product_rate": flops / seconds / rate, "peak_memory_mb": peak_memory_mb(),
        "seconds_by_operation": {name: round(s, 4) for name, s in mean.items() if s > 5e-5},
        "seconds_between_operations": round(statistics.mean(times[a.threads]) - sum(mean.values()), 4),
    }  # fmt: skip
    if a.one_thread:
        report["one_thread"] = {
            "seconds": statistics.median(times[1]),
            "speedup": statistics.median(one / more for one, more in zip(times[1], times[a.threads], strict=True)),
            "speedup_and_peaks_by_round": [
                (round(one / more, 3), round(peak, 2)) for one, more, peak in zip(times[1], times[a.threads], peaks, strict=True)
            ],
            "bits_equal": losses[1] == losses[a.threads] and np.array_equal(sides[1][0].parameters.values, engine.parameters.values),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
