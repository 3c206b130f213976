"""Activations as each ISA stores them, and how far rounding may move a result."""

from __future__ import annotations

from typing import Any

import numpy as np

F32_EPS = 2.0**-24  # half a unit in the last place: the largest relative error of one rounding
BF16_EPS = 2.0**-8


def act_eps(ctx: Any) -> float:
    """The largest relative error of storing one value as an activation."""
    return BF16_EPS if ctx.act_bf16 else F32_EPS


def to_act(ctx: Any, values: np.ndarray) -> np.ndarray:
    """Values as the context stores activations: bfloat16 bits (round to nearest even) or float32."""
    x = np.ascontiguousarray(values, np.float32)
    if not ctx.act_bf16:
        return x
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_act(ctx: Any, stored: np.ndarray) -> np.ndarray:
    """Stored activations as float64."""
    if not ctx.act_bf16:
        return stored.astype(np.float64)
    return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def empty_act(ctx: Any, *shape: int) -> np.ndarray:
    """An output filled with NaN, so that an element that is not written is seen."""
    return to_act(ctx, np.full(shape, np.nan, np.float32)) if not ctx.act_bf16 else np.full(shape, 0x7FC0, np.uint16)


def central_difference(f: Any, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of the scalar function f at x float64, one element at a time."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        above = f(x)
        x[index] = kept - step
        below = f(x)
        x[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient
