"""Weights that are kept as the register tile reads them, so that short batches do not unpack them at every product.

Unpacking costs the same for a batch of 200 tokens as for one of 1,000. Kept panels give the same bits (csrc/panels.h), and take 4 bytes a
weight in bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localsft.engine.cpu.model import Model

# By bench/RESULTS.md: with all panels kept that a step multiplies with, steps of 200 tokens are 1.04 to 1.06 times as fast, of 540 1.02, of
# 1,000 1.01. Where a part of them is kept, it gains that part: so many fewer tokens may a batch have.
MOST_TOKENS = 1300  # of a batch
MOST_BYTES = 256 << 20
MOST_OF_FREE = 1 / 16  # of what else is free

_LINE = 16  # uint32 in a cache line


def room_for_panels(model: Model, tokens: int, free: int) -> int:
    """Bytes worth spending, of the ``free`` ones, for batches of so many tokens. In float32 panels gain nothing that could be measured."""
    if model.checkpoint or not model.ops.act_bf16:
        return 0
    room = max(0, min(MOST_BYTES, int(free * MOST_OF_FREE)))
    (_, kept), (_, every) = _choose(model, room // 4), _choose(model, None)
    return room if tokens * every <= MOST_TOKENS * kept else 0


def keep_panels(model: Model, room: int) -> int:
    """Keep the panels of as many weights as fit ``room`` bytes; the bytes taken."""
    chosen, units = _choose(model, room // 4)
    memory = np.empty(units + _LINE, np.uint32)
    memory = memory[-memory.ctypes.data % (4 * _LINE) // 4 :]
    for weight in chosen:
        size = weight.panel_units(model.ops.context)
        weight.keep_panels(model.ops.context, memory[:size])
        memory = memory[_lines(size) :]
    return 4 * units


def _choose(model: Model, room: int | None) -> tuple[list[Any], int]:
    """The weights to keep, and the uint32 of all, each in whole cache lines: no more than ``room``, if any.

    The head comes first, then the layers with adapters from the last one down: what every step multiplies with twice.
    """
    layers = [layer for layer in reversed(model.layers) if layer.index >= model.lowest]
    groups = [group for layer in layers for group in (layer.down, layer.gate_up, layer.o, layer.qkv)]
    chosen: list[Any] = []
    total = 0
    for weight in [model.head, *(linear.weight for group in groups for linear in group.members)]:
        units = _lines(weight.panel_units(model.ops.context))
        if room is None or total + units <= room:
            chosen.append(weight)
            total += units
    return chosen, total


def _lines(units: int) -> int:
    return -(-units // _LINE) * _LINE
