"""The element-wise operations against float64 references; each reference backward against central differences."""

from __future__ import annotations

import numpy as np
import pytest

from localsft import _core
from tests.kernels.numerics import F32_EPS, act_eps, central_difference, empty_act, from_act, to_act

SIZES = [(1, 1), (1, 8), (3, 17), (5, 64), (2, 100), (33, 576), (130, 255)]


def rng_for(*key: int) -> np.random.Generator:
    return np.random.default_rng(list(key))


# --- references, float64 ---------------------------------------------------------------------------------------------


def rms_norm_reference(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rms_norm_backward_reference(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    r = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    g, n = dy * weight, x * r
    return r * (g - n * (g * n).mean(-1, keepdims=True))


def rope_reference(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, heads: int) -> np.ndarray:
    rows, half = cos.shape
    low, high = np.split(x.reshape(rows, heads, 2 * half), 2, axis=-1)
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([low * c - high * s, high * c + low * s], -1).reshape(rows, -1)


def swiglu_reference(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate / (1 + np.exp(-gate)) * up


def swiglu_backward_reference(dy: np.ndarray, gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = 1 / (1 + np.exp(-gate))
    return dy * up * s * (1 + gate * (1 - s)), dy * gate * s


def philox_reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python integers (Salmon et al. 2011)."""
    x, k = list(counter), list(key)
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [(b >> 32) ^ x[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ x[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def adamw_reference(
    p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, lr: float, betas: tuple[float, float], eps: float, decay: float, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p = p * (1 - lr * decay)
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


# --- RMS norm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "D"), SIZES)
def test_rms_norm(ctx: _core.Context, M: int, D: int) -> None:
    rng = rng_for(M, D)
    h, weight, eps = rng.normal(size=(M, D)).astype(np.float32) * 3, rng.normal(size=D).astype(np.float32), 1e-5
    saved, rstd, out = empty_act(ctx, M, D), np.empty(M, np.float32), empty_act(ctx, M, D)
    _core.rms_norm(ctx, h, weight, eps, saved, rstd, out)
    np.testing.assert_array_equal(saved, to_act(ctx, h))
    expected = rms_norm_reference(from_act(ctx, saved), weight.astype(np.float64), eps)
    # D squares added in float32, a root, two products, one store.
    np.testing.assert_allclose(from_act(ctx, out), expected, rtol=act_eps(ctx) + (D + 6) * F32_EPS)
    again = empty_act(ctx, M, D)
    _core.rms_norm_again(ctx, saved, weight, rstd, again)
    np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize(("M", "D"), SIZES)
def test_rms_norm_f32(ctx: _core.Context, M: int, D: int) -> None:
    rng = rng_for(M, D, 1)
    h, weight, out = rng.normal(size=(M, D)).astype(np.float32), rng.normal(size=D).astype(np.float32), np.full((M, D), np.nan, np.float32)
    _core.rms_norm_f32(ctx, h, weight, 1e-6, out)
    expected = rms_norm_reference(h.astype(np.float64), weight.astype(np.float64), 1e-6)
    np.testing.assert_allclose(out, expected, rtol=(D + 6) * F32_EPS)


@pytest.mark.parametrize(("M", "D"), SIZES)
def test_rms_norm_backward(ctx: _core.Context, M: int, D: int) -> None:
    rng = rng_for(M, D, 2)
    h, weight, eps = rng.normal(size=(M, D)).astype(np.float32), rng.normal(size=D).astype(np.float32), 1e-5
    dy, before = to_act(ctx, rng.normal(size=(M, D))), rng.normal(size=(M, D)).astype(np.float32)
    saved, rstd, out, dx = empty_act(ctx, M, D), np.empty(M, np.float32), empty_act(ctx, M, D), before.copy()
    _core.rms_norm(ctx, h, weight, eps, saved, rstd, out)
    _core.rms_norm_backward(ctx, dy, saved, weight, rstd, dx)
    x, d, w = from_act(ctx, saved), from_act(ctx, dy), weight.astype(np.float64)
    expected = before + rms_norm_backward_reference(d, x, w, eps)
    # Relative to the terms that are added, which may cancel.
    r = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    terms = np.abs(before) + r * (np.abs(d * w) + np.abs(x * r) * np.abs(d * w * x * r).mean(-1, keepdims=True))
    assert (np.abs(dx - expected) <= (2 * D + 12) * F32_EPS * terms).all()


def test_rms_norm_backward_reference_is_the_gradient() -> None:
    rng = rng_for(3)
    x, w, dy = rng.normal(size=(2, 9)), rng.normal(size=9), rng.normal(size=(2, 9))
    numeric = central_difference(lambda x: float((rms_norm_reference(x, w, 1e-3) * dy).sum()), x)
    np.testing.assert_allclose(rms_norm_backward_reference(dy, x, w, 1e-3), numeric, rtol=1e-7, atol=1e-8)


# --- rotary embedding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "heads", "E"), [(1, 1, 8), (1, 1, 2), (3, 5, 10), (7, 3, 64), (40, 9, 64), (5, 2, 80), (2, 1, 256)])
def test_rope(ctx: _core.Context, M: int, heads: int, E: int) -> None:
    rng = rng_for(M, heads, E)
    x = to_act(ctx, rng.normal(size=(M, heads * E)))
    angle = rng.uniform(-100, 100, size=(M, E // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    turned = x.copy()
    _core.rope(ctx, turned, cos, sin, heads)
    kept, c, s = from_act(ctx, x), cos.astype(np.float64), sin.astype(np.float64)
    # |low·c| + |high·s| for the low half, |high·c| + |low·s| for the high half.
    terms = np.maximum(*(rope_reference(np.abs(kept), np.abs(c), sign * np.abs(s), heads) for sign in (-1, 1)))
    assert (np.abs(from_act(ctx, turned) - rope_reference(kept, c, s, heads)) <= (act_eps(ctx) + 3 * F32_EPS) * terms).all()
    _core.rope(ctx, turned, cos, sin, heads, True)
    assert (np.abs(from_act(ctx, turned) - kept) <= 4 * (act_eps(ctx) + 4 * F32_EPS) * terms.reshape(M, -1).max(1, keepdims=True)).all()


def test_rope_inverse_is_the_gradient() -> None:
    rng = rng_for(4)
    x, dy, angle = rng.normal(size=(2, 12)), rng.normal(size=(2, 12)), rng.normal(size=(2, 3))
    numeric = central_difference(lambda x: float((rope_reference(x, np.cos(angle), np.sin(angle), 2) * dy).sum()), x)
    np.testing.assert_allclose(rope_reference(dy, np.cos(angle), -np.sin(angle), 2), numeric, rtol=1e-7, atol=1e-8)


# --- SwiGLU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "F"), [*SIZES, (40, 1536)])
@pytest.mark.parametrize("in_place", [False, True])
def test_swiglu(ctx: _core.Context, M: int, F: int, in_place: bool) -> None:
    rng = rng_for(M, F, 3)
    gate, up, dy = (to_act(ctx, rng.normal(size=(M, F)) * 4) for _ in range(3))
    out = empty_act(ctx, M, F)
    _core.swiglu(ctx, gate, up, out)
    g, u, d = (from_act(ctx, a) for a in (gate, up, dy))
    rounding = act_eps(ctx) + 16 * F32_EPS  # exp to 4 roundings, amplified by |gate| < 30 only where sigmoid is far below 1
    np.testing.assert_allclose(from_act(ctx, out), swiglu_reference(g, u), rtol=rounding, atol=1e-35)
    d_gate, d_up = (gate, up) if in_place else (empty_act(ctx, M, F), empty_act(ctx, M, F))
    _core.swiglu_backward(ctx, dy, gate, up, d_gate, d_up)
    expected_gate, expected_up = swiglu_backward_reference(d, g, u)
    s = 1 / (1 + np.exp(-g))
    terms = np.abs(d * u) * s * (1 + np.abs(g) * (1 - s))  # 1 + g·(1 - s) may cancel
    assert (np.abs(from_act(ctx, d_gate) - expected_gate) <= rounding * terms + 1e-35).all()
    np.testing.assert_allclose(from_act(ctx, d_up), expected_up, rtol=rounding, atol=1e-35)


def test_swiglu_saturates(ctx: _core.Context) -> None:
    gate = to_act(ctx, np.array([[-1e4, -100, 0, 100, 1e4, np.nan]]))
    up, out = to_act(ctx, np.ones((1, 6))), empty_act(ctx, 1, 6)
    _core.swiglu(ctx, gate, up, out)
    result, g = from_act(ctx, out)[0], from_act(ctx, gate)[0]
    np.testing.assert_allclose(result[:5], [0, 0, 0, g[3], g[4]], rtol=4 * F32_EPS, atol=1e-30)
    assert np.isnan(result[5])


def test_swiglu_backward_reference_is_the_gradient() -> None:
    rng = rng_for(5)
    gate, up, dy = (rng.normal(size=(2, 7)) * 2 for _ in range(3))
    d_gate, d_up = swiglu_backward_reference(dy, gate, up)
    np.testing.assert_allclose(
        d_gate, central_difference(lambda x: float((swiglu_reference(x, up) * dy).sum()), gate), rtol=1e-6, atol=1e-8
    )
    np.testing.assert_allclose(d_up, central_difference(lambda x: float((swiglu_reference(gate, x) * dy).sum()), up), rtol=1e-6, atol=1e-8)


# --- factors of columns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "D"), [*SIZES, (300, 1536)])
def test_scale_columns(ctx: _core.Context, M: int, D: int) -> None:
    rng = rng_for(M, D, 8)
    x, c = to_act(ctx, rng.normal(size=(M, D))), rng.normal(size=D).astype(np.float32)
    out, before = empty_act(ctx, M, D), rng.normal(size=(M, D)).astype(np.float32)
    _core.scale_columns(ctx, x, c, out, False)
    expected = from_act(ctx, x) * c.astype(np.float64)
    np.testing.assert_allclose(from_act(ctx, out), expected, rtol=act_eps(ctx) + F32_EPS)
    added = before.copy()
    _core.scale_columns(ctx, x, c, added, True)
    assert (np.abs(added - (before + expected)) <= 2 * F32_EPS * (np.abs(before) + np.abs(expected))).all()
    _core.scale_columns(ctx, x, c, x, False)
    np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize(("M", "D"), [*SIZES, (300, 1536), (0, 5)])
def test_column_dots(ctx: _core.Context, M: int, D: int) -> None:
    rng = rng_for(M, D, 9)
    x, y = (to_act(ctx, rng.normal(size=(M, D))) for _ in range(2))
    r, before = rng.normal(size=D).astype(np.float32), rng.normal(size=D).astype(np.float32)
    out = before.copy()
    _core.column_dots(ctx, x, y, r, out)
    products = r.astype(np.float64) * from_act(ctx, x) * from_act(ctx, y)
    terms = np.abs(before) + np.abs(products).sum(0)
    assert (np.abs(out - (before + products.sum(0))) <= (M + 3) * F32_EPS * terms).all()


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "M", "D"), [(1, 1, 1), (9, 4, 17), (50, 200, 65), (300, 40, 576)])
def test_gather_and_scatter(ctx: _core.Context, T: int, M: int, D: int) -> None:
    rng = rng_for(T, M, D)
    rows = np.sort(rng.integers(0, T, M)).astype(np.int32)
    for x in (rng.normal(size=(T, D)).astype(np.float32), to_act(ctx, rng.normal(size=(T, D)))):
        out = np.empty((M, D), x.dtype)
        _core.gather_rows(ctx, x, rows, out)
        np.testing.assert_array_equal(out, x[rows])
    x, before = rng.normal(size=(M, D)).astype(np.float32), rng.normal(size=(T, D)).astype(np.float32)
    out, expected = before.copy(), before.copy()
    _core.scatter_add_rows(ctx, x, rows, out)
    np.add.at(expected, rows, x)  # one addition after the other, in float32, as the kernel does
    np.testing.assert_array_equal(out, expected)


# --- dropout ---------------------------------------------------------------------------------------------------------


def dropout_mask(ctx: _core.Context, M: int, K: int, p: float, seed: int) -> np.ndarray:
    out = empty_act(ctx, M, K)
    _core.dropout(ctx, to_act(ctx, np.ones((M, K))), p, seed, out)
    return from_act(ctx, out)


def test_philox_reference_known_answers() -> None:
    """From the known-answer file of the Random123 library."""
    assert philox_reference([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox_reference([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize(("M", "K"), [(1, 1), (3, 17), (5, 64), (40, 576), (2, 4099)])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_dropout_keeps_what_philox_says(ctx: _core.Context, M: int, K: int, p: float) -> None:
    seed = 0x123456789ABCDEF0
    mask = dropout_mask(ctx, M, K, p, seed)
    scale = from_act(ctx, to_act(ctx, np.array([1 / (1 - p)])))[0]
    assert set(np.unique(mask)) <= {0.0, scale}
    for row, column in [(0, 0), (M - 1, K - 1), (M // 2, K // 2), (M // 2, K // 3)]:
        draw = philox_reference([column // 4, row, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])[column % 4]
        assert (mask[row, column] != 0) == (draw >= int(p * 2**32))


def test_dropout_rate_seed_and_rows(ctx: _core.Context) -> None:
    n = 400 * 576
    kept = (dropout_mask(ctx, 400, 576, 0.1, 7) != 0).sum()
    assert abs(kept - 0.9 * n) < 6 * np.sqrt(n * 0.09)
    assert (dropout_mask(ctx, 400, 576, 0.1, 8) != dropout_mask(ctx, 400, 576, 0.1, 7)).sum() > 0.1 * n
    np.testing.assert_array_equal(dropout_mask(ctx, 400, 576, 0.1, 7)[:33], dropout_mask(ctx, 33, 576, 0.1, 7))


@pytest.mark.parametrize("stored", ["act", "float32"])
def test_dropout_add_is_the_mirror(ctx: _core.Context, stored: str) -> None:
    rng = rng_for(6)
    M, K, p, seed = 37, 99, 0.25, 2**63 + 5
    dx_lora = rng.normal(size=(M, K)).astype(np.float32)
    before = rng.normal(size=(M, K)).astype(np.float32)
    dx = to_act(ctx, before) if stored == "act" else before.copy()
    start = from_act(ctx, dx) if stored == "act" else before.astype(np.float64)
    mask = (dropout_mask(ctx, M, K, p, seed) != 0) / (1 - p)
    _core.dropout_add(ctx, dx_lora, p, seed, dx)
    result = from_act(ctx, dx) if stored == "act" else dx
    rounding = (act_eps(ctx) if stored == "act" else F32_EPS) + 2 * F32_EPS
    assert (np.abs(result - (start + dx_lora * mask)) <= rounding * (np.abs(start) + np.abs(dx_lora * mask))).all()


# --- AdamW -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 15, 16, 1000, 70001])
def test_adamw(ctx: _core.Context, n: int) -> None:
    rng = rng_for(n)
    p, m, v = rng.normal(size=n).astype(np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32)
    P, M, V = (a.astype(np.float64) for a in (p, m, v))
    settings = {"lr": 1e-2, "eps": 1e-8, "decay": 0.1}
    for step in range(1, 6):
        g = rng.normal(size=n).astype(np.float32)
        left = g.copy()
        _core.adamw(ctx, p, left, m, v, settings["lr"], 0.9, 0.999, settings["eps"], settings["decay"], step, 0.5)
        assert not left.any()  # ready for the next step
        P, M, V = adamw_reference(P, 0.5 * g.astype(np.float64), M, V, betas=(0.9, 0.999), step=step, **settings)
        # p moves by at most about lr·4 a step, each move good to a few roundings of its parts (m may cancel).
        np.testing.assert_allclose(m, M, atol=step * 4 * F32_EPS * 2.5, rtol=0)
        np.testing.assert_allclose(v, V, rtol=step * 6 * F32_EPS)
        np.testing.assert_allclose(p, P, atol=step * (4 * F32_EPS * 5 + 1e-2 * 40 * F32_EPS), rtol=0)


def test_squared_norm(ctx: _core.Context) -> None:
    for n in (0, 1, 17, 40000, 100001):
        g = rng_for(n).normal(size=n).astype(np.float32)
        assert _core.squared_norm(ctx, g) == pytest.approx(float((g.astype(np.float64) ** 2).sum()), rel=max(n, 1) * 2.0**-53)


def test_squared_norm_is_the_same_on_every_isa() -> None:
    g = rng_for(7).normal(size=99999).astype(np.float32)
    assert len({_core.squared_norm(_core.Context(isa, 1), g) for isa in _core.available_isas()}) == 1


# --- every operation -------------------------------------------------------------------------------------------------


def every_operation(ctx: _core.Context, M: int, D: int) -> list[np.ndarray]:
    """Outputs of all operations on one set of inputs."""
    rng = rng_for(11)
    h, weight = rng.normal(size=(M, D)).astype(np.float32), rng.normal(size=D).astype(np.float32)
    a, b, d = (to_act(ctx, rng.normal(size=(M, D))) for _ in range(3))
    angle = rng.normal(size=(M, D // 4))
    saved, rstd, out, dx = empty_act(ctx, M, D), np.zeros(M, np.float32), empty_act(ctx, M, D), h.copy()
    _core.rms_norm(ctx, h, weight, 1e-5, saved, rstd, out)
    _core.rms_norm_backward(ctx, d, saved, weight, rstd, dx)
    decoded = np.zeros((M, D), np.float32)
    _core.rms_norm_f32(ctx, h, weight, 1e-5, decoded)
    turned = a.copy()
    _core.rope(ctx, turned, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32), 2)
    product, dg, du = empty_act(ctx, M, D), empty_act(ctx, M, D), empty_act(ctx, M, D)
    _core.swiglu(ctx, a, b, product)
    _core.swiglu_backward(ctx, d, a, b, dg, du)
    rows = np.sort(rng.integers(0, M, M)).astype(np.int32) if M else np.zeros(0, np.int32)
    picked, added = empty_act(ctx, M, D), h.copy()
    _core.gather_rows(ctx, a, rows, picked)
    _core.scatter_add_rows(ctx, h, rows, added)
    dropped, mirrored = empty_act(ctx, M, D), h.copy()
    _core.dropout(ctx, a, 0.1, 3, dropped)
    _core.dropout_add(ctx, h, 0.1, 3, mirrored)
    p, m, v = h.ravel().copy(), np.zeros(M * D, np.float32), np.zeros(M * D, np.float32)
    _core.adamw(ctx, p, h.ravel().copy(), m, v, 1e-3, 0.9, 0.999, 1e-8, 0.01, 1, 1.0)
    norm = np.array([_core.squared_norm(ctx, h.ravel())])
    scaled, dots = empty_act(ctx, M, D), weight.copy()
    _core.scale_columns(ctx, a, weight, scaled, False)
    _core.column_dots(ctx, a, b, weight, dots)
    return [saved, rstd, out, dx, decoded, turned, product, dg, du, picked, added, dropped, mirrored, p, m, v, norm, scaled, dots]


def test_threads_do_not_change_a_bit(isa: str) -> None:
    one, two = (every_operation(_core.Context(isa, threads), 301, 576) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_rows(ctx: _core.Context) -> None:
    every_operation(ctx, 0, 64)


def test_bad_arguments_name_the_operation_and_the_argument(ctx: _core.Context) -> None:
    h, w, r = np.zeros((2, 8), np.float32), np.zeros(8, np.float32), np.zeros(2, np.float32)
    saved, out = empty_act(ctx, 2, 8), empty_act(ctx, 2, 8)
    with pytest.raises(ValueError, match=r"rms_norm: weight has shape \(7\), expected \(8\)"):
        _core.rms_norm(ctx, h, w[:7], 1e-5, saved, r, out)
    with pytest.raises(TypeError, match="rms_norm: h is float64, expected float32"):
        _core.rms_norm(ctx, h.astype(np.float64), w, 1e-5, saved, r, out)
    with pytest.raises(TypeError, match="rms_norm: saved is int32"):
        _core.rms_norm(ctx, h, w, 1e-5, np.zeros((2, 8), np.int32), r, out)
    with pytest.raises(ValueError, match="h is not C-contiguous"):
        _core.rms_norm(ctx, np.zeros((8, 2), np.float32).T, w, 1e-5, saved, r, out)
    with pytest.raises(ValueError, match="scatter_add_rows: rows holds row 2, outside"):
        _core.scatter_add_rows(ctx, h, np.array([0, 2], np.int32), h.copy())
    locked = np.zeros((2, 8), np.float32)
    locked.setflags(write=False)
    with pytest.raises(ValueError, match="rms_norm_f32: out is read-only"):
        _core.rms_norm_f32(ctx, h, w, 1e-5, locked)
    with pytest.raises(ValueError, match=r"dropout: p must be in \[0, 1\)"):
        _core.dropout(ctx, saved, 1.0, 0, out)
    with pytest.raises(ValueError, match="rope: heads must divide"):
        _core.rope(ctx, out, np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32), 3)


def test_exp(ctx: _core.Context) -> None:
    x = np.concatenate([np.linspace(-86, 87, 100003), [0.0, -0.0]]).astype(np.float32)
    np.testing.assert_allclose(_core.exp(ctx, x), np.exp(x.astype(np.float64)), rtol=4 * F32_EPS)
    assert np.isnan(_core.exp(ctx, np.array([np.nan], np.float32)))[0]
