"""The CPU engine: our kernels behind the Engine protocol. State lives here: parameters, moments, counts of steps and passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32, Int32, LossSum, PackedBatch
from localsft.config import LoraConfig, OptimConfig
from localsft.engine.adapter import fitting, initial_adapter, optimizer_shapes, split_like, unchanging
from localsft.engine.base import BatchSize, EngineInfo, Generated, Sampling
from localsft.engine.cpu.build import build_model
from localsft.engine.cpu.decode import generate
from localsft.engine.cpu.memory import memory_of
from localsft.engine.cpu.model import Dropout
from localsft.engine.cpu.ops import Ops
from localsft.engine.cpu.panels import keep_panels, room_for_panels
from localsft.frozen_cache import FrozenCache, cache_key
from localsft.weights.load import BaseModel

FROZEN_CACHE_BYTES = 8 << 30
FROZEN_NUMERICS = 4  # counts up when the kernels add in another order: what an older build computed differs in its last digits


class CpuEngine:
    """See ``engine.base.Engine`` for what each method does.

    ``ops`` are the kernels of one ISA with their threads. ``checkpoint`` recomputes layers in the backward pass instead of
    keeping their activations: the same result, bit by bit, in less memory and more time.
    """

    def __init__(
        self,
        base: BaseModel,
        lora: LoraConfig,
        optim: OptimConfig,
        ops: Ops,
        *,
        seed: int = 0,
        checkpoint: bool = False,
    ) -> None:
        self.ops = ops
        self.lora = lora
        self.optim = optim
        self.seed = seed
        self._base_hash = base.hash
        self.model, self.parameters = build_model(base, lora, ops, checkpoint=checkpoint)
        self.info = EngineInfo("cpu", ops.isa, ops.threads, {"activations": "bfloat16" if ops.act_bf16 else "float32"})
        self._step = 0  # steps applied: AdamW's t
        self._passes = 0  # batches accumulated since the last step: with the step, the key of their dropout masks
        self._weight = 0.0  # Σ w accumulated since the last step
        self._loss_finite = True
        self.load_adapter(initial_adapter(self.parameters.shapes, seed, self.model.weight_squares()))

    def keep_frozen(self, folder: Path, max_bytes: int = FROZEN_CACHE_BYTES) -> None:
        """Keep what leaves the layers below the lowest adapted one under ``folder``; nothing to do where all are adapted."""
        model = self.model
        if 0 < model.lowest < model.architecture.layers:
            key = cache_key(base=self._base_hash, layer=model.lowest, isa=self.ops.isa, numerics=FROZEN_NUMERICS)
            model.frozen = FrozenCache(folder, key, model.architecture.hidden, max_bytes)

    def memory(self, train: BatchSize, score: BatchSize, recompute: bool) -> int:
        return memory_of(self.model, self.parameters.values.size, train, score, recompute).total

    def speed_up(self, tokens: int, free: int) -> int:
        return keep_panels(self.model, room_for_panels(self.model, tokens, free))

    def hold_to(self, memory: int) -> None:
        """Buffers are numpy's; there is no allocator of ours that could be told."""

    def accumulate(self, batch: PackedBatch) -> LossSum:
        if batch.n_targets == 0:
            return LossSum()
        model = self.model
        dropout = Dropout(self.lora.dropout, (self.seed << 40) + (self._step << 16) + self._passes) if self.lora.dropout else None
        self._passes += 1
        p = model.forward(batch, train=True, dropout=dropout)
        d_x = model.buffers.take("d_x", (batch.n_targets, model.architecture.hidden), np.float32)
        loss = self.ops.head_loss(model.head_inputs(p), model.head, batch.target_ids, batch.target_weights, d_x)
        model.backward(p, d_x)
        self._weight += batch.weight
        self._loss_finite &= math.isfinite(loss)
        return LossSum(loss, batch.weight)

    def pool(self, total: Callable[[Float32], Float32]) -> None:
        values = self.parameters
        mine = [*values.export(values.gradient).values(), np.array([self._weight, not self._loss_finite], np.float32)]
        *pooled, rest = split_like(total(np.concatenate([x.ravel() for x in mine])), mine)
        for name, gradient in zip(values.shapes, pooled, strict=True):
            values.view(values.gradient, name)[...] = gradient.T if name.endswith(".lora_a") else gradient
        self._weight, self._loss_finite = float(rest[0]), not rest[1]

    def step(self, lr: float) -> float:
        values = self.parameters
        weight, finite = self._weight, self._loss_finite
        self._weight, self._loss_finite, self._passes = 0.0, True, 0
        norm = math.sqrt(self.ops.squared_norm(values.gradient)) / weight if weight else math.nan
        if finite and math.isfinite(norm):
            self._step += 1
            clip = min(1.0, self.optim.max_grad_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
            beta1, beta2 = self.optim.betas
            self.ops.adamw(
                values.values, values.gradient, values.moment1, values.moment2,
                lr, beta1, beta2, self.optim.eps, self.optim.weight_decay, self._step, clip / weight,
            )  # fmt: skip
            self.model.update_factors()
        else:
            values.gradient.fill(0)
        return norm if finite else math.nan

    def score(self, batch: PackedBatch) -> tuple[Float32, NDArray[np.bool_]]:
        logprobs = np.zeros(batch.n_targets, dtype=np.float32)
        correct = np.zeros(batch.n_targets, dtype=np.bool_)
        if batch.n_targets:
            p = self.model.forward(batch, train=False)
            self.ops.head_score(self.model.head_inputs(p), self.model.head, batch.target_ids, logprobs, correct)
        return logprobs, correct

    def logits(self, batch: PackedBatch) -> Float32:
        """float32 (N, V) of the batch's target rows, in the order of the targets: for comparisons, not for training."""
        out = np.empty((batch.n_targets, self.model.architecture.vocab), dtype=np.float32)
        p = self.model.forward(batch, train=False)
        self.ops.head_logits(self.model.head_inputs(p), self.model.head, out)
        return out

    def generate(self, prompts: Sequence[Int32], sampling: Sampling) -> Iterator[Generated]:
        return generate(self.model, prompts, sampling)

    def gradients(self) -> dict[str, Float32]:
        """The gradient of Σ w·CE accumulated since the last step, by name: for tests."""
        return self.parameters.export(self.parameters.gradient)

    def adapter(self) -> dict[str, Float32]:
        return self.parameters.export(self.parameters.values)

    def unchanging(self) -> dict[str, Float32]:
        return unchanging(self.parameters.shapes, self.model.weight_squares())

    def load_adapter(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.parameters.load(self.parameters.values, tensors, "the adapter")
        self.model.update_factors()

    def optimizer_state(self) -> dict[str, NDArray[Any]]:
        values = self.parameters
        state: dict[str, NDArray[Any]] = {"step": np.array(self._step, np.float32)}
        state |= {f"m.{name}": x for name, x in values.export(values.moment1).items()}
        return state | {f"v.{name}": x for name, x in values.export(values.moment2).items()}

    def load_optimizer_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        fitted = fitting(state, optimizer_shapes(self.parameters.shapes), "the optimizer state")
        values = self.parameters
        for moment, flat in (("m.", values.moment1), ("v.", values.moment2)):
            values.load(flat, {name[2:]: x for name, x in fitted.items() if name.startswith(moment)}, "the optimizer state")
        self._step = int(fitted["step"])
