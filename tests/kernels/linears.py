"""Groups of linears with random inputs, checked against float64 products of exactly the operands that the ISA multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from localsft import _core
from tests.kernels.matrices import Case, make, multiplied
from tests.kernels.numerics import BF16_EPS, F32_EPS, act_eps, empty_act, from_act, to_act

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
