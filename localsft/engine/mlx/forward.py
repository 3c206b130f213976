"""From a layout to hidden states: one pass of the trunk for each block, later blocks reading the keys of earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from localsft.batch import PackedBatch
from localsft.engine.mlx.layout import Layout, shared_layout, single_layout, unshared_layout
from localsft.engine.mlx.packed_cache import Attending, KeyValue, PackedCache

Arrays = dict[str, Any]  # {"blocks": [{name: array}], "slots", "ids", "weights"}: what a compiled step takes


@dataclass(frozen=True)
class Packing:
    """How a model's batches are laid out: ``packed``, several segments a row, a position for each token; ``single``, one segment
    a row, a position for each row; ``alone``, whole examples, one a row and without a cache. ``why``: why not packed."""

    rows: Literal["packed", "single", "alone"]
    caches: int = 0  # entries of the cache list that the trunk takes
    mask_dims: int = 4
    why: str = ""

    def layout(self, batch: PackedBatch, hidden_size: int) -> Layout:
        if self.rows == "packed":
            return shared_layout(batch, hidden_size)
        return single_layout(batch) if self.rows == "single" else unshared_layout(batch)

    def __str__(self) -> str:
        if self.rows == "packed":
            return "packed rows, shared prefixes"
        kind = "one segment a row, shared prefixes" if self.rows == "single" else "one example a row, nothing shared"
        return f"{kind}, because {self.why}"


def to_arrays(layout: Layout) -> Arrays:
    """A layout on the device."""
    names = ("tokens", "positions", "order", "prefix_slots", "prefix_positions", "prefix_order", "prefix_last")
    return {
        "blocks": [{name: mx.array(getattr(block, name)) for name in names} for block in layout.blocks],
        "slots": mx.array(layout.target_slots),
        "ids": mx.array(layout.target_ids),
        "weights": mx.array(layout.target_weights),
    }


def hidden_states(trunk: nn.Module, packing: Packing, blocks: list[dict[str, mx.array]]) -> mx.array:
    """(slots, D): the trunk's last hidden states of all blocks, one after the other."""
    if packing.rows == "alone":
        return mx.concatenate([trunk(block["tokens"], cache=None).flatten(0, 1) for block in blocks])
    above: list[KeyValue | None] = [None] * packing.caches
    outputs: list[mx.array] = []
    for i, block in enumerate(blocks):
        attending = Attending(block, packing.mask_dims, of_rows=packing.rows == "single")
        is_below = block["prefix_slots"].shape[1] > 0
        caches = [PackedCache(attending, kv if is_below else None) for kv in above]
        outputs.append(trunk(block["tokens"], cache=caches).flatten(0, 1))
        if any(later["prefix_slots"].shape[1] for later in blocks[i + 1 :]):
            above = [_joined(kv, cache.slots()) for kv, cache in zip(above, caches, strict=True)]
    return mx.concatenate(outputs)


def _joined(above: KeyValue | None, own: KeyValue) -> KeyValue:
    if above is None:
        return own
    keys, values = (mx.concatenate(list(pair)) for pair in zip(above, own, strict=True))
    return keys, values
