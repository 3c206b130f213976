"""Generation. Families that pack decode many prompts together; the others one prompt after the other with mlx-lm's own caches.

Letters: B prompts decoded together, L tokens of this call, C columns of the cache, H key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from localsft.batch import Int32
from localsft.engine.base import Generated, Sampling
from localsft.engine.mlx.forward import Packing
from localsft.engine.mlx.loss import HeadLoss
from localsft.engine.sampling import Sampler

TOGETHER = 16  # prompts decoded at once
PREFILL_TOKENS = 8192  # prompt tokens read at once, padding included
GROWTH = 64  # columns by which a cache grows


def generate(
    model: nn.Module, trunk: nn.Module, head: HeadLoss, packing: Packing, prompts: Sequence[Int32], sampling: Sampling
) -> Iterator[Generated]:
    """See ``Engine.generate``. ``model`` holds the adapter; ``trunk`` and ``head`` are its parts."""
    if sampling.max_tokens < 1:
        return
    if packing.rows != "alone":
        for group in _groups(prompts):
            yield from _together(trunk, head, packing, prompts, group, sampling)
    else:
        for index, prompt in enumerate(prompts):
            yield from _alone(model, index, prompt, sampling)


def _groups(prompts: Sequence[Int32]) -> list[list[int]]:
    """Prompts in their order, as many at a time as may be read at once, at least one."""
    groups: list[list[int]] = []
    for index in range(len(prompts)):
        group = [*groups[-1], index] if groups else []
        longest = max((len(prompts[i]) for i in group), default=0)
        if group and len(group) <= TOGETHER and len(group) * longest <= PREFILL_TOKENS:
            groups[-1] = group
        else:
            groups.append([index])
    return groups


class _Columns:
    """Whose token is in which column of the caches, at which position: what all layers' caches share."""

    def __init__(self, packing: Packing, lengths: Int32) -> None:
        self._packing = packing
        columns = np.arange(int(lengths.max()))
        self._positions = mx.array(np.tile(columns, (len(lengths), 1)).astype(np.int32))  # (B, L) of this call
        self.held = mx.array(np.where(columns < lengths[:, None], columns, -1).astype(np.int32))  # (B, C); -1: nothing
        self._masks: dict[int | None, mx.array] = {}

    def advance(self, positions: Int32) -> None:
        """The next call brings one token a prompt, at ``positions`` (B,), into a column of its own."""
        self._positions = mx.array(positions[:, None])
        self.held = mx.concatenate([self.held, self._positions], axis=1)
        self._masks = {}

    def keep(self, rows: mx.array) -> None:
        self._positions, self.held, self._masks = self._positions[rows], self.held[rows], {}

    @property
    def offset(self) -> mx.array:
        return self._positions if self._packing.rows == "packed" else self._positions[:, 0]

    def mask(self, window: int | None) -> mx.array:
        """bool (B, 1, L, C), as ``Attending.mask``."""
        if window not in self._masks:
            mine, held = self._positions[:, :, None], self.held[:, None, :]
            mask = (held >= 0) & (held <= mine)
            if window is not None:
                mask = mask & (mine - held < window)
            self._masks[window] = mask.reshape(mask.shape[0], *[1] * (self._packing.mask_dims - 3), *mask.shape[1:])
        return self._masks[window]


class _DecodeCache:
    """One layer's keys and values, (B, H, C, E) each, in arrays that grow."""

    def __init__(self, columns: _Columns) -> None:
        self._columns = columns
        self._used = 0
        self._held: list[mx.array] = []

    @property
    def offset(self) -> mx.array:
        return self._columns.offset

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        return self._columns.mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        new, start = (keys, values), self._used
        self._used += keys.shape[2]
        if not self._held:
            self._held = [mx.zeros((*x.shape[:2], 0, x.shape[3]), x.dtype) for x in new]
        if self._used > self._held[0].shape[2]:
            more = -(-(self._used - start) // GROWTH) * GROWTH
            self._held = [
                mx.concatenate([old[:, :, :start], mx.zeros((*old.shape[:2], more, old.shape[3]), old.dtype)], axis=2) for old in self._held
            ]
        for old, x in zip(self._held, new, strict=True):
            old[:, :, start : self._used] = x
        return tuple(old[:, :, : self._used] for old in self._held)

    def keep(self, rows: mx.array) -> None:
        self._held = [held[rows] for held in self._held]


def _together(
    trunk: nn.Module, head: HeadLoss, packing: Packing, prompts: Sequence[Int32], group: list[int], sampling: Sampling
) -> Iterator[Generated]:
    lengths = np.array([len(prompts[i]) for i in group], np.int32)
    tokens = np.zeros((len(group), int(lengths.max())), np.int32)
    for row, i in enumerate(group):
        tokens[row, : lengths[row]] = prompts[i]
    columns = _Columns(packing, lengths)
    caches = [_DecodeCache(columns) for _ in range(packing.caches)]
    hidden = trunk(mx.array(tokens), cache=caches)
    logits = head.logits(hidden[mx.arange(len(group)), mx.array(lengths - 1)])
    running = [_Answer(i, sampling) for i in group]
    while True:
        chosen = [answer.advance(row) for answer, row in zip(running, _choices(logits, sampling), strict=True)]
        yield from chosen
        rows = [row for row, token in enumerate(chosen) if not token.finish]
        if not rows:
            return
        if len(rows) < len(running):
            running = [running[row] for row in rows]
            lengths = lengths[rows]
            columns.keep(mx.array(rows))
            for cache in caches:
                cache.keep(mx.array(rows))
        columns.advance(lengths)
        lengths = lengths + 1
        last = np.array([[chosen[row].token_id] for row in rows], np.int32)
        logits = head.logits(trunk(mx.array(last), cache=caches)[:, -1])


def _alone(model: nn.Module, index: int, prompt: Int32, sampling: Sampling) -> Iterator[Generated]:
    cache = make_prompt_cache(model)
    answer = _Answer(index, sampling)
    tokens = mx.array(prompt)[None]
    while True:
        logits = model(tokens, cache=cache)[:, -1].astype(mx.float32)
        token = answer.advance(_choices(logits, sampling)[0])
        yield token
        if token.finish:
            return
        tokens = mx.array([[token.token_id]])


def _choices(logits: mx.array, sampling: Sampling) -> list[Any]:
    """For each row its most likely id, or, where a draw is to be made, its logits float32 (V,)."""
    if sampling.temperature == 0:
        return list(np.array(mx.argmax(logits, axis=-1)).tolist())
    return list(np.array(logits))


class _Answer:
    """One prompt's answer as it grows."""

    def __init__(self, prompt: int, sampling: Sampling) -> None:
        self._prompt = prompt
        self._sampler = Sampler(sampling, prompt)
        self._sampling = sampling
        self._count = 0

    def advance(self, choice: Any) -> Generated:
        token = choice if isinstance(choice, int) else self._sampler.choose(choice)
        self._count += 1
        finish = "stop" if token in self._sampling.stop_ids else "length" if self._count >= self._sampling.max_tokens else ""
        return Generated(self._prompt, token, finish)
