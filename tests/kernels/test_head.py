"""The head: logits, masked cross-entropy and its gradient, and scores, against float64 references."""

from __future__ import annotations

import numpy as np
import pytest

from localsft import _core
from tests.kernels.linears import check, sum_eps
from tests.kernels.matrices import make, multiplied
from tests.kernels.numerics import BF16_EPS, F32_EPS, central_difference, from_act, to_act


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(x: np.ndarray, w: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Σ weight·CE and (softmax - onehot)·weight, the target's entry as minus the sum of the others, which keeps its digits."""
    p = softmax(x @ w.T)
    rows = np.arange(len(targets))
    loss = float(-(weights * np.log(p[rows, targets])).sum())
    p[rows, targets] = 0
    p[rows, targets] = -p.sum(-1)
    return loss, p * weights[:, None]


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
    check(dx, g @ w64, (stored + 2 * moved + sum_eps(V)) * (np.abs(g) @ np.abs(w64)))
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


def test_extreme_logits(ctx: _core.Context) -> None:
    """Logits far above the target's (their exponentials overflow), far below it, and a row of each beside ordinary ones."""
    D, V = 32, 300
    rng = np.random.default_rng(3)
    w = rng.normal(size=(V, D)).astype(np.float32)
    w[7], w[200] = 0, 0
    w[7, 0], w[200, 0] = 8, -8
    x = rng.normal(size=(3, D)).astype(np.float32)
    x[:, 0] = 10
    x = from_act(ctx, to_act(ctx, x))
    w64, targets, weights = multiplied(ctx, w), np.array([200, 7, 5], np.int32), np.array([1, 2, 0.5], np.float32)
    expected, g = reference(x, w64, targets, weights.astype(np.float64))
    assert expected > 100  # e^100 is no float32
    dx, logprobs, correct = np.empty((3, D), np.float32), np.empty(3, np.float32), np.empty(3, bool)
    weight = _core.dense_weight(w)
    loss = _core.head_loss(ctx, to_act(ctx, x), weight, targets, weights, dx)
    _core.head_score(ctx, to_act(ctx, x), weight, targets, logprobs, correct)
    size = (np.abs(x) @ np.abs(w64).T).max()
    moved = 2 * sum_eps(D) * size + (V / 16 + 8) * F32_EPS
    assert abs(loss - expected) <= moved * weights.sum() + 4 * F32_EPS * expected
    assert correct.tolist() == [False, True, False]
    # The well-predicted row: what is lost is a sum of tiny exponentials, which keeps its digits.
    z = (x @ w64.T)[1]
    others = np.exp(np.delete(z, 7) - z[7]).sum()
    assert 1e-30 < others < 1e-12
    assert abs(logprobs[1] + others) <= 2 * moved * others
    stored = 2 * BF16_EPS if ctx.act_bf16 else 0.0
    check(dx, g @ w64, (stored + 2 * moved + sum_eps(V)) * (np.abs(g) @ np.abs(w64)))


def test_many_improbable_tokens_count(ctx: _core.Context) -> None:
    """65,534 probabilities of 1e-9 are lost one by one beside a sum of 1; their sum of 5e-5 is not."""
    w = np.tile(np.array([2, 0], np.float32), (65_536, 1))
    w[[0, 9]] = 1, 1
    x, dx = to_act(ctx, np.array([[0, 20.25]])), np.empty((1, 2), np.float32)
    _core.head_loss(ctx, x, _core.dense_weight(w), np.array([9], np.int32), np.ones(1, np.float32), dx)
    tail = 65_534 * np.exp(-20.25)
    assert dx[0, 0] == pytest.approx(tail / (tail + 2), rel=5e-2)


def test_working_memory_in_chunks(ctx: _core.Context) -> None:
    """More rows than fit into the budget of exponentials."""
    N, D, V = 210, 16, 160_000
    x, case, targets, weights = inputs(ctx, N, D, V, "bf16")
    dx, part = np.empty((N, D), np.float32), np.empty((3, D), np.float32)
    loss = _core.head_loss(ctx, x, case.weight, targets, weights, dx)
    parts = 0.0
    for begin in range(0, N, 3):
        rows = slice(begin, begin + 3)
        parts += _core.head_loss(ctx, x[rows].copy(), case.weight, targets[rows].copy(), weights[rows].copy(), part)
        np.testing.assert_array_equal(part, dx[rows])
    assert abs(loss - parts) <= N * 2.0**-52 * loss


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
