"""An mlx-lm model taken apart without touching it: the trunk up to the last norm, and the family's own head.

``Model.__call__`` of nearly every family is ``head(self.model(tokens, cache))``, with its own soft-capping or scaling in
the head. A shallow copy of the model, in which the trunk is replaced by a module that hands through what it is given, is
that head as a function of hidden states; it can then be applied to the rows that are supervised only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from localsft.errors import InputError


class _HandThrough(nn.Module):  # type: ignore[misc]
    """Stands in for the trunk: has its embedding (heads may be tied to it), returns the hidden states it is called with."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(trunk.__dict__)
        for name, value in trunk.items():
            if not isinstance(value, list):
                self[name] = value

    def __call__(self, hidden: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return hidden


@dataclass(frozen=True)
class Parts:
    """``trunk(tokens (B, L), cache=[...])`` -> (B, L, D); ``head(hidden (B, L, D))`` -> logits (B, L, V); the decoder layers."""

    trunk: nn.Module
    head: nn.Module
    layers: list[nn.Module]
    dtype: mx.Dtype  # of the hidden states


def take_apart(model: nn.Module, model_type: str) -> Parts:
    """Find trunk and head of an mlx-lm model. Raises InputError for the few families that are not made of the two."""
    layers = list(model.layers)
    path = _path_to_layers(model, layers[0])
    if not path:
        raise InputError(f"the mlx engine can't separate the head of a {model_type} model; train it with --engine cpu or take another base")
    chain = [model]
    for name in path:
        chain.append(chain[-1][name])
    copied: nn.Module = _HandThrough(chain[-1])
    for module, name in zip(reversed(chain[:-1]), reversed(path), strict=True):
        outer = copy.copy(module)
        outer[name] = copied
        copied = outer
    trunk, head, tokens = chain[-1], copied, mx.zeros((1, 2), mx.int32)
    try:
        hidden = trunk(tokens, cache=None)
        same, reason = bool(mx.array_equal(head(hidden), model(tokens))), "its logits come out differently"
    except Exception as error:
        same, reason = False, f"{type(error).__name__}: {error}"
    if not same:
        raise InputError(f"the mlx engine can't separate the head of a {model_type} model ({reason}); take another base")
    return Parts(trunk, head, layers, hidden.dtype)


def _path_to_layers(module: nn.Module, first_layer: nn.Module) -> list[str] | None:
    """Names of the submodules that lead to the one that holds the decoder layers; [] if it is ``module`` itself."""
    for value in module.values():
        if isinstance(value, list) and value and value[0] is first_layer:
            return []
    for name, value in module.items():
        if isinstance(value, nn.Module) and (path := _path_to_layers(value, first_layer)) is not None:
            return [name, *path]
    return None


def with_layers(trunk: nn.Module, layers: list[Any]) -> nn.Module:
    """A shallow copy of the trunk that runs these layers instead of its own; everything else is shared."""
    other = copy.copy(trunk)
    for name, value in trunk.items():
        if isinstance(value, list) and len(value) == len(layers) and all(isinstance(item, nn.Module) for item in value):
            other[name] = layers
            break
    return other
