"""The MLX engine: mlx-lm's models, our packing, loss and optimizer behind the Engine protocol.

What changes in a run lives here: the adapter's float32 tensors, AdamW's moments, the gradient accumulated since the last
step, and the counts of steps and passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32, Int32, LossSum, PackedBatch
from localsft.config import LoraConfig, OptimConfig
from localsft.engine.adapter import adapter_shapes, fitting, initial_adapter, optimizer_shapes, split_like, unchanging
from localsft.engine.base import BatchSize, EngineInfo, Generated, Sampling
from localsft.engine.mlx.adamw import Tensors, adamw, squared_norm
from localsft.engine.mlx.checkpointed import Checkpointed
from localsft.engine.mlx.decode import generate
from localsft.engine.mlx.forward import Arrays, hidden_states, to_arrays
from localsft.engine.mlx.layout import Layout
from localsft.engine.mlx.lora import Adapter, linear_shapes
from localsft.engine.mlx.loss import HeadLoss, head_in_float32, rows_at_once
from localsft.engine.mlx.memory import Sizes, limit_memory
from localsft.engine.mlx.model import load_model
from localsft.engine.mlx.packed_cache import with_token_positions
from localsft.engine.mlx.parts import take_apart, with_layers
from localsft.engine.mlx.probe import find_packing
from localsft.weights.load import BaseModel


class MlxEngine:
    """See ``engine.base.Engine`` for what each method does.

    ``dtype``: of computation; default: the base's own. ``checkpoint``: recompute layers in the backward pass instead of
    keeping their activations. ``compiled``: fuse operations with ``mx.compile``; default: on a GPU (MLX's CPU back end runs
    a C++ compiler for each fused kernel).
    """

    def __init__(
        self,
        base: BaseModel,
        lora: LoraConfig,
        optim: OptimConfig,
        *,
        seed: int = 0,
        checkpoint: bool = False,
        dtype: mx.Dtype | None = None,
        compiled: bool | None = None,
    ) -> None:
        self.lora = lora
        self.optim = optim
        self.seed = seed
        self.model = load_model(base, dtype)
        with_token_positions(self.model)
        parts = take_apart(self.model, base.config.model_type)
        self._trunk = parts.trunk
        self._hidden_size = base.config.hidden_size
        self.packing = find_packing(self.model, parts, base.config.vocab_size)
        self.shapes = adapter_shapes(linear_shapes(self.model), lora)
        self._sizes = Sizes.of(
            self.model,
            self.shapes,
            layers=len(parts.layers),
            hidden=base.config.hidden_size,
            heads=base.config.n_heads,
            vocabulary=base.config.vocab_size,
            dtype=parts.dtype,
            chunk=rows_at_once(base.config.vocab_size),
        )
        self._adapter = Adapter(self.model, self.shapes, lora.scale, lora.dropout)
        layers: list[Any] = [Checkpointed(layer) for layer in parts.layers] if checkpoint else parts.layers
        self._training_trunk = with_layers(parts.trunk, layers)
        self._head = HeadLoss(parts.head, base.config.vocab_size, in_float32=head_in_float32(parts.head))
        self._values: Tensors = {}
        self._m: Tensors = {}
        self._v: Tensors = {}
        self.traces = 0  # how often Python ran through a pass: once for new shapes where it is compiled, else every time
        self.compiled = mx.default_device() == mx.gpu if compiled is None else compiled
        wrap = mx.compile if self.compiled else _as_it_is
        self._gradient_pass = wrap(self._add_gradient)
        self._score_pass = wrap(self._score)
        self._apply = wrap(adamw(optim))
        self._step = 0  # steps applied: AdamW's t
        self._passes = 0  # batches accumulated since the last step: with the step, the key of their dropout masks
        self._gradient: Tensors = {}
        self._weight = 0.0  # Σ w accumulated since the last step
        self._loss_finite = True
        self._drop_gradient()
        self.load_adapter(initial_adapter(self.shapes, seed, self._adapter.weight_squares()))
        self.load_optimizer_state({name: np.zeros(shape, np.float32) for name, shape in optimizer_shapes(self.shapes).items()})
        self._details = {
            "device": str(mx.default_device()),
            "precision": str(parts.dtype).removeprefix("mlx.core."),
            "packing": str(self.packing),
        }

    @property
    def info(self) -> EngineInfo:
        """With the shapes that were compiled so far, where ``mx.compile`` is on."""
        traced = {"compiled_shapes": self.traces} if self.compiled else {}
        return EngineInfo("mlx", "metal" if mx.metal.is_available() else "mlx-cpu", 0, self._details | traced)

    def memory(self, train: BatchSize, score: BatchSize, recompute: bool) -> int:
        return self._sizes.total(train, score, recompute)

    def speed_up(self, tokens: int, free: int) -> int:
        return 0  # nothing of MLX's gets faster by memory

    def hold_to(self, memory: int) -> None:
        limit_memory(memory, self._sizes.weights)

    def accumulate(self, batch: PackedBatch) -> LossSum:
        if batch.n_targets == 0:
            return LossSum()
        key = mx.random.key((self.seed << 40) + (self._step << 16) + self._passes)
        self._passes += 1
        loss, self._gradient = self._gradient_pass(self._values, self._gradient, key, to_arrays(self._layout(batch)))
        mx.eval(loss, self._gradient)
        total = float(loss)
        self._weight += batch.weight
        self._loss_finite &= math.isfinite(total)
        return LossSum(total, batch.weight)

    def pool(self, total: Callable[[Float32], Float32]) -> None:
        mine = [*_to_numpy(self._gradient).values(), np.array([self._weight, not self._loss_finite], np.float32)]
        *pooled, rest = split_like(total(np.concatenate([x.ravel() for x in mine])), mine)
        self._gradient = {name: mx.array(gradient) for name, gradient in zip(self._gradient, pooled, strict=True)}
        self._weight, self._loss_finite = float(rest[0]), not rest[1]

    def step(self, lr: float) -> float:
        gradient, weight, finite = self._gradient, self._weight, self._loss_finite
        self._drop_gradient()
        norm = math.sqrt(float(squared_norm(gradient))) / weight if weight else math.nan
        if not finite or not math.isfinite(norm):
            return norm if finite else math.nan
        self._step += 1
        beta1, beta2 = self.optim.betas
        clip = min(1.0, self.optim.max_grad_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        numbers = (clip / weight, lr, 1 - beta1**self._step, 1 - beta2**self._step)
        self._values, self._m, self._v = self._apply(self._values, self._m, self._v, gradient, *map(mx.array, numbers))
        mx.eval(self._values, self._m, self._v)
        return norm

    def score(self, batch: PackedBatch) -> tuple[Float32, NDArray[np.bool_]]:
        if batch.n_targets == 0:
            return np.zeros(0, np.float32), np.zeros(0, np.bool_)
        logprobs, correct = self._score_pass(self._values, to_arrays(self._layout(batch)))
        return np.array(logprobs)[: batch.n_targets], np.array(correct)[: batch.n_targets]

    def logits(self, batch: PackedBatch) -> Float32:
        """float32 (N, V) of the batch's target rows, in the order of the targets: for comparisons, not for training."""
        self._adapter.put(self._values)
        arrays = to_arrays(self._layout(batch))
        rows = hidden_states(self._trunk, self.packing, arrays["blocks"])[arrays["slots"]]
        return np.array(self._head.logits(rows))[: batch.n_targets]

    def generate(self, prompts: Sequence[Int32], sampling: Sampling) -> Iterator[Generated]:
        self._adapter.put(self._values)
        self.model.eval()
        return generate(self.model, self._trunk, self._head, self.packing, prompts, sampling)

    def gradients(self) -> dict[str, Float32]:
        """The gradient of Σ w·CE accumulated since the last step, by name: for tests."""
        return _to_numpy(self._gradient)

    def adapter(self) -> dict[str, Float32]:
        return _to_numpy(self._values)

    def unchanging(self) -> dict[str, Float32]:
        return unchanging(self.shapes, self._adapter.weight_squares())

    def load_adapter(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._values = {name: mx.array(value) for name, value in fitting(tensors, self.shapes).items()}

    def optimizer_state(self) -> dict[str, NDArray[Any]]:
        moments = {f"m.{name}": value for name, value in self._m.items()} | {f"v.{name}": value for name, value in self._v.items()}
        return {"step": np.array(self._step, np.float32), **_to_numpy(moments)}

    def load_optimizer_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        fitted = fitting(state, optimizer_shapes(self.shapes), "the optimizer state")
        self._m = {name: mx.array(fitted[f"m.{name}"]) for name in self.shapes}
        self._v = {name: mx.array(fitted[f"v.{name}"]) for name in self.shapes}
        self._step = int(fitted["step"])

    def _layout(self, batch: PackedBatch) -> Layout:
        return self.packing.layout(batch, self._hidden_size)

    def _drop_gradient(self) -> None:
        self._gradient = {name: mx.zeros(shape) for name, shape in self.shapes.items()}
        self._weight, self._loss_finite, self._passes = 0.0, True, 0

    def _add_gradient(self, values: Tensors, gradient: Tensors, key: mx.array, arrays: Arrays) -> tuple[mx.array, Tensors]:
        self.traces += 1

        self.model.train()  # some families run other kernels then, which have a gradient

        def loss(values: Tensors) -> mx.array:
            self._adapter.put(values, key)
            hidden = hidden_states(self._training_trunk, self.packing, arrays["blocks"])
            return self._head.sum(hidden[arrays["slots"]], arrays["ids"], arrays["weights"])

        total, new = mx.value_and_grad(loss)(values)
        return total, {name: gradient[name] + new[name] for name in gradient}

    def _score(self, values: Tensors, arrays: Arrays) -> tuple[mx.array, mx.array]:
        self.traces += 1
        self._adapter.put(values)
        hidden = hidden_states(self._trunk, self.packing, arrays["blocks"])
        return self._head.score(hidden[arrays["slots"]], arrays["ids"])


def _as_it_is(function: Any) -> Any:
    return function


def _to_numpy(tensors: Mapping[str, mx.array]) -> dict[str, Float32]:
    return {name: np.array(value, np.float32) for name, value in tensors.items()}
