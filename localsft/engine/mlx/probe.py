"""Can this model be packed exactly? Asked of the model itself, on a few tokens, when it is opened.

Two things stand in the way: layers that carry a state from token to token (state-space layers, short convolutions), seen by
the kind of cache that they ask for; and models that use positions in a way that a cache can't steer, seen by comparing a
small packed batch with the same tokens in rows of their own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from localsft.batch import PackedBatch
from localsft.engine.mlx.forward import Packing, hidden_states, to_arrays
from localsft.engine.mlx.parts import Parts

# Two roots with children and a grandchild, laid out so that blocks have several rows.
_LENGTHS = (11, 9, 3, 13, 10, 7)
_PARENTS = (-1, 0, 0, -1, 3, 4)


def find_packing(model: nn.Module, parts: Parts, vocabulary: int) -> Packing:
    """How to lay out batches for this model; never raises for a model that runs without a cache."""
    caches = make_prompt_cache(model)
    stateful = sorted({type(cache).__name__ for cache in caches if type(cache) not in (KVCache, RotatingKVCache)})
    if stateful:
        return Packing("alone", why=f"its layers carry state from token to token ({', '.join(stateful)})")
    batch = _probe_batch(vocabulary)
    expected = _rows(parts, Packing("alone"), batch)
    why = ""
    for packing in (Packing(rows, len(caches), dims, why) for rows in ("packed", "single") for dims in (4, 5)):
        try:
            error = _largest_difference(_rows(parts, packing, batch), expected)
        except Exception as problem:
            why = f"its layers do not take a position for each token ({type(problem).__name__})"
            continue
        if error <= _tolerance(expected.dtype, len(parts.layers)):
            return replace(packing, why=why)
        why = f"packed rows do not give its hidden states (relative difference {error:.1g})"
    return Packing("alone", why=why)


def _probe_batch(vocabulary: int) -> PackedBatch:
    starts = np.concatenate([[0], np.cumsum(_LENGTHS)]).astype(np.int32)
    depth: list[int] = []  # position of each segment's first token
    for parent in _PARENTS:
        depth.append(0 if parent < 0 else depth[parent] + _LENGTHS[parent])
    n = int(starts[-1])
    return PackedBatch(
        tokens=np.random.Generator(np.random.Philox(0)).integers(0, vocabulary, n).astype(np.int32),
        positions=np.concatenate([first + np.arange(length) for first, length in zip(depth, _LENGTHS, strict=True)]).astype(np.int32),
        segment_starts=starts,
        segment_parents=np.array(_PARENTS, np.int32),
        target_rows=np.arange(n, dtype=np.int32),
        target_ids=np.zeros(n, np.int32),
        target_weights=np.ones(n, np.float32),
    )


def _rows(parts: Parts, packing: Packing, batch: PackedBatch) -> Any:
    layout = packing.layout(batch, hidden_size=1)  # attention counts most: short rows, several of them
    arrays = to_arrays(layout)
    rows = hidden_states(parts.trunk, packing, arrays["blocks"])[arrays["slots"][: layout.n_targets]]
    mx.eval(rows)
    return rows


def _largest_difference(rows: mx.array, expected: mx.array) -> float:
    """The largest relative difference of a row, in the Euclidean norm; infinite for rows that are not finite."""
    rows, expected = rows.astype(mx.float32), expected.astype(mx.float32)
    relative = mx.linalg.norm(rows - expected, axis=-1) / mx.maximum(mx.linalg.norm(expected, axis=-1), 1e-30)
    largest = float(relative.max())
    return largest if math.isfinite(largest) else math.inf


def _tolerance(dtype: mx.Dtype, layers: int) -> float:
    """Each layer adds its own rounding, of about the dtype's epsilon in relative terms; errors of layers add as a random walk."""
    return 2 * float(mx.finfo(dtype).eps) * math.sqrt(layers)
