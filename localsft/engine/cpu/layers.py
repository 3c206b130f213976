"""The linears of a transformer layer, with their adapters, as the kernels take them.

Letters: T tokens, D hidden, F feed-forward, H query heads, K key/value heads, E head size, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32
from localsft.engine.cpu.buffers import Buffers
from localsft.engine.cpu.dora import Magnitude
from localsft.engine.cpu.ops import Ops

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA on one linear: views of the flat parameters and of their gradient. A (R, in), B (R, out)."""

    a: Float32
    b: Float32
    d_a: Float32
    d_b: Float32
    scale: float
    magnitude: Magnitude | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x Wᵀ + scale·(x Aᵀ) B, W (out, in) frozen; with DoRA times its factors, by column."""

    name: str
    weight: Any
    adapter: Adapter | None


class Group:
    """Linears that read the same input: one activation pack serves all of them, and one product gives their dX."""

    def __init__(self, ops: Ops, *members: Linear) -> None:
        self.members = members
        self.weights = [m.weight for m in members]
        self.widths = [int(m.weight.shape[0]) for m in members]
        self.inputs = int(members[0].weight.shape[1])
        adapters = [m.adapter for m in members]
        self.adapted = any(adapters)
        self.magnitudes = [a.magnitude if a else None for a in adapters]
        self.dora = any(self.magnitudes)
        self.rank = sum(a.a.shape[0] for a in adapters if a)  # ΣR, the columns of u
        self._a = [a.a if a else None for a in adapters]
        self._b = [a.b if a else None for a in adapters]
        self._scales = [a.scale if a else 0.0 for a in adapters]
        d_a, d_b = [a.d_a if a else None for a in adapters], [a.d_b if a else None for a in adapters]
        self.linears = ops.linears(self.weights, self._a, self._b, self._scales, d_a, d_b)

    def forward(
        self, ops: Ops, x: Array, outs: Sequence[Array], u: Float32, *, kept: Array | None = None, x_lora: Array | None = None
    ) -> None:
        """``outs[i]`` = the i-th member of ``x`` act (T, in); ``u`` float32 (T, ΣR) keeps x·Aᵀ for the backward.

        With ``kept``, act (T, out), the one member is added to ``outs[0]`` float32, and with DoRA also kept, before its factors.
        """
        if kept is None or not self.dora:
            ops.linear_forward(x, self.linears, list(outs), u, kept is not None, x_lora)
        else:
            ops.linear_forward(x, self.linears, [kept], u, False, x_lora)
        for magnitude, out in zip(self.magnitudes, outs, strict=True):
            if magnitude:
                ops.scale_columns(out if kept is None else kept, magnitude.factors, out, kept is not None)

    def through_factors(
        self, ops: Ops, d_outs: Sequence[Array], outs: Sequence[Array], into: Sequence[Array], *, kept: bool = False
    ) -> list[Array]:
        """The mirror of DoRA's factors: adds the magnitudes' gradients, and gives what ``backward`` takes.

        ``outs``: what ``forward`` left, act (T, out), or what it ``kept``; ``into``: arrays for the results, which may be ``d_outs``.
        """
        below = list(d_outs)
        for i, magnitude in enumerate(self.magnitudes):
            if magnitude:
                ops.column_dots(d_outs[i], outs[i], magnitude.inverse_norms if kept else magnitude.inverse_m, magnitude.d_m)
                ops.scale_columns(d_outs[i], magnitude.factors, into[i], False)
                below[i] = into[i]
        return below

    def backward(self, ops: Ops, d_outs: Sequence[Array], x: Array, u: Float32, dx: Array | None, *, dx_lora: Array | None = None) -> None:
        """Adds the adapters' gradients; ``dx`` act or float32 (T, in) = dL/dx, or None where nobody needs it."""
        ops.linear_backward(list(d_outs), self.linears, x, u, dx, False, dx_lora)

    @property
    def parts(self) -> tuple[list[Any], list[Any], list[Any], list[float], list[Any]]:
        """Weights, A, B, scales and factors of the members, as ``_core.Decoder`` takes a group."""
        return self.weights, self._a, self._b, self._scales, [m.factors if m else None for m in self.magnitudes]


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer. ``qkv`` is also there as ``q`` and ``kv``: the last layer queries fewer rows than it keys."""

    index: int
    attention_norm: Float32  # (D,)
    qkv: Group
    q: Group
    kv: Group
    o: Group
    mlp_norm: Float32  # (D,)
    gate_up: Group
    down: Group

    @property
    def adapted(self) -> bool:
        return self.qkv.adapted or self.o.adapted or self.gate_up.adapted or self.down.adapted


@dataclass(frozen=True, slots=True)
class Saved:
    """What a layer's forward pass leaves for its backward pass. Norms and the SwiGLU product are recomputed.

    Tq is T, but in the last layer only the rows that predict something.
    """

    h_in: Array  # act (T, D)      the residual stream before attention, as its norm read it
    rstd_in: Float32  # (T,)
    q: Array  # act (Tq, H·E)   after the rotary embedding
    k: Array  # act (T, K·E)
    v: Array  # act (T, K·E)
    o: Array  # act (Tq, H·E)   attention's output
    lse: Float32  # (Tq, H)
    h_mid: Array  # act (Tq, D)     the residual stream before the MLP
    rstd_mid: Float32  # (Tq,)
    gate: Array  # act (Tq, F)
    up: Array  # act (Tq, F)
    u_q: Float32  # (Tq, R) of q alone; only where Tq < T
    u_qkv: Float32  # (T, ΣR) of q, k, v; of k, v alone where Tq < T
    u_o: Float32  # (Tq, R)
    u_gate_up: Float32  # (Tq, ΣR)
    u_down: Float32  # (Tq, R)
    y_o: Array  # act (Tq, D)  of o and of down by themselves; only with DoRA
    y_down: Array


def allocate_saved(buffers: Buffers, prefix: str, layer: Layer, act: Any, tokens: int, rows: int, heads: int) -> Saved:
    """Arrays in the buffers ``prefix`` + "act" and + "f32"; shapes as in ``Saved`` for T = tokens and Tq = rows."""
    hidden = layer.qkv.inputs
    attention, keys = layer.q.widths[0], layer.kv.widths[0]
    ffn = layer.gate_up.widths[0]
    trimmed = rows < tokens
    acts = {
        "h_in": (tokens, hidden),
        "q": (rows, attention),
        "k": (tokens, keys),
        "v": (tokens, keys),
        "o": (rows, attention),
        "h_mid": (rows, hidden),
        "gate": (rows, ffn),
        "up": (rows, ffn),
        "y_o": (rows if layer.o.dora else 0, hidden),
        "y_down": (rows if layer.down.dora else 0, hidden),
    }
    floats = {
        "rstd_in": (tokens,),
        "lse": (rows, heads),
        "rstd_mid": (rows,),
        "u_q": (rows if trimmed else 0, layer.q.rank),
        "u_qkv": (tokens, layer.kv.rank if trimmed else layer.qkv.rank),
        "u_o": (rows, layer.o.rank),
        "u_gate_up": (rows, layer.gate_up.rank),
        "u_down": (rows, layer.down.rank),
    }
    arrays = buffers.carve(prefix + "act", tuple(acts.values()), act) + buffers.carve(prefix + "f32", tuple(floats.values()), np.float32)
    return Saved(**dict(zip([*acts, *floats], arrays, strict=True)))
