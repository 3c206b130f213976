"""DoRA on one linear (Liu et al. 2024, arXiv:2402.09353): the size of each row of W + s·BA is a parameter of its own.

y = c·(W x + s·BA x), c = m / ‖W + s·BA‖ by output, the norm taken as a constant in the backward pass as in section 4.3 of the
paper, in PEFT and in mlx-lm. Training starts at m = ‖W‖, where c = 1.

The norm needs no dequantized weight: ‖W_o + s·B_o A‖² = ‖W_o‖² + 2s·B_o·(A W_oᵀ) + s²·B_o (A Aᵀ) B_oᵀ, where A Wᵀ is the linear
itself with A's rows as its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32
from localsft.engine.cpu.ops import Ops

MOST_ROWS = 16  # of x in linear_decode


@dataclass(frozen=True, slots=True)
class Magnitude:
    """``m`` and ``d_m`` are views of the flat parameters and of their gradient; the rest belongs to it. All (out,)."""

    m: Float32
    d_m: Float32
    weight_squares: NDArray[np.float64]  # ‖W_o‖²
    factors: Float32  # c = m / ‖W + s·BA‖, by ``update``
    inverse_m: Float32  # 1/m, which turns Σ dy·y into dm
    inverse_norms: Float32  # 1/‖W + s·BA‖, which turns Σ dy·(y before the factors) into dm

    @staticmethod
    def of(m: Float32, d_m: Float32, weight_squares: NDArray[np.float64]) -> Magnitude:
        return Magnitude(m, d_m, weight_squares, np.ones_like(m), np.zeros_like(m), np.zeros_like(m))

    def update(self, ops: Ops, weight: Any, a: Float32, b: Float32, scale: float) -> None:
        """Set the factors by the present m, A (R, in) and B (R, out). A row of zeros has the factor 1."""
        norms = np.sqrt(self._squares(ops, weight, a, b, scale)).astype(np.float32)
        self.factors[...] = np.divide(self.m, norms, out=np.ones_like(norms), where=norms > 0)
        self.inverse_m[...] = np.divide(1, self.m, out=np.zeros_like(norms), where=self.m != 0)
        self.inverse_norms[...] = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)

    def _squares(self, ops: Ops, weight: Any, a: Float32, b: Float32, scale: float) -> NDArray[np.float64]:
        through = np.empty_like(b)  # A Wᵀ, (R, out)
        for row in range(0, len(a), MOST_ROWS):
            part = slice(row, row + MOST_ROWS)
            ops.linear_decode(a[part], ops.linears([weight]), [through[part]])
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        both = 2 * scale * through + scale**2 * (a64 @ a64.T @ b64)
        squares: NDArray[np.float64] = np.maximum(self.weight_squares + (b64 * both).sum(0), 0)
        return squares
