"""Cross-entropy of the supervised rows, a chunk of rows at a time: (T, V) logits never exist.

Letters: N target rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn

LOGITS_AT_ONCE = 1 << 25  # of a chunk, float32: 128 MiB, and as much again in its backward pass


def rows_at_once(vocabulary: int) -> int:
    """Rows of a chunk: a power of two, at least 32."""
    return 1 << max(5, (LOGITS_AT_ONCE // vocabulary).bit_length() - 1)


class HeadLoss:
    """The family's head and the loss behind it, over rows of hidden states.

    A quantized head takes float32 rows, so its logits are not rounded; a dense one of 16 bits computes in its own dtype,
    since MLX would make a float32 copy of it. The softmax is in float32.
    """

    def __init__(self, head: nn.Module, vocabulary: int, *, in_float32: bool) -> None:
        self._head = head
        self._in_float32 = in_float32
        self.rows = rows_at_once(vocabulary)
        self._sum = _with_gradient_at_once(self._chunk_loss, self.rows)

    def logits(self, hidden: mx.array) -> mx.array:
        """(N, D) -> float32 (N, V), all at once: for chunks."""
        if self._in_float32:
            hidden = hidden.astype(mx.float32)
        logits: mx.array = self._head(hidden[None])[0].astype(mx.float32)
        return logits

    def sum(self, hidden: mx.array, ids: mx.array, weights: mx.array) -> mx.array:
        """Σ w·CE in nats, float32, of (N, D) rows; differentiable in ``hidden``."""
        return self._sum(hidden, ids, weights)[0]

    def score(self, hidden: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
        """log p of the ids, float32 (N,), and whether each was the most likely id, bool (N,)."""
        logprobs: list[mx.array] = []
        correct: list[mx.array] = []
        for start in range(0, hidden.shape[0], self.rows):
            part = slice(start, start + self.rows)
            logits = self.logits(hidden[part])
            logprobs.append(-_cross_entropy(logits, ids[part]))
            correct.append(mx.argmax(logits, axis=-1) == ids[part])
            (hidden,) = mx.depends([hidden], [logprobs[-1], correct[-1]])
        return mx.concatenate(logprobs), mx.concatenate(correct)

    def _chunk_loss(self, hidden: mx.array, ids: mx.array, weights: mx.array) -> mx.array:
        return (weights * _cross_entropy(self.logits(hidden), ids)).sum()


def _cross_entropy(logits: mx.array, ids: mx.array) -> mx.array:
    return mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]


def _with_gradient_at_once(chunk_loss: Callable[..., mx.array], rows: int) -> Callable[..., tuple[mx.array, mx.array]]:
    """A loss whose gradient in the rows is computed beside its value, while a chunk's logits are there, and kept: (N, D)."""
    value_and_grad = mx.value_and_grad(chunk_loss)

    @mx.custom_function  # type: ignore[untyped-decorator]
    def loss(hidden: mx.array, ids: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
        total = mx.array(0.0)
        gradients: list[mx.array] = []
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            value, gradient = value_and_grad(hidden[part], ids[part], weights[part])
            total = total + value
            gradients.append(gradient)
            (hidden,) = mx.depends([hidden], [gradient])  # one chunk after the other, so that one chunk's logits exist
        return total, mx.concatenate(gradients)

    @loss.vjp  # type: ignore[untyped-decorator]
    def backward(primals: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]) -> tuple[mx.array, ...]:
        hidden, ids, weights = primals
        return (cotangents[0] * outputs[1]).astype(hidden.dtype), mx.zeros_like(ids), mx.zeros_like(weights)

    return cast(Callable[..., tuple[mx.array, mx.array]], loss)


def head_in_float32(head: nn.Module) -> bool:
    """Whether the head's weights are quantized, or float32 already."""
    quantized = nn.QuantizedLinear | nn.QuantizedEmbedding
    leaves = [module for _, module in head.named_modules() if isinstance(module, nn.Linear | nn.Embedding | quantized)]
    return all(isinstance(module, quantized) or module.weight.dtype == mx.float32 for module in leaves)
