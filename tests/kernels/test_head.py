"""The head: logits, masked cross-entropy and its gradient, and scores, against float64 references."""

from __future__ import annotations

import numpy as np
import pytest
from matrices import make, multiplied
from numerics import BF16_EPS, F32_EPS, central_difference, from_act, to_act
from test_linear import check, sum_eps

from localsft import _core


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(x: np.ndarray, w: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Σ weight·CE and (softmax - onehot)·weight."""
    p = softmax(x @ w.T)
    rows = np.arange(len(targets))
    g = p.copy()
    g[rows, targets] -= 1
    return float(-(weights * np.log(p[rows, targets])).sum()), g * weights[:, None]


def inputs(ctx: _core.Context, N: int, D: int, V: int, form: str) -> tuple:
    rng = np.random.default_rng([N, D, V])
    x = to_act(ctx, rng.normal(size=(N, D)))
    case = make(rng, form, V, D)
    return x, case, rng.integers(0, V, N).astype(np.int32), rng.uniform(0.5, 2, N).astype(np.float32)


def test_reference_is_the_gradient() -> None:
    rng = np.random.default_rng(0)
    x, w, targets, weights = rng.normal(size=(3, 4)), rng.normal(size=(7, 4)), np.array([0, 6, 3]), np.array([1.0, 0.5, 2.0])
    _, g = reference(x, w, targets, weights)
    gradient = central_difference(lambda x: reference(x, w, targets, weights)[0], x)
    np.testing.assert_allclose(g @ w, gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("N", "D", "V", "form"), [(1, 64, 50, "8x32"), (37, 96, 1003, "4x32"), (70, 33, 130, "bf16"), (20, 64, 40001, "8x32")]
)
def test_head(ctx: _core.Context, N: int, D: int, V: int, form: str) -> None:
    x, case, targets, weights = inputs(ctx, N, D, V, form)
    x64, w64 = from_act(ctx, x), multiplied(ctx, case.exact) * 1.0
    logits = np.full((N, V), np.nan, np.float32)
    _core.head_logits(ctx, x, case.weight, logits)
    size = np.abs(x64) @ np.abs(w64).T
    check(logits, x64 @ w64.T, sum_eps(D) * size)

    dx = np.full((N, D), np.nan, np.float32)
    loss = _core.head_loss(ctx, x, case.weight, targets, weights, dx)
    expected, g = reference(x64, w64, targets, weights.astype(np.float64))
    # An absolute error e of the logits moves a log-softmax by at most 2e; the sum of V exponentials (2 ulp each) adds.
    moved = 2 * sum_eps(D) * size.max() + (V / 16 + 8) * F32_EPS
    assert abs(loss - expected) <= moved * weights.sum() + 4 * F32_EPS * abs(expected)
    stored = 2 * BF16_EPS if ctx.act_bf16 else 0.0
    g_error = np.abs(g) * (stored + 2 * moved) + np.where(np.arange(V) == targets[:, None], 4 * weights[:, None] * (F32_EPS + moved), 0)
    check(dx, g @ w64, g_error @ np.abs(w64) + sum_eps(V) * (np.abs(g) @ np.abs(w64)))
    assert _core.head_loss(ctx, x, case.weight, targets, weights, None) == loss

    logprobs, correct = np.full(N, np.nan, np.float32), np.zeros(N, bool)
    targets[::2] = np.argmax(logits[::2], -1)
    _core.head_score(ctx, x, case.weight, targets, logprobs, correct)
    np.testing.assert_allclose(logprobs, np.log(softmax(x64 @ w64.T))[np.arange(N), targets], rtol=4 * F32_EPS, atol=2 * moved)
    np.testing.assert_array_equal(correct, np.argmax(logits, -1) == targets)


def test_first_of_equal_logits_counts(ctx: _core.Context) -> None:
    weight = _core.dense_weight(np.ones((5, 4), np.float32))
    x, logprobs, correct = to_act(ctx, np.ones((2, 4))), np.empty(2, np.float32), np.empty(2, np.uint8)
    _core.head_score(ctx, x, weight, np.array([0, 1], np.int32), logprobs, correct)
    assert correct.tolist() == [1, 0]


def test_threads_bitwise(isa: str) -> None:
    results = []
    for threads in (1, 2):
        ctx = _core.Context(isa, threads)
        x, case, targets, weights = inputs(ctx, 45, 64, 777, "4x32")
        dx = np.empty((45, 64), np.float32)
        results.append((_core.head_loss(ctx, x, case.weight, targets, weights, dx), dx))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_no_rows(ctx: _core.Context) -> None:
    x, case, targets, weights = inputs(ctx, 0, 64, 777, "4x32")
    assert _core.head_loss(ctx, x, case.weight, targets, weights, np.empty((0, 64), np.float32)) == 0.0
