"""Generation: prompts are read in packed passes, then decoded together, one token each a step, with a cache of keys and values."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32, Int32, PackedBatch
from localsft.engine.base import Generated, Sampling
from localsft.engine.cpu.model import Model
from localsft.engine.sampling import Sampler

SLOTS = 16  # sequences decoded at once: what the skinny kernels take in one reading of the weights
PREFILL_TOKENS = 2048  # prompt tokens read in one pass


class Cache:
    """Keys and values, act (slots, capacity, K·E) a layer, and how many positions of each slot are filled."""

    def __init__(self, model: Model, slots: int, capacity: int) -> None:
        width = model.architecture.kv_heads * model.architecture.head_size
        shape = (slots, capacity, width)
        self.k = [np.zeros(shape, model.ops.act_dtype) for _ in model.layers]
        self.v = [np.zeros(shape, model.ops.act_dtype) for _ in model.layers]
        self.lengths = np.zeros(slots, np.int32)


def generate(model: Model, prompts: Sequence[Int32], sampling: Sampling) -> Iterator[Generated]:
    """See ``Engine.generate``. A finished prompt's slot is taken by the next one, so no step decodes for nobody."""
    if not prompts or sampling.max_tokens < 1:
        return
    slots = min(SLOTS, len(prompts))
    cache = Cache(model, slots, max(len(prompt) for prompt in prompts) + sampling.max_tokens)
    decoder = _Decoder(model)
    waiting = deque(range(len(prompts)))
    free = deque(range(slots))
    running: dict[int, _Sequence] = {}  # by slot
    while waiting or running:
        admitted = _admit(waiting, free, prompts)
        logits = _prefill(model, cache, [(slot, prompts[index]) for slot, index in admitted])
        for (slot, index), row in zip(admitted, logits, strict=True):
            running[slot] = _Sequence(index, Sampler(sampling, index), sampling)
            yield running[slot].advance(row)
        active = sorted(slot for slot in running if not running[slot].finished)
        if active:
            tokens = np.array([running[slot].last for slot in active], np.int32)
            rows = decoder.step(cache, np.array(active, np.int32), tokens)
            for slot, row in zip(active, rows, strict=True):
                yield running[slot].advance(row)
        for slot in [slot for slot in running if running[slot].finished]:
            del running[slot]
            free.append(slot)


class _Decoder:
    """The compiled decoding step over a model's weights and adapters, as they are now."""

    def __init__(self, model: Model) -> None:
        arch = model.architecture
        self._model = model
        layers = [(x.attention_norm, x.qkv.parts, x.o.parts, x.mlp_norm, x.gate_up.parts, x.down.parts) for x in model.layers]
        self._decoder = model.ops.Decoder(
            model.embedding, model.head, layers, model.final_norm, arch.rms_eps, arch.heads, arch.kv_heads,
            arch.attention_scale, arch.window,
        )  # fmt: skip

    def step(self, cache: Cache, slots: Int32, tokens: Int32) -> Float32:
        """Append ``tokens`` (B,) to the sequences in ``slots`` (B,): logits float32 (B, V) of what comes next."""
        lengths = cache.lengths[slots]
        cos, sin = self._model.rotary.at(lengths)
        logits = np.empty((len(slots), self._model.architecture.vocab), np.float32)
        self._decoder.step(self._model.ops.context, tokens, slots, lengths, cos, sin, cache.k, cache.v, logits)
        cache.lengths[slots] += 1
        return logits


class _Sequence:
    """One prompt's answer as it grows."""

    def __init__(self, prompt: int, sampler: Sampler, sampling: Sampling) -> None:
        self._prompt = prompt
        self._sampler = sampler
        self._sampling = sampling
        self._count = 0
        self.last = -1
        self.finished = False

    def advance(self, logits: Float32) -> Generated:
        self.last = self._sampler.choose(logits)
        self._count += 1
        finish = "stop" if self.last in self._sampling.stop_ids else "length" if self._count >= self._sampling.max_tokens else ""
        self.finished = bool(finish)
        return Generated(self._prompt, self.last, finish)


def _admit(waiting: deque[int], free: deque[int], prompts: Sequence[Int32]) -> list[tuple[int, int]]:
    """(slot, prompt) pairs to read in one pass: as many as there are slots and as fit, but at least one."""
    admitted: list[tuple[int, int]] = []
    tokens = 0
    while waiting and free and (not admitted or tokens + len(prompts[waiting[0]]) <= PREFILL_TOKENS):
        index = waiting.popleft()
        tokens += len(prompts[index])
        admitted.append((free.popleft(), index))
    return admitted


def _prefill(model: Model, cache: Cache, prompts: Sequence[tuple[int, Int32]]) -> Float32:
    """Reads the prompts into their slots; logits float32 (len(prompts), V) after the last token of each."""
    if not prompts:
        return np.zeros((0, model.architecture.vocab), np.float32)
    lengths = [len(prompt) for _, prompt in prompts]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    batch = PackedBatch(
        tokens=np.concatenate([prompt for _, prompt in prompts]).astype(np.int32),
        positions=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        segment_starts=starts,
        segment_parents=np.full(len(prompts), -1, np.int32),
        target_rows=(starts[1:] - 1).astype(np.int32),
        target_ids=np.zeros(len(prompts), np.int32),
        target_weights=np.ones(len(prompts), np.float32),
    )

    def keep(layer: int, k: NDArray[Any], v: NDArray[Any]) -> None:
        for i, (slot, _) in enumerate(prompts):
            cache.k[layer][slot, : lengths[i]] = k[starts[i] : starts[i + 1]]
            cache.v[layer][slot, : lengths[i]] = v[starts[i] : starts[i + 1]]

    p = model.forward(batch, train=False, keep_keys=keep)
    for slot, prompt in prompts:
        cache.lengths[slot] = len(prompt)
    logits = np.empty((len(prompts), model.architecture.vocab), np.float32)
    model.ops.head_logits(model.head_inputs(p), model.head, logits)
    return logits
