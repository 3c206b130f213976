"""Kept panels: the same bits as packing a weight anew for every product, and really what is multiplied."""

from __future__ import annotations

import numpy as np
import pytest

from localsft import _core
from tests.kernels.linears import FORMS, Group
from tests.kernels.matrices import make
from tests.kernels.numerics import empty_act, to_act


def keep(ctx: _core.Context, weight: _core.Weight) -> np.ndarray:
    units = np.full(weight.panel_units(ctx), 0xFFFF_FFFF, np.uint32)  # no number, wherever it is not written
    weight.keep_panels(ctx, units)
    return units


def results(group: Group) -> list[np.ndarray]:
    """What a training step computes with the group's weights, in every combination of outputs."""
    outs, u = group.forward()
    found = [*outs, u, *group.forward(float_out=True)[0], *group.forward(add=True)[0]]
    M, K = group.x.shape
    for dx, add in ((empty_act(group.ctx, M, K), False), (np.empty((M, K), np.float32), False), (np.ones((M, K), np.float32), True)):
        d_a, d_b = group.backward(group.dys(), u, dx, add)
        found += [dx, *(x for x in (*d_a, *d_b) if x is not None)]
    return found


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_every_form(ctx: _core.Context, form: str) -> None:
    group = Group.make(ctx, 1, 13, 384, form, [240, 70], [5, 0])
    before = results(group)
    for weight in group.weights:
        keep(ctx, weight)
    assert equal(results(group), before)


@pytest.mark.parametrize(
    ("M", "K", "sizes"),
    [(1, 32, [1]), (9, 64, [33, 7, 50]), (131, 192, [161, 49]), (20, 9600, [37]), (70, 96, [9000, 200]), (1100, 64, [96])],
)
def test_every_size(ctx: _core.Context, M: int, K: int, sizes: list[int]) -> None:
    """One row and many blocks of them, several chunks and slabs of a reduction, columns that fill no panel."""
    group = Group.make(ctx, 2, M, K, "4x32", sizes, [3] * len(sizes))
    before = results(group)
    for weight in group.weights[:-1] or group.weights:  # the last of several is not kept: both kinds in one product
        keep(ctx, weight)
    assert equal(results(group), before)


@pytest.mark.parametrize(("N", "D", "V"), [(1, 64, 50), (37, 96, 1003), (530, 64, 700), (20, 64, 9001)])
def test_head(ctx: _core.Context, N: int, D: int, V: int) -> None:
    rng = np.random.default_rng([N, D, V])
    x, weight = to_act(ctx, rng.normal(size=(N, D))), make(rng, "8x32", V, D).weight
    x[-1] = x[-1] if ctx.act_bf16 else 40 * x[-1]  # a row that is walked over again
    targets, weights = rng.integers(0, V, N).astype(np.int32), rng.uniform(0.5, 2, N).astype(np.float32)

    def found() -> list[np.ndarray]:
        logits, dx = np.empty((N, V), np.float32), np.empty((N, D), np.float32)
        logprobs, correct = np.empty(N, np.float32), np.empty(N, np.bool_)
        _core.head_logits(ctx, x, weight, logits)
        loss = _core.head_loss(ctx, x, weight, targets, weights, dx)
        _core.head_score(ctx, x, weight, targets, logprobs, correct)
        return [logits, dx, logprobs, correct, np.array(loss)]

    before = found()
    keep(ctx, weight)
    assert equal(found(), before)


def test_kept_panels_are_what_is_multiplied(ctx: _core.Context) -> None:
    """By Linears of before and after; and not by other kernels, for which they are no panels."""
    K, N, M = 64, 100, 5
    rng = np.random.default_rng(0)
    data = rng.normal(size=(N, K)).astype(np.float32)
    weight = _core.dense_weight(data)
    x, dy = rng.normal(size=(M, K)).astype(np.float32), rng.normal(size=(M, N)).astype(np.float32)

    def products(ctx: _core.Context, linears: _core.Linears) -> list[np.ndarray]:
        y, dx, u = np.empty((M, N), np.float32), np.empty((M, K), np.float32), np.empty((M, 0), np.float32)
        _core.linear_forward(ctx, to_act(ctx, x), linears, [y], u, False)
        _core.linear_backward(ctx, [to_act(ctx, dy)], linears, to_act(ctx, x), u, dx, False)
        return [y, dx]

    older = _core.linears(ctx, [weight])
    before = products(ctx, older)
    keep(ctx, weight)  # the array is kept alive by the weight alone
    data[...] = 0
    newer = _core.linears(ctx, [weight])
    del weight
    assert equal(products(ctx, older), before) and equal(products(ctx, newer), before)
    for isa in set(_core.available_isas()) - {ctx.isa}:
        other = _core.Context(isa, 1)
        assert not any(result.any() for result in products(other, newer))


def test_packing_again_replaces(ctx: _core.Context) -> None:
    data = np.ones((10, 32), np.float32)
    weight = _core.dense_weight(data)
    linears, x, u = _core.linears(ctx, [weight]), to_act(ctx, np.ones((1, 32))), np.empty((1, 0), np.float32)
    for value in (1, 2, 3):
        data[...] = value
        keep(ctx, weight)
        y = np.empty((1, 10), np.float32)
        _core.linear_forward(ctx, x, linears, [y], u, False)
        assert (y == 32 * value).all()


def test_bad_arrays_are_refused(ctx: _core.Context) -> None:
    weight = _core.dense_weight(np.ones((10, 32), np.float32))
    size = weight.panel_units(ctx)
    for units, error in ((np.empty(size - 1, np.uint32), ValueError), (np.empty(size, np.float32), TypeError)):
        with pytest.raises(error, match="keep_panels: units"):
            weight.keep_panels(ctx, units)
