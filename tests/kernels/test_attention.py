"""Attention forward, backward and decoding against float64 references; the reference backward against central differences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from localsft import _core
from tests.kernels.attention_reference import Case, backward, forward, scores_of, visible
from tests.kernels.numerics import F32_EPS, act_eps, central_difference, empty_act, from_act, to_act

CHAIN = ((5, 9, 3, 70), (-1, 0, 1, 2))  # three deep
BRANCHES = ((57, 7, 20, 1, 33, 64, 65, 2, 11), (-1, *[0] * 8))
FOREST = ((4, 3, 30, 1, 1, 1, 17, 6), (-1, 0, 0, 2, -1, 4, 5, -1))  # parents ask as well

CASES = {
    "one token": Case((1,), (-1,), 1, 1, 8),
    "one head": Case((37,), (-1,), 1, 1, 16),
    "grouped": Case((70,), (-1,), 9, 3, 64),
    "one kv head": Case((50,), (-1,), 7, 1, 20),
    "as many kv heads": Case((70,), (-1,), 3, 3, 40),
    "long": Case((387,), (-1,), 3, 1, 64),
    "head size 2": Case((33,), (-1,), 2, 1, 2),
    "head size 72": Case((40,), (-1,), 4, 2, 72),
    "head size 80": Case((67,), (-1,), 2, 1, 80),
    "head size 96": Case((67,), (-1,), 2, 2, 96),
    "head size 128": Case((90,), (-1,), 4, 1, 128),
    "head size 256": Case((66,), (-1,), 2, 1, 256),
    "more heads than a chunk": Case((3, 4), (-1, 0), 200, 1, 8),
    "packed": Case((64, 1, 63, 65, 2), (-1,) * 5, 6, 2, 32),
    "singles": Case((1,) * 30, (-1,) * 30, 4, 2, 16),
    "chain": Case(*CHAIN, 6, 3, 24),
    "branches": Case(*BRANCHES, 6, 2, 64),
    "forest": Case(*FOREST, 4, 2, 16),
    "subset": Case(*FOREST, 4, 2, 16, q_rows=(3, 6, 10, 30, 37, 40, 62)),
    "subset of branches": Case(*BRANCHES, 6, 3, 64, q_rows=tuple(range(50, 260, 3))),
    "last token asks": Case((200,), (-1,), 4, 2, 16, q_rows=(199,)),
    "nobody asks": Case((20, 3), (-1, 0), 4, 2, 16, q_rows=()),
    "window": Case((150,), (-1,), 4, 2, 16, window=37),
    "window over the path": Case(*CHAIN, 4, 2, 16, window=12),
    "window in branches": Case(*BRANCHES, 6, 3, 16, window=64),
    "window of one": Case(*FOREST, 2, 2, 16, window=1),
    "subset with window": Case(*CHAIN, 4, 2, 16, window=20, q_rows=(0, 4, 13, 17, 60, 86)),
    "softcap": Case((90,), (-1,), 4, 2, 16, softcap=2.0),
    "softcap, window, tree": Case(*BRANCHES, 4, 2, 32, softcap=5.0, window=30),
    "scale": Case((40,), (-1,), 2, 1, 16, scale=0.5),
    "empty segment": Case((5, 0, 4, 3), (-1, 0, 1, 1), 2, 1, 8),
}
CENTRAL = {
    "chain": Case((2, 3, 1, 2), (-1, 0, 1, 2), 4, 2, 4),
    "branches": Case((3, 2, 1, 3), (-1, 0, 0, 0), 2, 1, 6, q_rows=(1, 3, 4, 5, 8)),
    "window and softcap": Case((3, 4, 2), (-1, 0, -1), 2, 2, 4, window=3, softcap=1.5),
}


def inputs(ctx: _core.Context, case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """q, k, v, d_out as stored."""
    rng = np.random.default_rng(seed)
    Mq, q_width, kv_width = len(case.rows), case.heads * case.head_size, case.kv_heads * case.head_size
    shapes = {"q": (Mq, q_width), "k": (case.tokens, kv_width), "v": (case.tokens, kv_width), "d_out": (Mq, q_width)}
    return {name: to_act(ctx, rng.normal(size=shape)) for name, shape in shapes.items()}


def run_forward(ctx: _core.Context, case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out, lse = empty_act(ctx, *q.shape), np.full((len(q), case.heads), np.nan, np.float32)
    _core.attention(
        ctx, q, k, v, case.rows, case.starts, np.array(case.parents, np.int32), out, lse,
        case.heads, case.kv_heads, case.factor, case.window, case.softcap,
    )  # fmt: skip
    return out, lse


def run_backward(
    ctx: _core.Context, case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray, d_out: np.ndarray, out: np.ndarray, lse: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dq, dk, dv = empty_act(ctx, *q.shape), empty_act(ctx, *k.shape), empty_act(ctx, *v.shape)
    _core.attention_backward(
        ctx, q, k, v, out, lse, d_out, case.rows, case.starts, np.array(case.parents, np.int32), dq, dk, dv,
        case.heads, case.kv_heads, case.factor, case.window, case.softcap,
    )  # fmt: skip
    return dq, dk, dv


def by_head(x: np.ndarray, heads: int, repeat: int = 1) -> np.ndarray:
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2).repeat(repeat, 0)


@dataclass(frozen=True, slots=True)
class Expected:
    """float64 results for stored inputs, each with its bound."""

    results: dict[str, np.ndarray]
    bounds: dict[str, np.ndarray]


@cache
def expected(name: str, isa: str) -> Expected:
    """Of CASES[name], for the inputs as `isa` stores them."""
    case, ctx = CASES[name], _core.Context(isa, 1)
    x = {label: from_act(ctx, a) for label, a in inputs(ctx, case).items()}
    bounds = Bounds(ctx, case, x)
    out, lse, _ = forward(case, x["q"], x["k"], x["v"])
    dq, dk, dv = backward(case, x["q"], x["k"], x["v"], x["d_out"])
    results = {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
    return Expected(results, {label: getattr(bounds, label) for label in results})


class Bounds:
    """How far rounding may move each result: sums of the sizes of what is added, times the rounding of each part.

    A score is a float32 sum of E exact products; the exponential is good to 3e-6 where P is stored as bfloat16 and to 2e-7
    else; P, dS and the results are rounded to the activation's type; sums run over the visible keys in float32.
    """

    def __init__(self, ctx: _core.Context, case: Case, x: dict[str, np.ndarray]) -> None:
        self.case, group = case, case.heads // case.kv_heads
        self.eps, self.group = act_eps(ctx), group
        q3, d3 = by_head(x["q"], case.heads), by_head(x["d_out"], case.heads)
        k3, v3 = (by_head(x[name], case.kv_heads, group) for name in ("k", "v"))
        _, lse, self.p = forward(case, x["q"], x["k"], x["v"])
        _, slope = scores_of(case, x["q"], x["k"])
        seen = visible(case)
        self.q, self.k, self.v, self.d = (np.abs(a) for a in (q3, k3, v3, d3))
        products = case.factor * self.q @ self.k.transpose(0, 2, 1)
        # The error of a score, then of lse, then (relative) of a probability.
        self.score = (case.head_size + 4) * F32_EPS * (products + (np.abs(case.softcap) * 4 if case.softcap else 0) + 1)
        self.exp = 3e-6 if ctx.act_bf16 else 2e-7
        terms = max(int(seen.sum(-1).max(initial=1)), 1)
        self.sums = 2 * (terms + 8) * F32_EPS
        self.lse = (self.p * self.score).sum(-1).T + self.exp + self.sums + 4 * F32_EPS * (np.abs(lse) + 1)
        self.p_error = self.p * (self.score + self.lse.T[..., None] + self.exp + self.eps + self.sums)
        self.slope = np.abs(slope)
        # dS = P (dP - D) slope: D comes from the rounded out.
        dp = self.d @ self.v.transpose(0, 2, 1)
        out = self.p @ self.v
        self.ds = self.p * (dp + (self.d * out).sum(-1, keepdims=True)) * self.slope
        parts = self.ds * (self.score + self.lse.T[..., None] + self.exp + 2 * self.sums + 3 * self.eps + case.head_size * F32_EPS)
        d_error = (self.d * (self.p_error @ self.v + self.eps * out)).sum(-1, keepdims=True)
        self.ds_error = parts + self.p * d_error * self.slope
        if case.softcap:  # the slope 1 - tanh² from the rounded score
            self.ds_error = self.ds_error + self.p * (dp + (self.d * out).sum(-1, keepdims=True)) * 2 * (
                self.score / case.softcap + 8 * F32_EPS
            )

    def stored(self, error: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Rounding of the sum and of the store, on top of the error of the terms."""
        H, n, E = error.shape
        total = error + (self.eps + self.sums) * size
        return total.transpose(1, 0, 2).reshape(n, H * E)

    def shared(self, x: np.ndarray) -> np.ndarray:
        H, n, E = x.shape
        return x.reshape(H // self.group, self.group, n, E).sum(1)

    @property
    def out(self) -> np.ndarray:
        return self.stored(self.p_error @ self.v, self.p @ self.v)

    @property
    def dq(self) -> np.ndarray:
        return self.case.factor * self.stored(self.ds_error @ self.k, self.ds @ self.k)

    @property
    def dk(self) -> np.ndarray:
        error, size = (self.shared(x.transpose(0, 2, 1) @ self.q) for x in (self.ds_error, self.ds))
        return self.case.factor * self.stored(error, size * 2)

    @property
    def dv(self) -> np.ndarray:
        error, size = (self.shared(x.transpose(0, 2, 1) @ self.d) for x in (self.p_error, self.p))
        return self.stored(error, size * 2)


def assert_within(name: str, actual: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    excess = np.abs(actual - expected) - bound - 1e-30
    assert not np.isnan(actual).any(), f"{name}: NaN"
    assert (excess <= 0).all(), f"{name}: off by {np.abs(actual - expected).max():.3g}, {(excess > 0).sum()} of {excess.size} out of bounds"


@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(ctx: _core.Context, name: str) -> None:
    case = CASES[name]
    stored = inputs(ctx, case)
    out, lse = run_forward(ctx, case, stored["q"], stored["k"], stored["v"])
    gradients = run_backward(ctx, case, stored["q"], stored["k"], stored["v"], stored["d_out"], out, lse)
    if not len(case.rows):
        assert not any(g.any() for g in gradients)
        return
    want = expected(name, "avx512bf16" if ctx.act_bf16 else "baseline")  # ISAs that store alike share the reference
    actual = {"out": from_act(ctx, out), "lse": lse} | {
        label: from_act(ctx, g) for label, g in zip(("dq", "dk", "dv"), gradients, strict=True)
    }
    for label, result in actual.items():
        assert_within(label, result, want.results[label], want.bounds[label])


@pytest.mark.parametrize("name", CENTRAL)
def test_reference_backward_is_the_gradient(name: str) -> None:
    case, rng = CENTRAL[name], np.random.default_rng(1)
    q, d_out = (rng.normal(size=(len(case.rows), case.heads * case.head_size)) for _ in range(2))
    k, v = (rng.normal(size=(case.tokens, case.kv_heads * case.head_size)) for _ in range(2))
    gradients = backward(case, q, k, v, d_out)
    for x, analytic in zip((q, k, v), gradients, strict=True):
        numeric = central_difference(lambda _: float((forward(case, q, k, v)[0] * d_out).sum()), x)
        np.testing.assert_allclose(analytic, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["grouped", "long", "chain", "branches", "forest", "subset of branches", "window in branches"])
def test_threads_do_not_change_a_bit(isa: str, name: str) -> None:
    results = []
    for threads in (1, 2, 3):
        ctx = _core.Context(isa, threads)
        x = inputs(ctx, CASES[name])
        out, lse = run_forward(ctx, CASES[name], x["q"], x["k"], x["v"])
        results.append([out, lse, *run_backward(ctx, CASES[name], x["q"], x["k"], x["v"], x["d_out"], out, lse)])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_other_trees_are_never_touched(ctx: _core.Context) -> None:
    """NaN in every other tree changes nothing: not a single product with a hidden segment is formed."""
    case = Case((20, 9, 33, 5, 70), (-1, -1, 1, -1, -1), 4, 2, 16)
    inside = slice(20, 62)  # the tree of segments 1 and 2
    x = inputs(ctx, case)
    poisoned = {name: a.copy() for name, a in x.items()}
    for a in poisoned.values():
        keep = a[inside].copy()
        a[:] = empty_act(ctx, *a.shape)
        a[inside] = keep
    results = []
    for data in (x, poisoned):
        out, lse = run_forward(ctx, case, data["q"], data["k"], data["v"])
        gradients = run_backward(ctx, case, data["q"], data["k"], data["v"], data["d_out"], out, lse)
        results.append([a[inside] for a in (out, lse, *gradients)])
    for clean, dirty in zip(*results, strict=True):
        np.testing.assert_array_equal(clean, dirty)


def test_a_shared_prefix_equals_its_copies(ctx: _core.Context) -> None:
    """Branches over one parent give the outputs, and the summed gradients, of separate copies of parent and branch."""
    prefix, branches = 57, (7, 20, 1, 33)
    tree = Case((prefix, *branches), (-1, *[0] * len(branches)), 6, 3, 64)
    copies = Case(tuple(prefix + n for n in branches), (-1,) * len(branches), 6, 3, 64)
    index: list[int] = []  # token of the tree that each token of the copies is
    for start, n in zip(tree.starts[1:], branches, strict=False):
        index += [*range(prefix), *range(start, start + n)]
    x = inputs(ctx, tree)
    y = {name: np.ascontiguousarray(a[index]) for name, a in x.items()}
    first_copy = np.arange(len(index)) < prefix + branches[0]
    for i, token in enumerate(index):  # the parent's own queries count once
        if token < prefix and not first_copy[i]:
            y["d_out"][i] = 0
    out, lse = run_forward(ctx, tree, x["q"], x["k"], x["v"])
    out_copies, lse_copies = run_forward(ctx, copies, y["q"], y["k"], y["v"])
    many = (tree.tokens + 8) * F32_EPS * 16
    np.testing.assert_allclose(lse_copies, lse[index], rtol=many, atol=many)
    bounds = Bounds(ctx, tree, {name: from_act(ctx, a) for name, a in x.items()})
    assert_within("out", from_act(ctx, out_copies), from_act(ctx, out)[index], 2 * bounds.out[index])
    _, dk, dv = run_backward(ctx, tree, x["q"], x["k"], x["v"], x["d_out"], out, lse)
    _, dk_copies, dv_copies = run_backward(ctx, copies, y["q"], y["k"], y["v"], y["d_out"], out_copies, lse_copies)
    for label, actual, apart in (("dk", dk, dk_copies), ("dv", dv, dv_copies)):
        summed = np.zeros(actual.shape)
        np.add.at(summed, index, from_act(ctx, apart))
        # The copies round dk and dv to the activation's type once more each, before the sum.
        terms = np.zeros(actual.shape)
        np.add.at(terms, index, np.abs(from_act(ctx, apart)))
        assert_within(label, from_act(ctx, actual), summed, 2 * getattr(bounds, label) + act_eps(ctx) * terms)


def test_a_nan_is_not_hidden(ctx: _core.Context) -> None:
    case = Case((40,), (-1,), 2, 1, 16)
    for name in ("q", "k", "v"):
        x = inputs(ctx, case)
        x[name][5] = empty_act(ctx, x[name].shape[1])
        out, _ = run_forward(ctx, case, x["q"], x["k"], x["v"])
        assert np.isnan(from_act(ctx, out)[5]).all()


def test_large_scores_do_not_overflow(ctx: _core.Context) -> None:
    case = Case((70,), (-1,), 2, 1, 16)
    x = inputs(ctx, case)
    x["q"] = to_act(ctx, from_act(ctx, x["q"]) * 1e4)
    out, lse = run_forward(ctx, case, x["q"], x["k"], x["v"])
    assert np.isfinite(from_act(ctx, out)).all()
    assert np.isfinite(lse).all()
    for gradient in run_backward(ctx, case, x["q"], x["k"], x["v"], x["d_out"], out, lse):
        assert np.isfinite(from_act(ctx, gradient)).all()


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    ("case", "lengths"),
    [
        (Case((1,), (-1,), 1, 1, 8), (1,)),
        (Case((40,), (-1,), 9, 3, 64), (40, 1, 17)),
        (Case((700,), (-1,), 6, 2, 20), (700, 256, 257, 512, 3)),
        (Case((300,), (-1,), 4, 4, 96, window=50), (300, 20)),
        (Case((300,), (-1,), 4, 1, 128, softcap=3.0), (290, 20)),
        (Case((600,), (-1,), 2, 1, 16, window=300), (599, 400, 2)),
    ],
)
def test_decode(isa: str, case: Case, lengths: tuple[int, ...], as_list: bool) -> None:
    B, capacity, width = len(lengths), case.tokens, case.kv_heads * case.head_size
    results = []
    for threads in (1, 2):
        ctx, rng = _core.Context(isa, threads), np.random.default_rng(2)
        q = rng.normal(size=(B, case.heads * case.head_size)).astype(np.float32)
        k, v = (to_act(ctx, rng.normal(size=(B, capacity, width))) for _ in range(2))
        for b, n in enumerate(lengths):
            k[b, n:] = v[b, n:] = empty_act(ctx, width)  # beyond the end: never read
        out = np.full(q.shape, np.nan, np.float32)
        caches = ([*k], [*v]) if as_list else (k, v)
        _core.attention_decode(
            ctx, q, *caches, np.array(lengths, np.int32), out, case.heads, case.kv_heads, case.factor, case.window, case.softcap
        )
        results.append(out)
    np.testing.assert_array_equal(*results)
    for b, n in enumerate(lengths):
        one = replace(case, lengths=(n,), q_rows=(n - 1,))
        x = {"q": q[b : b + 1].astype(np.float64), "k": from_act(ctx, k[b, :n]), "v": from_act(ctx, v[b, :n])}
        bounds = Bounds(ctx, one, {**x, "d_out": np.zeros_like(x["q"])})
        bounds.eps = F32_EPS
        bounds.p_error = bounds.p * (bounds.score + bounds.lse.T[..., None] + bounds.exp + bounds.sums)
        assert_within("out", out[b : b + 1], forward(one, x["q"], x["k"], x["v"])[0], bounds.out)


def test_bad_arguments_name_the_operation_and_the_argument(ctx: _core.Context) -> None:
    case = Case((3, 4), (-1, 0), 2, 1, 8)
    x = inputs(ctx, case)
    out, lse = empty_act(ctx, 7, 16), np.zeros((7, 2), np.float32)
    rows, starts, parents = case.rows, case.starts, np.array(case.parents, np.int32)

    def call(**changes: object) -> None:
        given = {
            "q": x["q"], "k": x["k"], "v": x["v"], "q_rows": rows, "segment_starts": starts, "segment_parents": parents,
            "out": out, "lse": lse, "heads": 2, "kv_heads": 1, "scale": 1.0, **changes,
        }  # fmt: skip
        _core.attention(ctx, **given)

    call()
    with pytest.raises(ValueError, match="attention: kv_heads must divide heads"):
        call(kv_heads=3)
    with pytest.raises(ValueError, match=r"attention: v has shape \(6, 8\), expected \(7, 8\)"):
        call(v=x["v"][:6])
    with pytest.raises(ValueError, match="segment_starts must run from 0 to 7"):
        call(segment_starts=np.array([0, 3, 6], np.int32))
    with pytest.raises(ValueError, match="segment_parents must be -1 or an earlier segment"):
        call(segment_parents=np.array([-1, 1], np.int32))
    with pytest.raises(ValueError, match="q_rows must be ascending"):
        call(q_rows=rows[::-1].copy())
    with pytest.raises(ValueError, match="q_rows holds row 7"):
        call(q_rows=np.array([0, 1, 2, 3, 4, 5, 7], np.int32))
    with pytest.raises(ValueError, match="k_cache holds 3 tokens, fewer than lengths says"):
        _core.attention_decode(
            ctx,
            np.zeros((1, 16), np.float32),
            [x["k"][:3]],
            [x["v"][:3]],
            np.array([4], np.int32),
            np.zeros((1, 16), np.float32),
            2,
            1,
            1.0,
        )
