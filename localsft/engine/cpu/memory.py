"""How much memory a pass takes, known before it runs: the real forward and backward, walked with arrays that hold nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import PackedBatch
from localsft.engine.base import BatchSize
from localsft.engine.cpu.buffers import Buffers, carved
from localsft.engine.cpu.model import BLOCK_ROWS, Model

HEAD_ROWS, HEAD_BYTES = 512, 4 * 2304  # rows of exponentials that exist at a time, and bytes of each, at most (csrc/ops_head.cc)
PACKED_UNITS, MIN_ROWS = 4 << 20, 512  # how rows are cut before they are packed (csrc/ops_linear.cc)
SLAB_STEPS = 4096  # of backward's reduction that are packed at a time, where sums are floats
PER_THREAD = 8 << 20  # panels, partial sums and the state of attention: a few buffers of a huge page each (csrc/scratch.h)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``total`` leaves out what the Python process itself takes."""

    weights: int  # the base model as it is kept: quantized
    adapter: int  # parameters, gradient and AdamW's moments, and a copy of all but the gradient while a checkpoint is written
    activations: int  # saved and working arrays of the largest batch
    kernels: int  # working memory of the kernels

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.kernels


class _CountedBuffers(Buffers):
    """Remembers the largest size asked of each name; what it hands out shares one element."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        self._count(name, max(1, int(np.prod(shape, dtype=np.int64))) * np.dtype(dtype).itemsize)
        return _hollow(shape, dtype)

    def carve(self, name: str, shapes: Sequence[tuple[int, ...]], dtype: Any) -> list[NDArray[Any]]:
        self._count(name, carved(shapes, dtype)[-1])
        return [_hollow(shape, dtype) for shape in shapes]

    def _count(self, name: str, nbytes: int) -> None:
        self.sizes[name] = max(self.sizes.get(name, 0), nbytes)


def _hollow(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))


class _NoOps:
    """Operations that compute nothing; what they would allocate inside is counted in ``Memory.kernels``."""

    def __init__(self, model: Model) -> None:
        self.act_dtype = model.ops.act_dtype
        self.act_bf16 = model.ops.act_bf16
        self.threads = model.ops.threads

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: 0.0

    def to_act(self, x: Any, out: Any) -> Any:
        return out if self.act_bf16 else x


def activation_bytes(model: Model, train: BatchSize, score: BatchSize, recompute: bool) -> int:
    """Bytes of all arrays of a training pass and a scoring pass; arrays of one name are the same memory."""
    buffers = _CountedBuffers()
    shadow = Model(
        _NoOps(model),  # type: ignore[arg-type]
        model.architecture,
        model.rotary,
        model.embedding,
        model.layers,
        model.final_norm,
        model.head,
        checkpoint=recompute,
    )
    shadow.buffers = buffers
    if train.tokens:
        batch = _batch_of(train)
        p = shadow.forward(batch, train=True)
        shadow.head_inputs(p)
        shadow.backward(p, buffers.take("d_x", (batch.n_targets, model.architecture.hidden), np.float32))
    if score.tokens:
        shadow.head_inputs(shadow.forward(_batch_of(score), train=False))
    return sum(buffers.sizes.values())


def _batch_of(size: BatchSize) -> PackedBatch:
    """One segment whose last tokens are supervised."""
    tokens = max(size.tokens, 2)
    targets = max(1, min(size.targets, tokens - 1))
    return PackedBatch(
        tokens=np.zeros(tokens, np.int32),
        positions=np.arange(tokens, dtype=np.int32),
        segment_starts=np.array([0, tokens], np.int32),
        segment_parents=np.array([-1], np.int32),
        target_rows=np.arange(tokens - targets, tokens, dtype=np.int32),
        target_ids=np.zeros(targets, np.int32),
        target_weights=np.ones(targets, np.float32),
    )


def kernel_bytes(model: Model, tokens: int, targets: int, threads: int) -> int:
    """Bytes of the kernels' own working memory: packed rows, blocks of exponentials, keys and their sums, panels."""
    arch, layer = model.architecture, model.layers[0]
    element = 2 if model.ops.act_bf16 else 4
    rows = 0
    for group in (layer.qkv, layer.o, layer.gate_up, layer.down):
        outputs = sum(group.widths)
        slab = outputs if model.ops.act_bf16 else -(-outputs // -(-outputs // SLAB_STEPS))
        for reduction in (group.inputs, slab):
            most = min(max(PACKED_UNITS * element // (4 * reduction), MIN_ROWS), BLOCK_ROWS)
            blocks = -(-tokens // most)
            rows = max(rows, -(-tokens // blocks) * (reduction + 4 * group.rank) * element)
    head_rows = min(targets, HEAD_ROWS)
    exponentials = head_rows * min(HEAD_BYTES, arch.vocab * element)
    keys = tokens * arch.kv_heads * arch.head_size
    return max(rows, head_rows * arch.hidden * element) + exponentials + keys * (3 * element + 8) + threads * PER_THREAD


def memory_of(model: Model, parameters: int, train: BatchSize, score: BatchSize, recompute: bool) -> Memory:
    """Of a run whose largest batches are these; ``parameters`` float32 numbers are adapted."""
    tokens, targets = max(train.tokens, score.tokens), max(train.targets, score.targets)
    return Memory(
        weights=model.weight_bytes,
        adapter=28 * parameters,
        activations=activation_bytes(model, train, score, recompute),
        kernels=kernel_bytes(model, tokens, targets, model.ops.threads) if tokens else 0,
    )
