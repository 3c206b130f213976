"""A training step of 1B- and 3B-shaped llamas with random 4-bit weights: does it run, and as fast as its products say?

    python bench/large.py [--threads 2] [--tokens 1024]

The prediction is the floating-point work of the products with frozen weights (forward and input gradient; the head on the
supervised half) at the rate of the model's own largest product, measured just before. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from localsft.batch import PackedBatch
from localsft.benchmark import product_rate, step_flops
from localsft.config import LoraConfig, OptimConfig
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops
from localsft.session import peak_memory_mb
from localsft.weights.config import ModelConfig
from localsft.weights.tensor import AffineQuantized, Dense, Tensor

SHAPES = {
    "1B": {"hidden_size": 2048, "ffn_size": 8192, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "head_size": 64},
    "3B": {"hidden_size": 3072, "ffn_size": 8192, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "head_size": 128},
}  # Llama 3.2
VOCAB = 128256


class RandomBase:
    """Stands in for a loaded base: the same tensors by name, random 4-bit values in groups of 32."""

    def __init__(self, shape: Mapping[str, int]) -> None:
        self.path, self.hash, self.metadata = Path("random"), "random", {}
        self.config = ModelConfig(
            model_type="llama", source="mlx", vocab_size=VOCAB, max_positions=4096, rms_eps=1e-5, rope_theta=500000.0,
            rope_size=shape["head_size"], rope_scaling=None, tied_head=True, qkv_bias=False, attention_output_bias=False,
            mlp_bias=False, qk_norm=False, activation="silu", sliding_window=None, quantization=None, **shape,
        )  # fmt: skip
        self.tensors = _RandomTensors(self.config)


class _RandomTensors(Mapping[str, Tensor]):
    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._random = np.random.default_rng(0)

    def __getitem__(self, name: str) -> Tensor:
        c = self._config
        if "norm" in name:
            return Dense(np.ones(c.hidden_size, np.float32))
        attention, keys = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
        rows, columns = {
            "embed_tokens": (c.vocab_size, c.hidden_size), "q_proj": (attention, c.hidden_size), "k_proj": (keys, c.hidden_size),
            "v_proj": (keys, c.hidden_size), "o_proj": (c.hidden_size, attention), "gate_proj": (c.ffn_size, c.hidden_size),
            "up_proj": (c.ffn_size, c.hidden_size), "down_proj": (c.hidden_size, c.ffn_size),
        }[name.split(".")[-2]]  # fmt: skip
        packed = self._random.integers(0, 1 << 32, (rows, columns // 8), dtype=np.uint32)
        scales = np.full((rows, columns // 32), 0.25 / np.sqrt(columns), np.float16)
        return AffineQuantized(packed, scales, (scales * np.float16(-7.5)).astype(np.float16), 4, 32)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def dense_batch(tokens: int) -> PackedBatch:
    """One sequence, its second half supervised."""
    ids = np.random.default_rng(1).integers(0, VOCAB, tokens).astype(np.int32)
    rows = np.arange(tokens // 2 - 1, tokens - 1, dtype=np.int32)
    return PackedBatch(
        ids, np.arange(tokens, dtype=np.int32), np.array([0, tokens], np.int32), np.array([-1], np.int32), rows, ids[rows + 1],
        np.ones(rows.size, np.float32),
    )  # fmt: skip


def measure(name: str, threads: int, tokens: int) -> dict[str, Any]:
    base = RandomBase(SHAPES[name])
    engine = CpuEngine(base, LoraConfig(), OptimConfig(), Ops("", threads))  # type: ignore[arg-type]
    batch = dense_batch(tokens)
    flops = step_flops(base.config, tokens, batch.n_targets, batch.n_targets)
    engine.accumulate(batch)
    rates, times = [], []
    for _ in range(2):
        rates.append(product_rate(engine, tokens))
        started = time.perf_counter()
        engine.accumulate(batch)
        engine.step(1e-4)
        times.append(time.perf_counter() - started)
    seconds, rate = statistics.median(times), statistics.median(rates)
    return {
        "isa": engine.info.isa,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "predicted_tokens_per_second": tokens / (flops / rate),
        "share_of_prediction": flops / rate / seconds,
        "product_gflops": rate / 1e9,
        "peak_memory_mb": peak_memory_mb(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--shape", choices=list(SHAPES), action="append")
    a = parser.parse_args()
    print(json.dumps({name: measure(name, a.threads, a.tokens) for name in a.shape or list(SHAPES)}, indent=2))


if __name__ == "__main__":
    main()
