"""Decoding with a weight, and looking up its rows, against float64 products of the operands that the ISA multiplies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsft import _core
from tests.kernels.linears import FORMS, Group, check, sum_eps
from tests.kernels.matrices import make
from tests.kernels.numerics import BF16_EPS, F32_EPS, from_act, to_act

ODD = 611  # columns that fill no whole vector, which only dense weights may have


def decoded(ctx: Any, form: str, x: np.ndarray) -> np.ndarray:
    """``x`` as decoding multiplies it, float64: weights of 4 and 8 bits in bfloat16, where the units are."""
    return from_act(ctx, to_act(ctx, x)) if form.startswith(("4x", "8x")) else x.astype(np.float64)


@pytest.mark.parametrize(
    ("form", "M", "K"),
    [
        *((form, 3, 640) for form in FORMS),
        *(("4x32", M, 640) for M in range(1, 17)),
        *(("5x32", M, K) for M in (1, 3, 16) for K in (576, 1152)),  # whole spans of a reader on AVX2
        *((form, M, 1072) for form in ("4x16", "8x16") for M in (1, 4, 5, 16)),  # the last block of a row is not whole
        *(("4x32", M, 96) for M in (2, 16)),
        *((form, M, ODD) for form in ("f32", "f16", "bf16") for M in (1, 3, 5, 16)),
    ],
)
def test_decode(ctx: _core.Context, form: str, M: int, K: int) -> None:
    group = Group.make(ctx, 13, M, K, form, [130, 33], [8, 0])
    x = np.random.default_rng(14).normal(size=(M, K)).astype(np.float32)
    outs = [np.full((M, w.shape[0]), np.nan, np.float32) for w in group.weights]
    _core.linear_decode(ctx, x, group.linears, outs)
    for case, a, b, scale, out in zip(group.cases, group.a, group.b, group.scales, outs, strict=True):
        w, x64 = case.exact.astype(np.float64), x.astype(np.float64)
        y, size = decoded(ctx, form, x) @ w.T, np.abs(x64) @ np.abs(w).T
        if a is not None and b is not None:
            y, size = y + scale * (x64 @ a.T) @ b, size + scale * (np.abs(x64) @ np.abs(a).T) @ np.abs(b)
        check(out, y, sum_eps(K + 8) * size)


@pytest.mark.parametrize("form", ["4x32", "4x16", "8x32", "8x64", "f32"])
def test_decoding_loses_no_more_than_sums_of_floats(ctx: _core.Context, form: str) -> None:
    """The bound above is of the worst case. Of this many results the typical error is what float32 leaves, whatever the units multiply:
    with x in integers of 16 bits it would be 1.6e-5 of the results' spread."""
    group = Group.make(ctx, 23, 5, 640, form, [1000], [0])
    x = np.random.default_rng(24).normal(size=(5, 640)).astype(np.float32)
    out = np.empty((5, 1000), np.float32)
    _core.linear_decode(ctx, x, group.linears, [out])
    y = decoded(ctx, form, x) @ group.cases[0].exact.astype(np.float64).T
    assert (out - y).std() < 5e-7 * y.std()


@pytest.mark.parametrize("form", FORMS)
def test_decoding_does_not_depend_on_what_is_decoded_beside_it(ctx: _core.Context, form: str) -> None:
    group = Group.make(ctx, 17, 16, 640, form, [70], [8])
    x = np.random.default_rng(18).normal(size=(16, 640)).astype(np.float32)

    def decode(rows: np.ndarray) -> np.ndarray:
        out = np.full((len(rows), 70), np.nan, np.float32)
        _core.linear_decode(ctx, rows, group.linears, [out])
        return out

    alone = np.concatenate([decode(x[i : i + 1]) for i in range(16)])
    for M in (2, 3, 4, 7, 11, 16):
        np.testing.assert_array_equal(decode(x[:M]), alone[:M])


@pytest.mark.parametrize("form", ["4x32", "8x64", "4x16", "f32"])
def test_decoding_keeps_small_inputs_beside_large_ones(ctx: _core.Context, form: str) -> None:
    """A few inputs thousands of times as large as the others, as language models have them: they don't round away what
    the small ones of other groups add, as one scale for a whole row of integers would."""
    group = Group.make(ctx, 19, 2, 640, form, [70], [0])
    small = np.random.default_rng(20).normal(size=(2, 640)).astype(np.float32)
    large = np.zeros_like(small)
    large[:, 128:132] = [4000, -3000, 2000, -1000]
    w = group.cases[0].exact.astype(np.float64)

    def decode(x: np.ndarray) -> np.ndarray:
        out = np.empty((2, 70), np.float32)
        _core.linear_decode(ctx, x, group.linears, [out])
        return out

    x = small + large
    check(decode(x), decoded(ctx, form, x) @ w.T, sum_eps(648) * (np.abs(x.astype(np.float64)) @ np.abs(w).T))
    small[:, 128:256] = 0  # now they are another group, whatever its size
    exact = small.astype(np.float64) @ w.T
    error = decode(small + large).astype(np.float64) - decode(large) - exact
    assert error.std() < (BF16_EPS if ctx.act_bf16 else 2e-4) * exact.std()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["4x32", "8x64", "5x32", "f32"])
def test_decoding_does_not_hide_what_is_not_a_number(ctx: _core.Context, form: str, bad: float) -> None:
    group = Group.make(ctx, 21, 3, 640, form, [70], [0])
    x = np.random.default_rng(22).normal(size=(3, 640)).astype(np.float32)
    x[1, 77] = bad
    x[2] = 0
    out = np.empty((3, 70), np.float32)
    _core.linear_decode(ctx, x, group.linears, [out])
    assert np.isfinite(out[0]).all() and (out[2] == 0).all()
    assert not np.isfinite(out[1][group.cases[0].exact[:, 77] != 0]).any()


@pytest.mark.parametrize("form", FORMS)
def test_embed(ctx: _core.Context, form: str) -> None:
    case = make(np.random.default_rng(15), form, 9, 1408)
    tokens = np.array([0, 8, 3, 3, 7], np.int32)
    out = np.full((5, 1408), np.nan, np.float32)
    _core.embed(ctx, case.weight, tokens, out)
    np.testing.assert_allclose(out, case.exact[tokens], rtol=2 * F32_EPS, atol=4 * F32_EPS)
