"""A program that runs the linear operations of one ISA on arrays that end where memory that can't be read begins.

    python -m tests.kernels.guarded avx2

A weight may be the end of a mapped file. A kernel that reads beyond one ends this process.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np

from localsft import _core
from tests.kernels.matrices import make
from tests.kernels.numerics import empty_act, to_act

AFFINE = [f"{bits}x{group}:{scales}" for bits in range(2, 9) for group in (16, 32, 64, 128) for scales in ("f16", "bf16", "f32")]
DENSE = ["f32", "f16", "bf16"]
ROWS = [16, 48, 33, 7]
_mappings: list[mmap.mmap] = []  # arrays live as long as the process


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy that ends at a page without access."""
    page = mmap.PAGESIZE
    size = -(-max(array.nbytes, 1) // page) * page
    mapping = mmap.mmap(-1, size + page)
    _mappings.append(mapping)
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(mapping, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy


def use(ctx: Any, rng: np.random.Generator, weight: _core.Weight, n: int, k: int) -> None:
    """Every operation that reads a weight, with an adapter."""
    a, b = (guarded(rng.normal(size=(3, size)).astype(np.float32)) for size in (k, n))
    _core.embed(ctx, weight, guarded(np.array([0, n - 1], np.int32)), guarded(np.empty((2, k), np.float32)))
    d_a, d_b = guarded(np.zeros_like(a)), guarded(np.zeros_like(b))
    linear = _core.linears(ctx, [weight], [a], [b], [1.0], [d_a], [d_b])
    for m in (1, 2, 5, 16):
        x = guarded(rng.normal(size=(m, k)).astype(np.float32))
        _core.linear_decode(ctx, x, linear, [guarded(np.empty((m, n), np.float32))])
    for m in (1, 13):
        x, dy = (guarded(to_act(ctx, rng.normal(size=(m, size)))) for size in (k, n))
        u, out, dx = guarded(np.empty((m, 3), np.float32)), guarded(empty_act(ctx, m, n)), guarded(empty_act(ctx, m, k))
        _core.linear_forward(ctx, x, linear, [out], u, False)
        _core.linear_backward(ctx, [dy], linear, x, u, dx, False)


def main(isa: str) -> None:
    ctx, rng = _core.Context(isa, 1), np.random.default_rng(0)
    cases = [(form, 3 * max(int(form[2:].partition(":")[0]), 32)) for form in AFFINE] + [(form, k) for form in DENSE for k in (37, 64)]
    for n in ROWS:
        for form, k in cases:
            print(form, n, k, flush=True)  # the last line says where the process ended
            use(ctx, rng, make(rng, form, n, k, guarded).weight, n, k)


if __name__ == "__main__":
    main(sys.argv[1])
