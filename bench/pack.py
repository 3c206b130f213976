"""Packing: time and fill of best-fit decreasing, and time of the prefix forest; prints one JSON object.

    python bench/pack.py [--data DATA.jsonl --model MODEL.gguf]

The forest is that of 100,000 made-up sequences and, with ``--data``, of the file's examples as the model's template and tokenizer
read them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localsft import _core
from localsft.config import resolve
from localsft.session import load_examples, load_model

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


def made_up(n: int = 100_000) -> list[NDArray[np.int32]]:
    """Sequences of 77 to 257 tokens that start with the same 57."""
    random = np.random.default_rng(0)
    prompt = random.integers(0, 49_000, 57)
    tails = [np.minimum(random.zipf(1.3, random.integers(20, 200)), 49_000) for _ in range(n)]
    return [np.concatenate([prompt, tail]).astype(np.int32) for tail in tails]


def forest(sequences: Sequence[NDArray[np.int32]]) -> dict[str, float]:
    starts = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    tokens = np.concatenate(sequences)
    started = time.perf_counter()
    found = _core.prefix_forest(tokens, starts, 8)
    built = time.perf_counter()
    bins = found.pack(CAPACITY)
    packed = time.perf_counter()
    return {
        "sequences": len(sequences),
        "tokens": len(tokens),
        "tokens_of_the_forest": int((found.ends - found.begins).sum()),
        "forest_seconds": built - started,
        "pack_seconds": packed - built,
        "bins": int(bins.max() + 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    a = parser.parse_args()
    results = {"lengths, 1,000,000": lengths(), "forest, made up": forest(made_up())}
    if a.data:
        config = resolve({"data.path": str(a.data), "data.max_length": CAPACITY})
        examples = load_examples(config, load_model("base", a.model)).train
        results[f"forest, {a.data.name}"] = forest([example.token_ids for example in examples])
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
