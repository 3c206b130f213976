"""GEMM with 4-bit affine weights (dequantization included) beside PyTorch's dense matmul and the machine's own ceiling.

    python bench/gemm.py --torch-python PATH_TO_A_PYTHON_WITH_TORCH [--isa avx512bf16 avx512 avx2] [--rows 1024 224]

Sides alternate in short turns, so that both meet the same disturbances. Prints one JSON object a line: GFLOP/s of the
medians and of the fastest runs of either side, their ratios, and the share of the ISA's register-only peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from localsft import _core

SHAPES = [(576, 1536), (1536, 576), (2048, 5632), (5632, 2048), (576, 49152)]  # K, N of y (M, N) = x (M, K)·Wᵀ


class Torch:
    """The other side, in its own process and interpreter."""

    def __init__(self, python: str, threads: int) -> None:
        script = Path(__file__).with_name("torch_matmul.py")
        self.process = subprocess.Popen([python, str(script), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def times(self, **ask: Any) -> dict[str, list[float]]:
        assert self.process.stdin is not None
        print(json.dumps(ask), file=self.process.stdin, flush=True)
        return self.read()


def activations(ctx: _core.Context, rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=shape).astype(np.float32)
    return (x.view(np.uint32) >> 16).astype(np.uint16) if ctx.act_bf16 else x


def operations(ctx: _core.Context, M: int, K: int, N: int) -> dict[str, Callable[[], None]]:
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 2**32, (N, K // 8), dtype=np.uint32)
    scales = (rng.normal(size=(N, K // 32)) / 64).astype(np.float16)
    linear = _core.linears(ctx, [_core.affine_weight(packed, scales, scales, 4, 32)])
    x, dy, u = activations(ctx, rng, M, K), activations(ctx, rng, M, N), np.empty((M, 0), np.float32)
    y, dx = np.empty_like(dy), np.empty_like(x)
    return {
        "forward": lambda: _core.linear_forward(ctx, x, linear, [y], u, False),
        "backward": lambda: _core.linear_backward(ctx, [dy], linear, x, u, dx, False),
    }


def measure(isa: str, M: int, K: int, N: int, other: Torch | None, threads: int, seconds: float) -> list[dict[str, Any]]:
    ctx = _core.Context(isa, threads)
    ours: dict[str, list[float]] = {"forward": [], "backward": []}
    theirs: dict[str, list[float]] = {"forward": [], "backward": []}
    peaks, run = [], operations(ctx, M, K, N)
    for f in run.values():
        f()
    started = time.perf_counter()
    while len(peaks) < 5 or time.perf_counter() - started < seconds:
        peaks.append(_core.peak_flops(ctx) / 1e9)
        for name, f in run.items():
            for _ in range(3):
                begin = time.perf_counter()
                f()
                ours[name].append(time.perf_counter() - begin)
        if other is not None:
            for name, times in other.times(dtype="bfloat16" if ctx.act_bf16 else "float32", M=M, N=N, K=K, repeats=3).items():
                theirs[name] += times
            time.sleep(0.01)  # its threads spin for a while
    results = []
    for name in run:
        gflop = 2 * M * N * K / 1e9
        row: dict[str, Any] = {"isa": isa, "op": name, "M": M, "K": K, "N": N, "peak": round(max(peaks), 1)}
        for side, times in (("ours", ours[name]), ("torch", theirs[name])):
            if times:
                row[side] = {"median": round(gflop / statistics.median(times), 1), "best": round(gflop / min(times), 1)}
        row["of_peak"] = round(row["ours"]["best"] / max(peaks), 3)
        if other is not None:
            row["ratio"] = {k: round(row["ours"][k] / row["torch"][k], 3) for k in ("median", "best")}
        results.append(row)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="an interpreter that can import torch; without it only our side is measured")
    parser.add_argument("--isa", nargs="+", default=[_core.fastest_isa()])
    parser.add_argument("--rows", nargs="+", type=int, default=[1024])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, for each shape")
    args = parser.parse_args()
    other = Torch(args.torch_python, args.threads) if args.torch_python else None
    print(json.dumps({"threads": args.threads, **(other.about if other else {})}), file=sys.stderr)
    for isa in args.isa:
        for M in args.rows:
            for K, N in SHAPES:
                for row in measure(isa, M, K, N, other, args.threads, args.seconds):
                    print(json.dumps(row), flush=True)


main()
