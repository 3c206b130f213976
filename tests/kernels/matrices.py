"""Weights in every form the kernels read, beside the float64 values that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from localsft import _core
from tests.kernels.numerics import to_act

Place = Callable[[np.ndarray], np.ndarray]  # where an array's copy is put


def anywhere(array: np.ndarray) -> np.ndarray:
    return array


@dataclass(frozen=True)
class Case:
    """A weight handed to the kernels, and what it holds: ``exact`` float32 values (N, K)."""

    weight: _core.Weight
    exact: np.ndarray


def bf16_bits(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def multiplied(ctx: Any, x: np.ndarray) -> np.ndarray:
    """float64 values of x as the ISA multiplies them: rounded to bfloat16 where its units are bfloat16."""
    x = np.ascontiguousarray(x, np.float32)
    return (from_bf16(to_act(ctx, x)) if ctx.act_bf16 else x).astype(np.float64)


def pack(q: np.ndarray, bits: int) -> np.ndarray:
    """(N, K) values below 2^bits as uint32 words (N, K·bits/32): value i at bits [i·bits, (i+1)·bits) of the row."""
    rows, columns = q.shape
    stream = (q[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(stream.reshape(rows, columns * bits).astype(np.uint8), axis=1, bitorder="little").view(np.uint32)


def affine(rng: np.random.Generator, n: int, k: int, bits: int, group: int, scales: str = "f16", place: Place = anywhere) -> Case:
    q = rng.integers(0, 2**bits, (n, k))
    q[0, :] = 2**bits - 1
    scale = rng.normal(size=(n, k // group)).astype(np.float32) * np.float32(2.0**-bits)
    bias = rng.normal(size=(n, k // group)).astype(np.float32)
    stored: tuple[np.ndarray, np.ndarray]
    if scales == "bf16":
        stored = bf16_bits(scale), bf16_bits(bias)
        scale, bias = from_bf16(stored[0]), from_bf16(stored[1])
    else:
        dtype = {"f16": np.float16, "f32": np.float32}[scales]
        stored = scale.astype(dtype), bias.astype(dtype)
        scale, bias = stored[0].astype(np.float32), stored[1].astype(np.float32)
    # float64 holds scale·q exactly and the sum nearly so: one rounding to float32, as a fused multiply-add has.
    exact = np.repeat(scale.astype(np.float64), group, 1) * q + np.repeat(bias.astype(np.float64), group, 1)
    weight = _core.affine_weight(place(pack(q, bits)), *map(place, stored), bits, group, scales == "bf16")
    return Case(weight, exact.astype(np.float32))


def dense(rng: np.random.Generator, n: int, k: int, dtype: str = "f32", place: Place = anywhere) -> Case:
    x = rng.normal(size=(n, k)).astype(np.float32)
    if dtype == "bf16":
        return Case(_core.dense_weight(place(bf16_bits(x)), True), from_bf16(bf16_bits(x)))
    stored = x.astype({"f32": np.float32, "f16": np.float16}[dtype])
    return Case(_core.dense_weight(place(stored)), stored.astype(np.float32))


def make(rng: np.random.Generator, form: str, n: int, k: int, place: Place = anywhere) -> Case:
    """form: f32, f16, bf16, or "<bits>x<group>[:scale dtype]"."""
    if form[0] in "fb":
        return dense(rng, n, k, form, place)
    shape, _, scales = form.partition(":")
    bits, group = shape.split("x")
    return affine(rng, n, k, int(bits), int(group), scales or "f16", place)
