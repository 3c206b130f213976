"""The linear operations against float64 products of exactly the operands that the ISA multiplies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from localsft import _core
from tests.kernels.matrices import Case, make, multiplied
from tests.kernels.numerics import BF16_EPS, F32_EPS, act_eps, central_difference, empty_act, from_act, to_act

AFFINE = [f"{bits}x{group}" for bits in range(2, 9) for group in (32, 64, 128)]
FORMS = ["f32", "f16", "bf16", *AFFINE, "4x16", "4x32:f32", "4x64:bf16", "5x32:bf16"]


def sum_eps(terms: int) -> float:
    """A bound of the relative error of a float32 sum of products, in units of Σ|product|: a rounding a product and a sum."""
    return 2 * (terms + 4) * F32_EPS


def rank_eps(ctx: Any) -> float:
    """How far the low-rank values are rounded before they are multiplied again (du, scale·u)."""
    return 2 * BF16_EPS if ctx.act_bf16 else 4 * F32_EPS


def check(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    error = np.abs(actual - expected)
    worst = np.unravel_index(np.argmax(error - bound), error.shape) if error.size else ()
    assert np.all(error <= bound), f"at {worst}: {actual[worst]} for {expected[worst]}, {np.count_nonzero(~(error <= bound))} wrong"


@dataclass
class Group:
    """A linear group with random inputs; ``ranks[i]`` 0: no adapter."""

    ctx: Any
    cases: list[Case]
    x: np.ndarray
    a: list[np.ndarray | None]
    b: list[np.ndarray | None]
    scales: list[float]

    @staticmethod
    def make(ctx: Any, seed: int, M: int, K: int, form: str, sizes: list[int], ranks: list[int]) -> Group:
        rng = np.random.default_rng([seed, M, K])
        return Group(
            ctx,
            [make(rng, form, n, K) for n in sizes],
            to_act(ctx, rng.normal(size=(M, K))),
            [rng.normal(size=(r, K)).astype(np.float32) if r else None for r in ranks],
            [rng.normal(size=(r, n)).astype(np.float32) if r else None for r, n in zip(ranks, sizes, strict=True)],
            [0.5 + 0.25 * i for i in range(len(sizes))],
        )

    @property
    def weights(self) -> list[_core.Weight]:
        return [c.weight for c in self.cases]

    @property
    def linears(self) -> _core.Linears:
        return _core.linears(self.ctx, self.weights, self.a, self.b, self.scales)

    @property
    def rank(self) -> int:
        return sum(a.shape[0] for a in self.a if a is not None)

    def forward(self, float_out: bool = False, add: bool = False, x_lora: np.ndarray | None = None) -> tuple[list[np.ndarray], np.ndarray]:
        M = self.x.shape[0]
        u = np.full((M, self.rank), np.nan, np.float32)
        shapes = [(M, w.shape[0]) for w in self.weights]
        if add:
            outs = [np.full(s, 1.5, np.float32) for s in shapes]
        else:
            outs = [np.full(s, np.nan, np.float32) if float_out else empty_act(self.ctx, *s) for s in shapes]
        _core.linear_forward(self.ctx, self.x, self.linears, outs, u, add, x_lora)
        return outs, u

    def check_forward(self, float_out: bool = False, add: bool = False, x_lora: np.ndarray | None = None) -> None:
        ctx, x = self.ctx, from_act(self.ctx, self.x)
        K = x.shape[1]
        outs, u = self.forward(float_out, add, x_lora)
        source, column = x if x_lora is None else from_act(ctx, x_lora), 0
        for case, a, b, scale, out in zip(self.cases, self.a, self.b, self.scales, outs, strict=True):
            w = multiplied(ctx, case.exact)
            y, size, terms = x @ w.T, np.abs(x) @ np.abs(w).T, K
            if a is not None and b is not None:
                a64, b64 = multiplied(ctx, a), multiplied(ctx, b)
                u_i = u[:, column : column + a.shape[0]]
                check(u_i, source @ a64.T, sum_eps(K) * (np.abs(source) @ np.abs(a64).T))
                low = multiplied(ctx, np.float32(scale) * u_i)
                y, size, terms = y + low @ b64, size + np.abs(low) @ np.abs(b64), K + a.shape[0]
                column += a.shape[0]
            actual = out.astype(np.float64) if float_out or add else from_act(ctx, out)
            store = 0.0 if float_out or add else 1.01 * act_eps(ctx)  # of a sum that is itself rounded
            check(actual, y + 1.5 * add, sum_eps(terms) * (size + 1.5 * add) + store * np.abs(y))
        assert column == u.shape[1]

    def dys(self) -> list[np.ndarray]:
        rng = np.random.default_rng([99, *self.x.shape])
        return [to_act(self.ctx, rng.normal(size=(self.x.shape[0], w.shape[0]))) for w in self.weights]

    def backward(
        self, dys: list[np.ndarray], u: np.ndarray, dx: np.ndarray | None, add: bool, dx_lora: np.ndarray | None = None
    ) -> tuple[list[np.ndarray | None], list[np.ndarray | None]]:
        d_a = [None if a is None else np.full_like(a, 0.25) for a in self.a]
        d_b = [None if b is None else np.full_like(b, -0.5) for b in self.b]
        linears = _core.linears(self.ctx, self.weights, self.a, self.b, self.scales, d_a, d_b)
        _core.linear_backward(self.ctx, dys, linears, self.x, u, dx, add, dx_lora)
        return d_a, d_b

    def check_backward(self, float_dx: bool = True, add: bool = False, split: bool = False) -> None:
        ctx, x = self.ctx, from_act(self.ctx, self.x)
        M, K = x.shape
        _, u = self.forward()
        dys = self.dys()
        dx = np.full((M, K), 2.0 if add else np.nan, np.float32) if float_dx else empty_act(ctx, M, K)
        dx_lora = np.full((M, K), np.nan, np.float32) if split else None
        d_a, d_b = self.backward(dys, u, dx, add, dx_lora)

        main, main_size, low, low_size, terms, column = (np.zeros((M, K)), np.zeros((M, K)), np.zeros((M, K)), np.zeros((M, K)), 0, 0)
        for i, case in enumerate(self.cases):
            dy, w = from_act(ctx, dys[i]), multiplied(ctx, case.exact)
            main, main_size, terms = main + dy @ w, main_size + np.abs(dy) @ np.abs(w), terms + w.shape[0]
            a, b = self.a[i], self.b[i]
            if a is None or b is None:
                continue
            a64, b64, scale = multiplied(ctx, a), multiplied(ctx, b), np.float64(np.float32(self.scales[i]))
            du, du_size = scale * (dy @ b64.T), scale * (np.abs(dy) @ np.abs(b64).T)
            du_error = sum_eps(w.shape[0]) * du_size + rank_eps(ctx) * np.abs(du)
            low, low_size = (
                low + du @ a64,
                low_size + np.abs(du) @ np.abs(a64) * (rank_eps(ctx) + sum_eps(terms + self.rank)) + du_error @ np.abs(a64),
            )
            s_u = scale * u[:, column : column + a.shape[0]].astype(np.float64)
            column += a.shape[0]
            actual_a, actual_b = d_a[i], d_b[i]
            assert actual_a is not None and actual_b is not None
            check(actual_a, 0.25 + du.T @ x, (du_error + sum_eps(M) * np.abs(du)).T @ np.abs(x) + sum_eps(M))
            check(actual_b, -0.5 + s_u.T @ dy, (rank_eps(ctx) + sum_eps(M)) * (np.abs(s_u).T @ np.abs(dy)) + sum_eps(M))
        bound = sum_eps(terms + self.rank) * main_size
        if split:
            assert dx_lora is not None
            check(dx_lora, low, low_size + sum_eps(self.rank) * np.abs(low))
        else:
            main, bound = main + low, bound + low_size
        actual = dx.astype(np.float64) if float_dx else from_act(ctx, dx)
        store = 0.0 if float_dx else 1.01 * act_eps(ctx)
        check(actual, main + 2.0 * add, bound + 2 * sum_eps(terms) * add + store * np.abs(main))


# --- every form of weight, both orientations -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_forms(ctx: _core.Context, form: str) -> None:
    group = Group.make(ctx, 1, 13, 384, form, [70], [0])
    group.check_forward()
    group.check_backward()


@pytest.mark.parametrize("form", [form for form in FORMS if form[:2] in ("4x", "8x")])
def test_whole_panels(ctx: _core.Context, form: str) -> None:
    """Widths that packing by groups takes, and beside them one that it does not; a reduction of an odd number of rows."""
    for K in (384, 1152):  # one span of scales, and two
        group = Group.make(ctx, 22, 13, K, form, [240, 161], [5, 0])
        group.check_forward()
        group.check_backward()


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_row_that_does_not_exist_is_zero(ctx: _core.Context, bits: int) -> None:
    """A pair of rows of which one is past the end is no number times 0 where memory holds what an earlier weight left there."""
    K, M = 384, 3
    dx, u = np.empty((M, K), np.float32), np.empty((M, 0), np.float32)
    for rows, scale in ((16, np.nan), (1, 1.0)) * 2:
        scales = np.full((rows, K // 32), scale, np.float16)
        weight = _core.affine_weight(np.zeros((rows, K * bits // 32), np.uint32), scales, scales, bits, 32)
        dy = to_act(ctx, np.ones((M, rows)))
        _core.linear_backward(ctx, [dy], _core.linears(ctx, [weight]), empty_act(ctx, M, K), u, dx, False)
        assert np.isnan(dx).all() if rows == 16 else (dx == 1).all()


@pytest.mark.parametrize("K", [1, 2, 7, 16, 31, 33, 49, 130])
@pytest.mark.parametrize("form", ["f32", "bf16"])
def test_odd_widths(ctx: _core.Context, form: str, K: int) -> None:
    group = Group.make(ctx, 2, 5, K, form, [K, 3], [2, 0])
    group.check_forward()
    group.check_backward()


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 131])
@pytest.mark.parametrize("N", [1, 24, 33, 96])
def test_odd_heights(ctx: _core.Context, M: int, N: int) -> None:
    group = Group.make(ctx, 3, M, 96, "4x32", [N], [3])
    group.check_forward()
    group.check_backward()


# --- groups, adapters, outputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [[8, 8, 8], [8, 0, 16], [1, 2, 3], [64, 17, 0], [13, 5, 30], [0, 0, 0]])
def test_groups(ctx: _core.Context, ranks: list[int]) -> None:
    group = Group.make(ctx, 4, 67, 192, "4x32", [192, 64, 65], ranks)
    group.check_forward()
    group.check_forward(float_out=True)
    group.check_forward(add=True)
    group.check_forward(x_lora=to_act(ctx, np.random.default_rng(5).normal(size=group.x.shape)))
    group.check_backward()
    group.check_backward(float_dx=False)
    group.check_backward(add=True)
    group.check_backward(split=True)


@pytest.mark.parametrize("form", ["4x32", "bf16"])
def test_long_reductions(ctx: _core.Context, form: str) -> None:
    """More columns (and then rows) than are packed at once: partial sums go through memory."""
    wide = Group.make(ctx, 6, 11, 9600, form, [37], [4])
    wide.check_forward()
    wide.check_forward(add=True)
    tall = Group.make(ctx, 7, 11, 64, form, [9600, 40], [4, 4])
    tall.check_backward()
    tall.check_backward(float_dx=False)
    slabs = Group.make(ctx, 21, 11, 64, form, [4000, 9700, 40], [4, 0, 3])  # cut within members, whose du are sums of slabs
    slabs.check_backward()
    slabs.check_backward(float_dx=False)
    slabs.check_backward(add=True)
    slabs.check_backward(split=True)


def test_many_rows(ctx: _core.Context) -> None:
    """More rows than are packed at once."""
    group = Group.make(ctx, 8, 2055, 64, "4x32", [40], [4])
    group.check_forward()
    group.check_backward()


@pytest.mark.parametrize("N", [[40, 50], [4000, 9700]])
def test_without_dx(ctx: _core.Context, N: list[int]) -> None:
    group = Group.make(ctx, 9, 21, 64, "4x32", N, [4, 8])
    _, u = group.forward()
    dys = group.dys()
    dx = np.empty((21, 64), np.float32)
    with_dx, without = group.backward(dys, u, dx, False), group.backward(dys, u, None, False)
    for one, other in zip([*with_dx[0], *with_dx[1]], [*without[0], *without[1]], strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_rows(ctx: _core.Context) -> None:
    group = Group.make(ctx, 10, 0, 64, "4x32", [40], [4])
    group.check_forward()
    group.check_backward()


@pytest.mark.parametrize(
    ("M", "K", "N"), [(1, 320, [320, 100, 7]), (30, 320, [320, 100, 7]), (517, 320, [320, 100, 7]), (67, 64, [4000, 9700, 7])]
)
def test_threads_bitwise(isa: str, M: int, K: int, N: list[int]) -> None:
    results = []
    for threads in (1, 2, 3):
        group = Group.make(_core.Context(isa, threads), 11, M, K, "4x32", N, [8, 3, 0])
        outs, u = group.forward()
        dx = np.empty((M, K), np.float32)
        d_a, d_b = group.backward(group.dys(), u, dx, False)
        results.append([*outs, u, dx, d_a[0], d_a[1], d_b[0], d_b[1]])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("N", [[320, 100], [4000, 9700]])
def test_rows_do_not_depend_on_those_beside_them(ctx: _core.Context, N: list[int]) -> None:
    """Neither on how many there are: rows are cut into blocks and tiles, and none of that shows."""
    group = Group.make(ctx, 22, 1100, 64, "4x32", N, [8, 3])
    dys, (outs, u) = group.dys(), group.forward()
    dx = np.empty((1100, 64), np.float32)
    group.backward(dys, u, dx, False)
    for rows in (slice(0, 1), slice(300, 613), slice(1093, 1100)):
        part = replace(group, x=group.x[rows].copy())
        part_outs, part_u = part.forward()
        part_dx = np.empty_like(dx[rows])
        part.backward([dy[rows].copy() for dy in dys], part_u, part_dx, False)
        for whole, alone in zip([*outs, u, dx], [*part_outs, part_u, part_dx], strict=True):
            np.testing.assert_array_equal(whole[rows], alone)


def test_backward_is_the_gradient() -> None:
    """The float64 formulas that the checks above use, against central differences."""
    rng = np.random.default_rng(12)
    x, w, a, b = rng.normal(size=(3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(2, 5)), rng.normal(size=(2, 4))
    dy, scale = rng.normal(size=(3, 4)), 0.7

    def loss(_: np.ndarray) -> float:
        return float((dy * (x @ w.T + scale * (x @ a.T) @ b)).sum())

    du = scale * dy @ b.T
    np.testing.assert_allclose(dy @ w + du @ a, central_difference(loss, x), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(du.T @ x, central_difference(loss, a), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scale * (x @ a.T).T @ dy, central_difference(loss, b), rtol=1e-6, atol=1e-7)


# --- decoding and embedding ----------------------------------------------------------------------------------------------


ODD = 611  # columns that fill no whole vector, which only dense weights may have


def decoded(ctx: Any, form: str, x: np.ndarray) -> np.ndarray:
    """``x`` as decoding multiplies it. Weights of 4 and 8 bits are multiplied with bfloat16, or, on AVX2, with 16-bit
    integers times a scale for each group (or block of 32 bytes of the weight, where that is smaller)."""
    if not form.startswith(("4x", "8x")):
        return x.astype(np.float64)
    if ctx.isa != "avx2":
        return from_act(ctx, to_act(ctx, x))
    bits, group = (int(n) for n in form.partition(":")[0].split("x"))
    groups = x.reshape(len(x), -1, min(group, 256 // bits))
    largest = np.abs(groups).max(axis=2, keepdims=True)
    integers = np.rint(groups * (np.float32(32767) / largest)).astype(np.float64)
    return (integers * (largest / np.float32(32767))).reshape(x.shape)


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
    the small ones of other groups add. (One scale for a whole row of 16-bit integers would be off by 2 %.)"""
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
    assert error.std() < (BF16_EPS if ctx.act_bf16 else 1e-3) * exact.std()


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


# --- what the bindings refuse ----------------------------------------------------------------------------------------------


def test_refusals(ctx: _core.Context) -> None:
    rng = np.random.default_rng(16)
    packed, half = np.zeros((4, 8), np.uint32), np.zeros((4, 2), np.float16)
    with pytest.raises(ValueError, match="bits"):
        _core.affine_weight(packed, half, half, 9, 32)
    with pytest.raises(ValueError, match="whole groups"):
        _core.affine_weight(packed, half, half, 4, 128)
    with pytest.raises(ValueError, match="shape"):
        _core.affine_weight(packed, half[:, :1].copy(), half[:, :1].copy(), 4, 32)
    with pytest.raises(TypeError, match="scales"):
        _core.affine_weight(packed, half.astype(np.float64), half, 4, 32)
    with pytest.raises(TypeError, match="array"):
        _core.dense_weight(np.zeros((2, 2), np.uint16))
    weight = make(rng, "4x32", 10, 64).weight
    with pytest.raises(ValueError, match="tokens"):
        _core.embed(ctx, weight, np.array([10], np.int32), np.empty((1, 64), np.float32))
    x, out = to_act(ctx, np.zeros((2, 64))), np.empty((2, 10), np.float32)
    no_u, linear = np.empty((2, 0), np.float32), _core.linears(ctx, [weight])
    with pytest.raises(ValueError, match="outs"):
        _core.linear_forward(ctx, x, linear, [out[:1]], no_u, False)
    with pytest.raises(ValueError, match="x has shape"):
        _core.linear_forward(ctx, x[:, :32].copy(), linear, [out], no_u, False)
    with pytest.raises(ValueError, match="as many columns"):
        _core.linears(ctx, [weight, make(rng, "4x32", 10, 96).weight])
    a, b = np.zeros((3, 64), np.float32), np.zeros((3, 10), np.float32)
    with pytest.raises(ValueError, match="both be given or both be None"):
        _core.linears(ctx, [weight], [a], [None], [1.0])
    with pytest.raises(ValueError, match="for all adapters or for none"):
        _core.linears(ctx, [weight], [a], [b], [1.0], [a.copy()], [None])
    with pytest.raises(ValueError, match="for all adapters or for none"):
        _core.linears(ctx, [weight], d_lora_a=[a.copy()], d_lora_b=[b.copy()])
    with pytest.raises(ValueError, match="d_lora_b has shape"):
        _core.linears(ctx, [weight], [a], [b], [1.0], [a.copy()], [b[:, :9].copy()])
    adapted, u = _core.linears(ctx, [weight], [a], [b], [1.0]), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="no place for the adapters' gradients"):
        _core.linear_backward(ctx, [empty_act(ctx, 2, 10)], adapted, x, u, None, False)
    with pytest.raises(ValueError, match="16 rows"):
        _core.linear_decode(ctx, np.zeros((17, 64), np.float32), linear, [np.empty((17, 10), np.float32)])
    if ctx.act_bf16:
        with pytest.raises(ValueError, match="float32 when add"):
            _core.linear_forward(ctx, x, linear, [empty_act(ctx, 2, 10)], no_u, True)
