"""The linear operations against float64 products of exactly the operands that the ISA multiplies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from localsft import _core
from tests.kernels.linears import FORMS, Group
from tests.kernels.matrices import make
from tests.kernels.numerics import central_difference, empty_act, to_act


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
