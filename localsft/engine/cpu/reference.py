"""The operations of the CPU engine in plain numpy, computed in float64: what the compiled kernels are held against,
by the tests and by ``localsft doctor --selftest``.

``ReferenceOps`` stands in for ``localsft.engine.cpu.ops.Ops``, so that a whole model can run on it. With ``bf16`` it rounds to
bfloat16 wherever the kernels may (stored activations, inputs of matrix products): the plain implementation in that precision,
whose error against the exact values is the measure for the kernels'. Its activations are then float64 arrays of such values.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from localsft.weights.quant import as_f32, bf16_to_f32, f32_to_bf16

Array = Any


def softmax_masked(scores: Array, visible: Array) -> tuple[Array, Array]:
    """Row softmax over visible entries, and log-sum-exp."""
    scores = np.where(visible, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    e = np.exp(scores - top)
    return e / e.sum(-1, keepdims=True), (top + np.log(e.sum(-1, keepdims=True)))[..., 0]


def visibility(q_rows: Array, starts: Array, parents: Array, window: int) -> Array:
    """bool (Mq, T): own segment causally, ancestors wholly; a window counts tokens along the path from the root."""
    total = int(starts[-1])
    segment = np.repeat(np.arange(len(parents)), np.diff(starts))
    visible = np.zeros((len(q_rows), total), bool)
    for i, row in enumerate(q_rows):
        path = list(range(int(starts[segment[row]]), int(row) + 1))
        ancestor = int(parents[segment[row]])
        while ancestor >= 0:
            path = list(range(int(starts[ancestor]), int(starts[ancestor + 1]))) + path
            ancestor = int(parents[ancestor])
        visible[i, path[-window:] if window else path] = True
    return visible


class _Linear(NamedTuple):
    """One of the linears that read the same input; None where it has no adapter."""

    weight: Array
    a: Array | None
    b: Array | None
    scale: float | None
    d_a: Array | None
    d_b: Array | None


class ReferenceOps:
    """Stands in for ``Ops``; each method is the operation of that name (csrc/ops_*.h)."""

    isa = "reference"
    threads = 1
    act_bf16 = False

    def __init__(self, bf16: bool = False) -> None:
        self.bf16 = bf16
        self.act_dtype: Any = np.float64 if bf16 else np.float32

    def weight(self, tensor: Any) -> Array:
        return as_f32(tensor).astype(np.float64)

    def low(self, x: Array) -> Array:
        """As an input of a matrix product."""
        return bf16_to_f32(f32_to_bf16(np.asarray(x, np.float32))).astype(np.float64) if self.bf16 else x.astype(np.float64)

    def put(self, out: Array, value: Array) -> None:
        """Into a float32 array or, rounded, into an array of activations."""
        out[...] = self.low(value) if out.dtype == np.float64 else value

    def to_act(self, x: Array, out: Array) -> Array:
        if not self.bf16:
            return x
        self.put(out, x)
        return out

    def embed(self, weight: Array, tokens: Array, out: Array) -> None:
        out[...] = weight[tokens]

    def linears(
        self, weights: Any, lora_a: Any = (), lora_b: Any = (), scales: Any = (), d_lora_a: Any = (), d_lora_b: Any = ()
    ) -> list[_Linear]:
        return [_Linear(*parts) for parts in zip_longest(weights, lora_a, lora_b, scales, d_lora_a, d_lora_b)]

    def linear_forward(self, x: Any, linears: Any, outs: Any, u: Any, add: Any, x_lora: Any = None) -> None:
        x64, low = x.astype(np.float64), (x if x_lora is None else x_lora).astype(np.float64)
        column = 0
        for (weight, a, b, scale, _, _), out in zip(linears, outs, strict=True):
            y = x64 @ self.low(weight).T
            if a is not None:
                down = low @ self.low(a).T
                u[:, column : column + a.shape[0]] = down
                column += a.shape[0]
                y += self.low(scale * down) @ self.low(b)
            self.put(out, out + y if add else y)

    def linear_decode(self, x: Any, linears: Any, outs: Any) -> None:
        for (weight, a, b, scale, _, _), out in zip(linears, outs, strict=True):
            out[...] = x.astype(np.float64) @ weight.T
            if a is not None:
                out += scale * (x.astype(np.float64) @ a.T.astype(np.float64)) @ b

    def scale_columns(self, x: Any, c: Any, out: Any, add: Any) -> None:
        y = x.astype(np.float64) * c
        self.put(out, out + y if add else y)

    def column_dots(self, x: Any, y: Any, r: Any, out: Any) -> None:
        out += r * (x.astype(np.float64) * y).sum(0)

    def linear_backward(self, dys: Any, linears: Any, x: Any, u: Any, dx: Any, add: Any, dx_lora: Any = None) -> None:
        total, low = 0.0, 0.0
        column = 0
        for dy, (weight, a, b, scale, d_a, d_b) in zip(dys, linears, strict=True):
            dy = dy.astype(np.float64)
            total = total + dy @ self.low(weight)
            if a is not None:
                down = u[:, column : column + a.shape[0]].astype(np.float64)
                column += a.shape[0]
                du = scale * dy @ self.low(b).T
                d_b += scale * down.T @ dy
                d_a += du.T @ x.astype(np.float64)
                low = low + self.low(du) @ self.low(a)
        if dx_lora is not None:
            dx_lora[...] = low
        else:
            total = total + low
        if dx is not None:
            self.put(dx, dx + total if add else total)

    def head_loss(self, x: Any, weight: Any, target_ids: Any, target_weights: Any, dx: Any) -> float:
        logits = x.astype(np.float64) @ self.low(weight).T
        w = target_weights.astype(np.float64)
        p, lse = softmax_masked(logits, np.ones_like(logits, bool))
        rows = np.arange(len(target_ids))
        loss = float((w * (lse - logits[rows, target_ids])).sum())
        if dx is not None:
            p[rows, target_ids] -= 1
            dx[...] = self.low(p * w[:, None]) @ self.low(weight)
        return loss

    def head_score(self, x: Any, weight: Any, target_ids: Any, logprobs: Any, correct: Any) -> None:
        logits = x.astype(np.float64) @ self.low(weight).T
        _, lse = softmax_masked(logits, np.ones_like(logits, bool))
        logprobs[...] = logits[np.arange(len(target_ids)), target_ids] - lse
        correct[...] = logits.argmax(-1) == target_ids

    def head_logits(self, x: Any, weight: Any, out: Any) -> None:
        out[...] = x.astype(np.float64) @ self.low(weight).T

    def rms_norm(self, h: Any, weight: Any, eps: Any, saved: Any, rstd: Any, out: Any) -> None:
        self.put(saved, h)
        rstd[...] = 1 / np.sqrt((saved.astype(np.float64) ** 2).mean(-1) + eps)
        self.put(out, saved * rstd[:, None] * weight)

    def rms_norm_again(self, saved: Any, weight: Any, rstd: Any, out: Any) -> None:
        self.put(out, saved * rstd[:, None] * weight)

    def rms_norm_backward(self, dy: Any, saved: Any, weight: Any, rstd: Any, dx: Any) -> None:
        hat = saved.astype(np.float64) * rstd[:, None]
        g = dy.astype(np.float64) * weight
        dx += rstd[:, None] * (g - hat * (g * hat).mean(-1, keepdims=True))

    def rope(self, x: Any, cos: Any, sin: Any, heads: Any, inverse: Any) -> None:
        rows, width = x.shape
        y = x.reshape(rows, heads, 2, width // heads // 2)
        c, s = cos[:, None, :], (-sin if inverse else sin)[:, None, :]
        first, second = y[:, :, 0] * c - y[:, :, 1] * s, y[:, :, 1] * c + y[:, :, 0] * s
        self.put(y, np.stack([first, second], 2))

    def swiglu(self, gate: Any, up: Any, out: Any) -> None:
        g = gate.astype(np.float64)
        self.put(out, g / (1 + np.exp(-np.maximum(g, -700))) * up)

    def swiglu_backward(self, dy: Any, gate: Any, up: Any, d_gate: Any, d_up: Any) -> None:
        g, u, d = gate.astype(np.float64), up.astype(np.float64), dy.astype(np.float64)
        sigmoid = 1 / (1 + np.exp(-np.maximum(g, -700)))
        self.put(d_gate, d * u * sigmoid * (1 + g * (1 - sigmoid)))
        self.put(d_up, d * g * sigmoid)

    def _attention_parts(
        self, q: Any, k: Any, v: Any, q_rows: Any, starts: Any, parents: Any, heads: Any, kv_heads: Any, scale: Any, window: Any
    ) -> tuple[Any, ...]:
        size = q.shape[1] // heads
        group = heads // kv_heads
        q64 = q.reshape(-1, heads, size).astype(np.float64)
        k64 = np.repeat(k.reshape(-1, kv_heads, size).astype(np.float64), group, 1)
        v64 = np.repeat(v.reshape(-1, kv_heads, size).astype(np.float64), group, 1)
        visible = visibility(q_rows, starts, parents, window)[:, None, :]
        p, lse = softmax_masked(np.einsum("qhe,khe->qhk", q64, k64) * scale, visible)
        return q64, k64, v64, p, lse, group

    def attention(
        self,
        q: Any,
        k: Any,
        v: Any,
        q_rows: Any,
        starts: Any,
        parents: Any,
        out: Any,
        lse: Any,
        heads: Any,
        kv_heads: Any,
        scale: Any,
        window: Any = 0,
        softcap: Any = 0.0,
    ) -> None:
        _, _, v64, p, sums, _ = self._attention_parts(q, k, v, q_rows, starts, parents, heads, kv_heads, scale, window)
        self.put(out, np.einsum("qhk,khe->qhe", self.low(p), v64).reshape(out.shape))
        lse[...] = sums

    def attention_backward(
        self,
        q: Any,
        k: Any,
        v: Any,
        out: Any,
        lse: Any,
        d_out: Any,
        q_rows: Any,
        starts: Any,
        parents: Any,
        dq: Any,
        dk: Any,
        dv: Any,
        heads: Any,
        kv_heads: Any,
        scale: Any,
        window: Any = 0,
        softcap: Any = 0.0,
    ) -> None:
        q64, k64, v64, p, _, group = self._attention_parts(q, k, v, q_rows, starts, parents, heads, kv_heads, scale, window)
        do = d_out.reshape(q64.shape).astype(np.float64)
        dp = np.einsum("qhe,khe->qhk", do, v64)
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
        self.put(dq, np.einsum("qhk,khe->qhe", self.low(ds), k64).reshape(dq.shape))

        def per_kv(x: Array) -> Array:
            return x.reshape(x.shape[0], kv_heads, group, x.shape[2]).sum(2).reshape(x.shape[0], -1)

        self.put(dk, per_kv(np.einsum("qhk,qhe->khe", self.low(ds), q64)))
        self.put(dv, per_kv(np.einsum("qhk,qhe->khe", self.low(p), do)))

    def gather_rows(self, x: Any, rows: Any, out: Any) -> None:
        out[...] = x[rows]

    def scatter_add_rows(self, x: Any, rows: Any, out: Any) -> None:
        np.add.at(out, rows, x)

    def squared_norm(self, g: Any) -> float:
        return float((g.astype(np.float64) ** 2).sum())

    def adamw(
        self, p: Any, g: Any, m: Any, v: Any, lr: Any, beta1: Any, beta2: Any, eps: Any, weight_decay: Any, step: Any, grad_scale: Any
    ) -> None:
        g64 = g.astype(np.float64) * grad_scale
        m64, v64 = beta1 * m + (1 - beta1) * g64, beta2 * v + (1 - beta2) * g64**2
        m[...], v[...] = m64, v64
        g[...] = 0
        p64 = p * (1 - lr * weight_decay)
        p[...] = p64 - lr * (m64 / (1 - beta1**step)) / (np.sqrt(v64 / (1 - beta2**step)) + eps)
