"""The head's masked cross-entropy with its gradient, beside the two products that it is made of; prints one JSON object.

    python bench/head.py [--threads 2] [--tokens 1024] [--hidden 576] [--rounds 7] [--isa NAME]

Half of the rows are supervised. The products (logits of the supervised rows, and their gradient times the weights) are timed by
the same kernels' linear_forward and linear_backward on the same 4-bit weights, in turn with the head. ``working_memory_mb`` is what
the process grew by in its first call, arrays of the caller apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from localsft import _core

VOCABULARIES = [49152, 151936]


def memory(field: str) -> float:
    """A field of /proc/self/status in MB of 10^6 bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def measure(vocab: int, a: argparse.Namespace) -> dict[str, Any]:
    ctx = _core.Context(a.isa, a.threads)
    rng = np.random.default_rng(0)
    rows = a.tokens // 2
    packed = rng.integers(0, 2**32, (vocab, a.hidden // 8), dtype=np.uint32)
    scales = (rng.normal(size=(vocab, a.hidden // 32)) / 64).astype(np.float16)
    weight = _core.affine_weight(packed, scales, scales, 4, 32)
    x = rng.normal(size=(rows, a.hidden)).astype(np.float32)
    x = (x.view(np.uint32) >> 16).astype(np.uint16) if ctx.act_bf16 else x
    targets = rng.integers(0, vocab, rows).astype(np.int32)
    weights, dx = np.ones(rows, np.float32), np.zeros((rows, a.hidden), np.float32)

    def head() -> None:
        _core.head_loss(ctx, x, weight, targets, weights, dx)

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident now
    before = memory("VmRSS")
    head()
    grown = memory("VmHWM") - before
    y, dy, d = np.zeros((rows, vocab), x.dtype), np.zeros((rows, vocab), x.dtype), np.zeros_like(x)
    u, linear = np.zeros((rows, 0), np.float32), _core.linears(ctx, [weight])

    def products() -> None:
        _core.linear_forward(ctx, x, linear, [y], u, False)
        _core.linear_backward(ctx, [dy], linear, x, u, d, False)

    products()
    times: dict[str, list[float]] = {"head": [], "products": []}
    for _ in range(a.rounds):
        for name, call in (("head", head), ("products", products)):
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {
        "isa": ctx.isa, "vocabulary": vocab, "supervised_rows": rows,
        "head_ms": 1e3 * statistics.median(times["head"]), "products_ms": 1e3 * statistics.median(times["products"]),
        "ratio": statistics.median(h / p for h, p in zip(times["head"], times["products"], strict=True)),
        "working_memory_mb": grown,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"threads": 2, "tokens": 1024, "hidden": 576, "rounds": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--isa", default="")
    parser.add_argument("--vocabulary", type=int, help="only this one, in this process")
    a = parser.parse_args()
    if a.vocabulary:
        print(json.dumps(measure(a.vocabulary, a)))
        return
    for vocab in VOCABULARIES:  # a process each: peak memory only grows
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--vocabulary", str(vocab)], check=True, env=os.environ)


if __name__ == "__main__":
    main()
