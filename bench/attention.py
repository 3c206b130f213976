"""Attention, forward and backward, beside PyTorch's scaled_dot_product_attention; prints one JSON object.

    python bench/attention.py [--torch-python PATH] [--torch-dtype bf16|f32] [--isa NAME] [--threads 2]

The sides alternate round by round in one run, so that a busy machine slows both. PyTorch lives in its own environment and
process (this file again, with --serve). Times are milliseconds of one call, medians; ratio = theirs / ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEADS, KV_HEADS, HEAD_SIZE = 9, 3, 64
CASES = {"1 x 2048": (1, 2048), "32 x 64": (32, 64), "4 x 512": (4, 512), "100 x 20": (100, 20)}
TREE = "57 shared + 32 x 20"  # PyTorch, which knows no shared prefix, is given 32 separate rows of 77


def ours(isa: str, threads: int) -> dict[str, tuple[Any, Any]]:
    """Name -> (forward, backward), closures over ready arrays."""
    import numpy as np

    from localsft import _core

    ctx = _core.Context(isa, threads)
    act = np.uint16 if ctx.act_bf16 else np.float32

    def closures(lengths: list[int], parents: list[int]) -> tuple[Any, Any]:
        T = sum(lengths)
        rng = np.random.default_rng(0)

        def stored(heads: int) -> np.ndarray:
            x = rng.normal(size=(T, heads * HEAD_SIZE)).astype(np.float32)
            return x if act is np.float32 else (x.view(np.uint32) >> 16).astype(np.uint16)

        q, k, v, d_out = stored(HEADS), stored(KV_HEADS), stored(KV_HEADS), stored(HEADS)
        out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
        lse = np.zeros((T, HEADS), np.float32)
        rows, starts = np.arange(T, dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tree = (rows, starts, np.array(parents, np.int32))
        shape = (HEADS, KV_HEADS, HEAD_SIZE**-0.5)
        return (
            lambda: _core.attention(ctx, q, k, v, *tree, out, lse, *shape),
            lambda: _core.attention_backward(ctx, q, k, v, out, lse, d_out, *tree, dq, dk, dv, *shape),
        )

    sides = {name: closures([n] * count, [-1] * count) for name, (count, n) in CASES.items()}
    sides[TREE] = closures([57] + [20] * 32, [-1] + [0] * 32)
    return sides


def serve(dtype: str, threads: int) -> None:
    """The PyTorch side: reads 'case part repeats' lines, answers with milliseconds a call."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    torch.set_num_threads(threads)
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    sides = {}
    for name, (count, n) in {**CASES, TREE: (32, 77)}.items():

        def tensor(heads: int, count: int = count, n: int = n) -> torch.Tensor:  # laid out (batch, tokens, heads, E), as a model's are
            x = torch.randn(count, n, heads, HEAD_SIZE, dtype=kind).transpose(1, 2)
            return x.detach().requires_grad_(True)

        q, k, v = tensor(HEADS), tensor(KV_HEADS), tensor(KV_HEADS)
        wide_k, wide_v = tensor(HEADS), tensor(HEADS)
        d_out = tensor(HEADS).detach()

        # Grouped heads either inside the operator or already repeated (whose cost is not counted); the faster one stands.
        def grouped(q: Any = q, k: Any = k, v: Any = v) -> Any:
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def repeated(q: Any = q, k: Any = wide_k, v: Any = wide_v) -> Any:
            return scaled_dot_product_attention(q, k, v, is_causal=True)

        def backward_of(forward: Any, inputs: tuple[Any, ...], d_out: Any = d_out) -> Any:
            result = forward()
            return lambda: torch.autograd.grad(result, inputs, d_out, retain_graph=True)

        sides[name] = (
            [grouped, repeated],
            [backward_of(grouped, (q, k, v)), backward_of(repeated, (q, wide_k, wide_v))],
        )
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        name, part, repeats = json.loads(line)
        times = []
        for function in sides[name][part]:
            with torch.set_grad_enabled(part == 1):
                times.append(measure(function, repeats))
        print(json.dumps(times), flush=True)


def measure(function: Any, repeats: int) -> float:
    """Milliseconds of one call, mean over `repeats` calls in a row after one to warm up."""
    function()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats * 1e3


def visible_pairs(name: str) -> int:
    """(query, key) pairs that attention must look at."""
    if name == TREE:
        return 57 * 58 // 2 + 32 * (20 * 57 + 20 * 21 // 2)
    count, n = CASES[name]
    return count * n * (n + 1) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="a Python that has PyTorch; without it only our side runs")
    parser.add_argument("--isa", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", nargs="*", help="some of the cases")
    parser.add_argument("--torch-dtype", choices=["bf16", "f32"], help="of PyTorch's side; without it that of our activations")
    parser.add_argument("--serve", choices=["bf16", "f32"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.threads)
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from localsft import _core

    ctx = _core.Context(args.isa, 1)
    sides = ours(args.isa, args.threads)
    peer = None
    version = None
    if args.torch_python:
        dtype = args.torch_dtype or ("bf16" if ctx.act_bf16 else "f32")
        command = [args.torch_python, __file__, "--serve", dtype, "--threads", str(args.threads)]
        peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert peer.stdin is not None
        assert peer.stdout is not None
        version = peer.stdout.readline().strip()
    report: dict[str, Any] = {
        "what": "attention, ms a call (median)", "isa": ctx.isa, "threads": args.threads, "rounds": args.rounds, "torch": version,
        "heads": HEADS, "kv_heads": KV_HEADS, "head_size": HEAD_SIZE, "cases": {},
    }  # fmt: skip
    for name, parts in sides.items():
        if args.cases and name not in args.cases:
            continue
        mine: list[list[float]] = [[], []]
        theirs: list[list[list[float]]] = [[], []]
        repeats = max(1, int(30 / max(measure(parts[1], 1), 0.05)))
        for _ in range(args.rounds):
            for part in (0, 1):
                mine[part].append(measure(parts[part], repeats))
                if peer is not None:
                    print(json.dumps([name, part, repeats]), file=peer.stdin, flush=True)
                    theirs[part].append(json.loads(peer.stdout.readline()))
        flops = 4 * HEADS * HEAD_SIZE * visible_pairs(name)
        result: dict[str, Any] = {}
        for part, (label, work) in enumerate((("forward", 1.0), ("backward", 2.5))):
            median = statistics.median(mine[part])
            result[label] = {"ours": round(median, 3), "gflops": round(work * flops / median / 1e6, 1)}
            if peer is not None:
                variants = [statistics.median(column) for column in zip(*theirs[part], strict=True)]
                best = variants.index(min(variants))
                ratios = [t[best] / m for t, m in zip(theirs[part], mine[part], strict=True)]
                result[label] |= {
                    "torch_grouped": round(variants[0], 3), "torch_repeated": round(variants[1], 3),
                    "ratio": round(statistics.median(ratios), 2), "lowest": round(min(ratios), 2), "highest": round(max(ratios), 2),
                }  # fmt: skip
        report["cases"][name] = result
    if peer is not None:
        peer.stdin.close()
        peer.wait()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
