"""The forward and backward pass of a llama-like model over a packed batch: mirrored pairs, the backward read upwards.

Letters: T tokens, Tq query rows (T, but in the last layer only rows that predict), D hidden, F feed-forward, H query
heads, K key/value heads, E head size, V vocabulary.

The residual stream ``h`` is float32; inputs of matrix products and saved activations are ``act`` (see ops.py).
What saves work without changing a result: the last layer queries only rows that predict, the head sees only those rows,
frozen layers below the lowest adapted one keep nothing and get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32, Int32, PackedBatch
from localsft.engine.cpu.architecture import Architecture
from localsft.engine.cpu.buffers import Buffers
from localsft.engine.cpu.dora import Magnitude
from localsft.engine.cpu.frozen import RowStore, path_keys
from localsft.engine.cpu.layers import Group, Layer, Linear, Saved, allocate_saved
from localsft.engine.cpu.ops import Ops
from localsft.engine.cpu.rotary import RotaryTable

BLOCK_ROWS = 1024  # that a product packs at a time, at most (csrc/ops_linear.cc)

# Arrays of the backward pass that are never alive together share memory. ``a`` and ``da`` are the MLP's; dx comes when they
# are done with, and in attention after the gradient of its output, do.
_DO, _DX, _DQ = "a", "a", "da"

Array = NDArray[Any]
KeepKeys = Callable[[int, Array, Array], None]  # layer, k act (T, K·E), v act (T, K·E)


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout of the adapters' inputs in one pass: each input site draws its own mask from ``seed``."""

    p: float
    seed: int

    def site(self, layer: int, name: str) -> int:
        """A seed for one input: the counter-based generator makes the same mask again in the backward pass."""
        return (self.seed * 1_000_003 + layer * 8 + ("qkv", "q", "o", "gate_up", "down").index(name)) & 0xFFFF_FFFF_FFFF_FFFF


@dataclass(slots=True)
class Pass:
    """One forward pass, and what its backward pass needs."""

    batch: PackedBatch
    rows: Int32  # (Tq,) the rows that predict something, ascending, each once
    row_of_target: Int32  # (N,) index into ``rows``
    every_row: Int32  # (T,) 0, 1, 2, ...
    cos: Float32  # (T, E/2)
    sin: Float32
    dropout: Dropout | None
    saved: dict[int, Saved] = field(default_factory=dict)  # by layer; under checkpointing only while it is needed
    inputs: dict[int, Float32] = field(default_factory=dict)  # under checkpointing: h before the layer, float32 (T, D)
    frozen_keys: list[bytes] = field(default_factory=list)
    x_final: Array | None = None  # act (Tq, D), the head's input
    h_final: Array | None = None  # act (Tq, D), the residual stream as the final norm read it
    rstd_final: Float32 | None = None

    @property
    def trimmed(self) -> bool:
        return self.rows.size < self.batch.n_tokens


class Model:
    """Weights, kernels and memory for passes over packed batches. ``checkpoint`` recomputes each layer in the backward."""

    def __init__(
        self,
        ops: Ops,
        architecture: Architecture,
        rotary: RotaryTable,
        embedding: Any,
        layers: list[Layer],
        final_norm: Float32,
        head: Any,
        *,
        weight_bytes: int = 0,
        checkpoint: bool = False,
    ) -> None:
        self.ops = ops
        self.architecture = architecture
        self.rotary = rotary
        self.embedding = embedding
        self.layers = layers
        self.final_norm = final_norm
        self.head = head
        self.weight_bytes = weight_bytes  # of the frozen weights as they are held
        self.checkpoint = checkpoint
        self.frozen: RowStore | None = None  # set by the engine's owner: a cache for layers below the lowest adapted one
        self.buffers = Buffers()
        self._dh = "dh" if checkpoint else "h"  # the backward pass has no other use for h, but to compute layers again
        self.lowest = min((layer.index for layer in layers if layer.adapted), default=len(layers))
        groups = [group for layer in layers for group in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        self.magnitudes: list[tuple[Linear, Magnitude]] = [  # of the linears with DoRA, each once
            (linear, linear.adapter.magnitude)
            for group in groups
            for linear in group.members
            if linear.adapter and linear.adapter.magnitude
        ]
        # Where a layer works that keeps nothing: in the arrays of the first that does, which comes later or not at all.
        self._passing = "layer." if checkpoint else f"{self.lowest}."

    def update_factors(self) -> None:
        """DoRA's factors by the adapters' present values: to be called when these have changed."""
        for linear, magnitude in self.magnitudes:
            assert linear.adapter is not None
            magnitude.update(self.ops, linear.weight, linear.adapter.a, linear.adapter.b, linear.adapter.scale)

    def weight_squares(self) -> dict[str, NDArray[np.float64]]:
        """‖W_o‖² (out,) of the linears with DoRA, by name."""
        return {linear.name: magnitude.weight_squares for linear, magnitude in self.magnitudes}

    # ---- forward -----------------------------------------------------------------------------------------------------

    def forward(self, batch: PackedBatch, *, train: bool, dropout: Dropout | None = None, keep_keys: KeepKeys | None = None) -> Pass:
        """From tokens to the head's input. ``train`` keeps what ``backward`` needs."""
        ops, take = self.ops, self.buffers.take
        rows, row_of_target = np.unique(batch.target_rows, return_inverse=True)
        cos, sin = self.rotary.at(batch.positions)
        p = Pass(batch, rows.astype(np.int32), row_of_target.astype(np.int32), np.arange(batch.n_tokens, dtype=np.int32), cos, sin, dropout)

        h = take("h", (batch.n_tokens, self.architecture.hidden), np.float32)
        start = self._skip_frozen(p, h) if keep_keys is None else 0
        if start == 0:
            ops.embed(self.embedding, batch.tokens, h)
        # All at once: between two layers, what this code needs would have to come into the caches again each time.
        saved = {layer.index: self._allocate(p, layer, self._prefix(layer, train)) for layer in self.layers[start:]}
        for layer in self.layers[start:]:
            if layer.index == self.lowest and start == 0 and p.frozen_keys and self.frozen:
                self.frozen.add(p.frozen_keys, h)
            kept = train and layer.index >= self.lowest
            if kept and self.checkpoint:
                p.inputs[layer.index] = take(f"{layer.index}.h", h.shape, np.float32)
                p.inputs[layer.index][...] = h
            s = saved[layer.index]
            h = self._layer_forward(layer, p, h, s)
            if kept and not self.checkpoint:
                p.saved[layer.index] = s
            if keep_keys:
                keep_keys(layer.index, s.k, s.v)
        p.x_final = take("x_final", h.shape, ops.act_dtype)
        p.h_final = take("h_final", h.shape, ops.act_dtype)
        p.rstd_final = take("rstd_final", h.shape[:1], np.float32)
        ops.rms_norm(h, self.final_norm, self.architecture.rms_eps, p.h_final, p.rstd_final, p.x_final)
        return p

    def head_inputs(self, p: Pass) -> Array:
        """act (N, D): the head's input of each target, in the order of the targets."""
        assert p.x_final is not None
        return self._gather("head_x", p.x_final, p.row_of_target)

    def _is_trimmed(self, p: Pass, layer: Layer) -> bool:
        return p.trimmed and layer.index == self.architecture.layers - 1

    def _prefix(self, layer: Layer, train: bool) -> str:
        """Of the names of a layer's arrays."""
        return f"{layer.index}." if train and layer.index >= self.lowest and not self.checkpoint else self._passing

    def _allocate(self, p: Pass, layer: Layer, prefix: str) -> Saved:
        rows = p.rows.size if self._is_trimmed(p, layer) else p.batch.n_tokens
        return allocate_saved(self.buffers, prefix, layer, self.ops.act_dtype, p.batch.n_tokens, rows, self.architecture.heads)

    def _layer_forward(self, layer: Layer, p: Pass, h: Float32, s: Saved) -> Float32:
        """h float32 (T, D) -> (Tq, D)."""
        h = self._attention_forward(layer, p, h, s)
        return self._mlp_forward(layer, p, h, s)

    def _attention_forward(self, layer: Layer, p: Pass, h: Float32, s: Saved) -> Float32:
        ops, arch = self.ops, self.architecture
        x = self._act("x", h.shape)
        ops.rms_norm(h, layer.attention_norm, arch.rms_eps, s.h_in, s.rstd_in, x)
        cos_q, sin_q, q_rows = p.cos, p.sin, p.every_row
        if self._is_trimmed(p, layer):
            q_rows, cos_q, sin_q = p.rows, p.cos[p.rows], p.sin[p.rows]
            x_rows = self._gather("x_rows", x, p.rows)
            self._linear(layer.kv, p, layer.index, "qkv", x, [s.k, s.v], s.u_qkv)
            self._linear(layer.q, p, layer.index, "q", x_rows, [s.q], s.u_q)
            h = self._gather("h_rows", h, p.rows)
        else:
            self._linear(layer.qkv, p, layer.index, "qkv", x, [s.q, s.k, s.v], s.u_qkv)
        ops.rope(s.q, cos_q, sin_q, arch.heads, False)
        ops.rope(s.k, p.cos, p.sin, arch.kv_heads, False)
        ops.attention(
            s.q, s.k, s.v, q_rows, p.batch.segment_starts, p.batch.segment_parents, s.o, s.lse,
            arch.heads, arch.kv_heads, arch.attention_scale, window=arch.window,
        )  # fmt: skip
        self._linear(layer.o, p, layer.index, "o", s.o, [h], s.u_o, kept=s.y_o)
        return h

    def _mlp_forward(self, layer: Layer, p: Pass, h: Float32, s: Saved) -> Float32:
        ops = self.ops
        x = self._act("x", h.shape)
        ops.rms_norm(h, layer.mlp_norm, self.architecture.rms_eps, s.h_mid, s.rstd_mid, x)
        self._linear(layer.gate_up, p, layer.index, "gate_up", x, [s.gate, s.up], s.u_gate_up)
        for rows in self._row_blocks(p, h.shape[0]):
            gate, up = s.gate[rows], s.up[rows]
            a = self._act("a", gate.shape)
            ops.swiglu(gate, up, a)
            self._linear(layer.down, p, layer.index, "down", a, [h[rows]], s.u_down[rows], kept=s.y_down[rows])
        return h

    def _skip_frozen(self, p: Pass, h: Float32) -> int:
        """Fill ``h`` with what leaves the frozen layers, if all of it is known: the first layer to compute, else 0."""
        if self.frozen is None or not 0 < self.lowest < self.architecture.layers:
            return 0
        p.frozen_keys = path_keys(p.batch)
        return self.lowest if self.frozen.read(p.frozen_keys, h) else 0

    # ---- backward ----------------------------------------------------------------------------------------------------

    def backward(self, p: Pass, d_x: Float32) -> None:
        """From dL/d(head input), float32 (N, D) one row a target, down to the lowest adapted layer's adapters."""
        ops, take = self.ops, self.buffers.take
        assert p.x_final is not None and p.h_final is not None
        shape = p.x_final.shape
        d_rows = take("d_rows", shape, np.float32)
        d_rows.fill(0)
        ops.scatter_add_rows(d_x, p.row_of_target, d_rows)
        dh = take("dh_rows", shape, np.float32)
        dh.fill(0)
        ops.rms_norm_backward(ops.to_act(d_rows, self._act("d_act", shape)), p.h_final, self.final_norm, p.rstd_final, dh)
        if not p.trimmed:
            dh = self._copy(self._dh, dh)
        for layer in reversed(self.layers[self.lowest :]):
            dh = self._layer_backward(layer, p, dh, self._saved(layer, p))
            p.saved.pop(layer.index, None)

    def _saved(self, layer: Layer, p: Pass) -> Saved:
        if not self.checkpoint:
            return p.saved[layer.index]
        saved = self._allocate(p, layer, self._passing)
        self._layer_forward(layer, p, self._copy("h", p.inputs[layer.index]), saved)
        return saved

    def _layer_backward(self, layer: Layer, p: Pass, dh: Float32, s: Saved) -> Float32:
        """dh float32 (Tq, D), changed in place -> dL/dh before the layer, float32 (T, D).

        In the lowest adapted layer it stops as soon as no adapter lies below: what it returns then is not used.
        """
        lowest = layer.index == self.lowest
        attention_adapted = layer.qkv.adapted or layer.o.adapted
        self._mlp_backward(layer, p, dh, s, stop=lowest and not attention_adapted)
        if lowest and not attention_adapted:
            return dh
        return self._attention_backward(layer, p, dh, s, stop=lowest)

    def _mlp_backward(self, layer: Layer, p: Pass, dh: Float32, s: Saved, *, stop: bool) -> None:
        ops = self.ops
        # h = h_mid + down(a)
        dy = self._through_kept(layer.down, ops.to_act(dh, self._act("d_act", dh.shape)), s.y_down)
        ends_here = stop and not layer.gate_up.adapted
        d_gate, d_up = s.gate, s.up  # in place: gate and up are not needed again, but by the factors of DoRA
        if layer.gate_up.dora:
            d_gate, d_up = self._act("d_gate", s.gate.shape), self._act("d_up", s.up.shape)
        for rows in self._row_blocks(p, dh.shape[0]):
            gate, up = s.gate[rows], s.up[rows]
            a = self._act("a", gate.shape)
            ops.swiglu(gate, up, a)
            da = None if ends_here else self._act("da", gate.shape)
            self._linear_backward(layer.down, p, layer.index, "down", [dy[rows]], a, s.u_down[rows], da)
            if da is not None:
                ops.swiglu_backward(da, gate, up, d_gate[rows], d_up[rows])
        if ends_here:
            return
        below = self._through(layer.gate_up, [d_gate, d_up], [s.gate, s.up])
        x = self._normed_again(layer.gate_up, "x", s.h_mid, layer.mlp_norm, s.rstd_mid)
        dx = None if stop else self._act(_DX, dh.shape)
        self._linear_backward(layer.gate_up, p, layer.index, "gate_up", below, x, s.u_gate_up, dx)
        if dx is not None:
            ops.rms_norm_backward(dx, s.h_mid, layer.mlp_norm, s.rstd_mid, dh)

    def _attention_backward(self, layer: Layer, p: Pass, dh: Float32, s: Saved, *, stop: bool) -> Float32:
        ops, arch = self.ops, self.architecture
        trimmed = self._is_trimmed(p, layer)
        # h_mid = h_in + o(attention)
        dy = self._through_kept(layer.o, ops.to_act(dh, self._act("d_act", dh.shape)), s.y_o)
        if stop and not layer.qkv.adapted:
            self._linear_backward(layer.o, p, layer.index, "o", [dy], s.o, s.u_o, None)
            return dh
        do = self._act(_DO, s.o.shape)
        self._linear_backward(layer.o, p, layer.index, "o", [dy], s.o, s.u_o, do)
        q_rows = p.rows if trimmed else p.every_row
        dq, dk, dv = self._act(_DQ, s.q.shape), self._act("dk", s.k.shape), self._act("dv", s.v.shape)
        ops.attention_backward(
            s.q, s.k, s.v, s.o, s.lse, do, q_rows, p.batch.segment_starts, p.batch.segment_parents, dq, dk, dv,
            arch.heads, arch.kv_heads, arch.attention_scale, window=arch.window,
        )  # fmt: skip
        cos_q, sin_q = (p.cos[p.rows], p.sin[p.rows]) if trimmed else (p.cos, p.sin)
        ops.rope(dq, cos_q, sin_q, arch.heads, True)
        ops.rope(dk, p.cos, p.sin, arch.kv_heads, True)
        if layer.qkv.dora:  # its factors were applied before the rotary embedding
            ops.rope(s.q, cos_q, sin_q, arch.heads, True)
            ops.rope(s.k, p.cos, p.sin, arch.kv_heads, True)
        x = self._normed_again(layer.qkv, "x", s.h_in, layer.attention_norm, s.rstd_in)
        if not trimmed:
            dx = None if stop else self._act(_DX, s.h_in.shape)
            below = self._through(layer.qkv, [dq, dk, dv], [s.q, s.k, s.v])
            self._linear_backward(layer.qkv, p, layer.index, "qkv", below, x, s.u_qkv, dx)
            if dx is not None:
                ops.rms_norm_backward(dx, s.h_in, layer.attention_norm, s.rstd_in, dh)
            return dh
        dx = None if stop else self.buffers.take("dx_sum" if ops.act_bf16 else _DX, s.h_in.shape, np.float32)
        self._linear_backward(layer.kv, p, layer.index, "qkv", self._through(layer.kv, [dk, dv], [s.k, s.v]), x, s.u_qkv, dx)
        dx_rows = None if stop else self.buffers.take("dx_rows", dh.shape, np.float32)
        below = self._through(layer.q, [dq], [s.q])
        self._linear_backward(layer.q, p, layer.index, "q", below, self._gather("x_rows", x, p.rows), s.u_q, dx_rows)
        if dx is None:
            return dh
        ops.scatter_add_rows(dx_rows, p.rows, dx)
        full = self.buffers.take(self._dh, s.h_in.shape, np.float32)  # the residual path: only the query rows had a gradient
        full.fill(0)
        ops.scatter_add_rows(dh, p.rows, full)
        dx_act = ops.to_act(dx, self._act(_DX, dx.shape))
        ops.rms_norm_backward(dx_act, s.h_in, layer.attention_norm, s.rstd_in, full)
        return full

    # ---- pieces ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _row_blocks(p: Pass, rows: int) -> list[slice]:
        """The rows as the kernels cut them: what lies between two products, so wide in the MLP, exists for a block at a time.
        All rows at once with dropout, whose masks are made by the place in the array."""
        blocks = 1 if p.dropout else max(1, -(-rows // BLOCK_ROWS))
        return [slice(rows * block // blocks, rows * (block + 1) // blocks) for block in range(blocks)]

    def _act(self, name: str, shape: tuple[int, ...]) -> Array:
        return self.buffers.take(name, shape, self.ops.act_dtype)

    def _copy(self, name: str, x: Array) -> Array:
        out = self.buffers.take(name, x.shape, x.dtype)
        out[...] = x
        return out

    def _gather(self, name: str, x: Array, rows: Int32) -> Array:
        out = self.buffers.take(name, (rows.size, x.shape[1]), x.dtype)
        self.ops.gather_rows(x, rows, out)
        return out

    def _normed_again(self, group: Group, name: str, saved: Array, weight: Float32, rstd: Float32) -> Array:
        """The input of ``group`` once more; where it carries no adapter nobody reads it, and ``saved`` stands in."""
        if not group.adapted:
            return saved
        out = self._act(name, saved.shape)
        self.ops.rms_norm_again(saved, weight, rstd, out)
        return out

    def _through(self, group: Group, d_outs: list[Array], outs: list[Array]) -> list[Array]:
        return group.through_factors(self.ops, d_outs, outs, d_outs)

    def _through_kept(self, group: Group, dy: Array, kept: Array) -> Array:
        if not group.dora:
            return dy
        return group.through_factors(self.ops, [dy], [kept], [self._act("d_scaled", dy.shape)], kept=True)[0]

    def _linear(
        self, group: Group, p: Pass, layer: int, site: str, x: Array, outs: list[Array], u: Float32, *, kept: Array | None = None
    ) -> None:
        x_lora = None
        if p.dropout and group.adapted:
            x_lora = self._act("x_lora", x.shape)
            self.ops.dropout(x, p.dropout.p, p.dropout.site(layer, site), x_lora)
        group.forward(self.ops, x, outs, u, kept=kept, x_lora=x_lora)

    def _linear_backward(
        self, group: Group, p: Pass, layer: int, site: str, d_outs: list[Array], x: Array, u: Float32, dx: Array | None
    ) -> None:
        if not (p.dropout and group.adapted):
            group.backward(self.ops, d_outs, x, u, dx)
            return
        seed = p.dropout.site(layer, site)
        x_lora = self._act("x_lora", x.shape)
        self.ops.dropout(x, p.dropout.p, seed, x_lora)
        dx_lora = None if dx is None else self.buffers.take("dx_lora", x.shape, np.float32)
        group.backward(self.ops, d_outs, x_lora, u, dx, dx_lora=dx_lora)
        if dx is not None:
            self.ops.dropout_add(dx_lora, p.dropout.p, seed, dx)
