"""Packing through the cache that mlx-lm's models already ask for.

An attention layer of mlx-lm asks its cache for three things: ``offset``, the positions for RoPE; ``update_and_fetch``, the
keys and values to attend to; and, once for all layers, ``make_mask``. A cache that answers with each token's own position,
with the keys and values of its ancestors in front, and with the mask of the segment tree, makes the model compute packed
rows exactly, gradients included.

Letters: B rows, L tokens in a row, P prefix slots, H key/value heads, E head size.
"""

from __future__ import annotations

import inspect
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

KeyValue = tuple[mx.array, mx.array]  # (slots, H, E) each, all blocks so far laid one after the other


class PositionRope(nn.Module):  # type: ignore[misc]
    """A RoPE module that also takes a position for each token: ``offset`` (B, L). Other offsets go to the module as they are.

    MLX rotates a row from one offset, an integer or one for each row; (B, H, L, E) with a position a token is (B·L, H, 1, E)
    with an offset a row.
    """

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def __call__(self, x: mx.array, offset: Any = 0, **kwargs: Any) -> mx.array:
        if not isinstance(offset, mx.array) or offset.ndim != 2:
            turned: mx.array = self.rope(x, offset=offset, **kwargs)
            return turned
        batch, heads, length, size = x.shape
        single = x.transpose(0, 2, 1, 3).reshape(batch * length, heads, 1, size)
        turned = self.rope(single, offset=offset.reshape(-1), **kwargs)
        return turned.reshape(batch, length, heads, size).transpose(0, 2, 1, 3)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if "rope" not in self:
            raise AttributeError(name)
        return getattr(self["rope"], name)


def with_token_positions(model: nn.Module) -> None:
    """Wrap every RoPE module of the model's tree (those called with x and offset) in ``PositionRope``."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        parameters = list(inspect.signature(type(module).__call__).parameters)
        if parameters[1:3] == ["x", "offset"] and not isinstance(module, PositionRope):
            found.append((name, PositionRope(module)))
    model.update_modules(tree_unflatten(found))


class Attending:
    """What the tokens of one block may attend to. The arrays are those of ``layout.Block``. ``of_rows``: the model is told the
    position of each row's first token only, (B,), as mlx-lm's own batches tell it."""

    def __init__(self, block: dict[str, mx.array], mask_dims: int = 4, of_rows: bool = False) -> None:
        self.positions = block["positions"]
        self.offset = self.positions[:, 0] if of_rows else self.positions
        self.order = block["order"]
        self.prefix_slots = block["prefix_slots"]
        self.prefix_positions = block["prefix_positions"]
        self.prefix_order = block["prefix_order"]
        self.prefix_last = block["prefix_last"]
        self._mask_dims = mask_dims
        self._masks: dict[int | None, mx.array] = {}

    def mask(self, window: int | None) -> mx.array:
        """bool (B, 1, L, P + L), with more axes of size 1 after the first where a family needs them; made once for a window."""
        if window not in self._masks:
            order, positions = self.order[:, :, None], self.positions[:, :, None]
            index = mx.arange(self.order.shape[1])
            own = (order == self.order[:, None, :]) & (index[:, None] >= index)
            above = (self.prefix_order[:, None, :] < order) & (order < self.prefix_last[:, None, :])
            if window is not None:
                own = own & (positions - self.positions[:, None, :] < window)
                above = above & (positions - self.prefix_positions[:, None, :] < window)
            mask = mx.concatenate([above, own], axis=-1)
            self._masks[window] = mask.reshape(mask.shape[0], *[1] * (self._mask_dims - 3), *mask.shape[1:])
        return self._masks[window]


class PackedCache:
    """One layer's cache for one block. ``above``: keys and values of the blocks before, if any row needs them."""

    def __init__(self, attending: Attending, above: KeyValue | None = None) -> None:
        self.attending = attending
        self.above = above
        self.own: KeyValue | None = None  # (B, H, L, E) each, once the layer has run
        self.masks_asked = 0

    @property
    def offset(self) -> mx.array:
        return self.attending.offset

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        self.masks_asked += 1
        return self.attending.mask(window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeyValue:
        self.own = keys, values
        if self.above is None:
            return keys, values
        slots = self.attending.prefix_slots

        def in_front(above: mx.array, own: mx.array) -> mx.array:
            return mx.concatenate([above[slots].transpose(0, 2, 1, 3), own], axis=2)

        return in_front(self.above[0], keys), in_front(self.above[1], values)

    def slots(self) -> KeyValue:
        """This block's own keys and values as (B·L, H, E)."""
        assert self.own is not None
        keys, values = (x.transpose(0, 2, 1, 3).flatten(0, 1) for x in self.own)
        return keys, values
