"""Packing: time and fill of best-fit decreasing, and time of the prefix forest; prints one JSON object.

python bench/pack.py
"""

from __future__ import annotations

import json
import time

import numpy as np

from localsft import _core

CAPACITY = 2048


def lengths(n: int = 1_000_000) -> dict[str, dict[str, float]]:
    random = np.random.default_rng(0)
    kinds = {
        "uniform 1..2048": random.integers(1, CAPACITY + 1, n),
        "log-normal, median 245": np.clip(random.lognormal(5.5, 0.7, n), 4, CAPACITY).astype(np.int64),
        "short 20..120": random.integers(20, 120, n),
    }
    results = {}
    for name, values in kinds.items():
        started = time.perf_counter()
        bins = _core.pack_lengths(values, CAPACITY)
        results[name] = {"seconds": time.perf_counter() - started, "fill": float(values.sum() / (CAPACITY * (bins.max() + 1)))}
    return results


def forest(n: int = 100_000) -> dict[str, float]:
    """Sequences of 77 to 257 tokens that start with the same 57."""
    random = np.random.default_rng(0)
    prompt = random.integers(0, 49_000, 57)
    tails = [np.minimum(random.zipf(1.3, random.integers(20, 200)), 49_000) for _ in range(n)]
    starts = np.concatenate([[0], np.cumsum([57 + len(tail) for tail in tails])])
    tokens = np.concatenate([part for tail in tails for part in (prompt, tail)]).astype(np.int32)
    started = time.perf_counter()
    found = _core.prefix_forest(tokens, starts, 8)
    built = time.perf_counter()
    bins = found.pack(CAPACITY)
    packed = time.perf_counter()
    return {
        "tokens": len(tokens),
        "tokens_shared": int((found.ends - found.begins).sum()),
        "forest_seconds": built - started,
        "pack_seconds": packed - built,
        "bins": int(bins.max() + 1),
    }


if __name__ == "__main__":
    print(json.dumps({"lengths, 1,000,000": lengths(), "forest, 100,000 sequences": forest()}, indent=2))
