"""The memory of a run, counted before it starts.

What MLX keeps for the backward pass, as ``mx.get_peak_memory`` shows it on llamas of several sizes: for each token and layer
about two arrays as wide as each linear's output, six as wide as the hidden states, and the attention scores one and a half times
(training attention is not fused, on Metal neither). A layer that is being differentiated takes about as much again.

Letters: T tokens, N targets, D hidden size, H query heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from localsft.engine.adapter import Shape, in_layer
from localsft.engine.base import BatchSize
from localsft.engine.mlx.lora import linear_shapes

PADDING = 1.15  # slots that are computed for each token of mixed lengths
KEYS = 1.25  # keys in a row, its prefix included, for each token of the longest example
LOGIT_COPIES = 3.5  # float32 arrays as large as a chunk's logits while it is differentiated
OPTIMIZER_COPIES = 8  # values, moments, gradients, and the new ones while a step is applied


def limit_memory(planned: int, weights: int) -> None:
    """Hold MLX's allocator to a plan of so many bytes, of which ``weights`` stay for the whole run.

    Beyond the plan freed buffers are given back instead of kept; MLX itself fails only where the system has nothing left. What is
    kept for reuse is at most what the passes need, so that a run never holds more than its plan when it is idle. On GPUs the plan
    is wired, up to what the system recommends: pages that move out and in again make a step several times as long.
    """
    mx.set_memory_limit(planned)
    mx.set_cache_limit(max(0, planned - weights))
    if recommended := mx.device_info().get("max_recommended_working_set_size"):
        mx.set_wired_limit(min(planned, int(recommended)))


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the account needs to know of a model."""

    weights: int  # bytes
    adapter: int  # values
    layers: int
    hidden: int  # D
    heads: int  # H
    vocabulary: int  # V
    outputs: float  # values that a layer's linears put out for a token, on average
    itemsize: int  # bytes of an activation
    chunk: int  # target rows whose logits exist at once

    @staticmethod
    def of(
        model: nn.Module,
        adapter: Mapping[str, Shape],
        *,
        layers: int,
        hidden: int,
        heads: int,
        vocabulary: int,
        dtype: mx.Dtype,
        chunk: int,
    ) -> Sizes:
        """``model`` before it has an adapter. Of a stack of experts, as many count as a token uses."""
        used = getattr(getattr(model, "args", None), "num_experts_per_tok", None)
        outputs = 0
        for name, (*experts, out, _) in linear_shapes(model).items():
            if in_layer(name) != name:
                outputs += out * (min(used or experts[0], experts[0]) if experts else 1)
        return Sizes(
            weights=sum(value.nbytes for _, value in tree_flatten(model.parameters())),
            adapter=sum(math.prod(shape) for shape in adapter.values()),
            layers=layers,
            hidden=hidden,
            heads=heads,
            vocabulary=vocabulary,
            outputs=outputs / layers,
            itemsize=dtype.size,
            chunk=chunk,
        )  # fmt: skip

    def total(self, train: BatchSize, score: BatchSize, recompute: bool) -> int:
        """Bytes at the worst moment: see ``Engine.memory``."""
        passes = max(self._training(train, recompute), self._scoring(score))
        return round(self.weights + 4 * OPTIMIZER_COPIES * self.adapter + passes)

    def _layer(self, size: BatchSize) -> float:
        keys = KEYS * min(size.tokens, size.context or size.tokens)
        return self.itemsize * PADDING * size.tokens * (2 * self.outputs + 6 * self.hidden + 1.5 * self.heads * keys)

    def _head(self, size: BatchSize) -> float:
        return 4 * (LOGIT_COPIES * min(size.targets * PADDING, self.chunk) * self.vocabulary + 2 * size.targets * self.hidden)

    def _training(self, size: BatchSize, recompute: bool) -> float:
        inputs = self.itemsize * PADDING * size.tokens * self.hidden * self.layers
        kept = inputs + self._layer(size) if recompute else self.layers * self._layer(size)
        return kept + self._layer(size) + self._head(size)

    def _scoring(self, size: BatchSize) -> float:
        return self._layer(size) + self._head(size)
