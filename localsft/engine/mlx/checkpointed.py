"""Gradient checkpointing of a decoder layer: its activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from localsft.engine.mlx.lora import LoraExperts, LoraLinear
from localsft.engine.mlx.packed_cache import PackedCache


class Checkpointed:
    """Stands in for a layer in the trunk's list of layers; attributes are the layer's own.

    ``mx.checkpoint`` differentiates with respect to what is passed, so the arrays that carry a gradient are passed: the
    inputs, the layer's LoRA tensors, and the keys and values of shared prefixes.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._loras = [module for _, module in layer.named_modules() if isinstance(module, LoraLinear | LoraExperts)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat = tree_flatten({"args": list(args), "kwargs": kwargs}, is_leaf=lambda x: isinstance(x, PackedCache))
        caches = [value for _, value in flat if isinstance(value, PackedCache)]
        arrays = {path: value for path, value in flat if isinstance(value, mx.array)}
        rest = [(path, value) for path, value in flat if path not in arrays and not isinstance(value, PackedCache)]
        cache_paths = [path for path, value in flat if isinstance(value, PackedCache)]
        masters = [module.tensors for module in self._loras]

        def run(arrays: Mapping[str, mx.array], masters: list[Any], above: list[Any]) -> Any:
            for module, tensors in zip(self._loras, masters, strict=True):
                module.use(tensors)
            inner = [PackedCache(cache.attending, tuple(kv) if kv else None) for cache, kv in zip(caches, above, strict=True)]
            call = tree_unflatten([*arrays.items(), *rest, *zip(cache_paths, inner, strict=True)])
            out = self._layer(*call.get("args", []), **call.get("kwargs", {}))
            # A few layers return their keys and values themselves. An output that is there twice would lose a gradient.
            returned = [id(value) for _, value in tree_flatten(out)] if isinstance(out, tuple) else []
            return out, [[x + 0 if id(x) in returned else x for x in cache.own or ()] for cache in inner]

        out, own = mx.checkpoint(run)(arrays, masters, [list(cache.above) if cache.above else [] for cache in caches])
        for module, tensors in zip(self._loras, masters, strict=True):
            module.use(tensors)
        for cache, kv in zip(caches, own, strict=True):
            cache.own = tuple(kv) if kv else None
        return out
