"""What an adapter is, whichever engine trains it: names, shapes, the start, and the check of one that is loaded.

Names and shapes are mlx-lm's: ``<linear>.lora_a`` (in, R) and ``<linear>.lora_b`` (R, out), y = W·x + scale·(x·A)·B; for
a stack of X experts (X, R, in) and (X, out, R). DoRA adds ``<linear>.m`` (out,), the norms of the rows of W + scale·BA. Both
engines take the start from here, so they begin at the same adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Float32
from localsft.config import LINEARS, LoraConfig
from localsft.errors import InputError, UsageError

Shape = tuple[int, ...]

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")  # h and blocks: gpt2 and a few more

# Linears that some families fuse: adapted when all of their parts are targets.
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def in_layer(name: str) -> str:
    """``model.layers.3.self_attn.q_proj`` -> ``self_attn.q_proj``, what mlx-lm calls the linear's key."""
    return name[match.end() :] if (match := _LAYER.search(name)) else name


def adapter_shapes(linears: Mapping[str, Shape], config: LoraConfig) -> dict[str, Shape]:
    """The adapter's tensors for a base model's linears, by name in sorted order.

    ``linears``: name (``model.layers.3.self_attn.q_proj``) -> shape of its weight, (out, in) or (experts, out, in); those
    outside ``layers.N.`` are never adapted. All seven targets mean every linear given; fewer mean exactly those names.
    Raises UsageError when a target or the number of layers does not fit the model, or for DoRA on stacked experts.
    """
    chosen = _in_targets(_in_layers(linears, config.layers), config.targets)
    shapes: dict[str, Shape] = {}
    for name, (*experts, out, into) in chosen.items():
        if experts and config.variant == "dora":
            raise UsageError(
                f"lora.variant (--variant) dora can't adapt stacked experts ({name}): mlx-lm and PEFT know no DoRA of them; "
                "use lora or rslora, or leave them out (--targets)"
            )
        if experts:
            shapes[f"{name}.lora_a"], shapes[f"{name}.lora_b"] = (*experts, config.rank, into), (*experts, out, config.rank)
        else:
            shapes[f"{name}.lora_a"], shapes[f"{name}.lora_b"] = (into, config.rank), (config.rank, out)
        if config.variant == "dora":
            shapes[f"{name}.m"] = (out,)
    return dict(sorted(shapes.items()))


def _in_layers(linears: Mapping[str, Shape], layers: int | str) -> dict[str, Shape]:
    numbered = [(int(match[1]), name) for name in linears if (match := _LAYER.search(name))]
    count = 1 + max((layer for layer, _ in numbered), default=-1)
    if isinstance(layers, int) and layers > count:
        raise UsageError(f"lora.layers (--layers) is {layers}, but the model has {count} layers; use a smaller number or all")
    first = 0 if layers == "all" else count - int(layers)
    return {name: linears[name] for layer, name in numbered if layer >= first}


def _in_targets(linears: Mapping[str, Shape], targets: Sequence[str]) -> dict[str, Shape]:
    if set(targets) >= set(LINEARS):
        return dict(linears)
    kinds = {name: name.rpartition(".")[2] for name in linears}
    wanted = {kind for kind in set(kinds.values()) if kind in targets or set(_FUSED.get(kind, (kind,))) <= set(targets)}
    covered = wanted | {part for kind in wanted for part in _FUSED.get(kind, ())}
    if missing := [target for target in targets if target not in covered]:
        raise UsageError(
            f"lora.targets (--targets): this model has no linear layer {', '.join(missing)} that can be adapted by itself; "
            f"it has {', '.join(sorted(set(kinds.values())))}"
        )
    return {name: shape for name, shape in linears.items() if kinds[name] in wanted}


def initial_adapter(
    shapes: Mapping[str, Shape], seed: int, weight_squares: Mapping[str, NDArray[np.float64]] | None = None
) -> dict[str, Float32]:
    """Where training starts: A uniform in ±1/√in as in mlx-lm, B zero, m = ‖W‖, so that the first update is zero.

    ``weight_squares``: for DoRA, ‖W_o‖² (out,) of each linear by name. A is drawn with numpy's Philox generator in the sorted
    order of the names: the same on every engine and machine.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    tensors: dict[str, Float32] = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith(".lora_a"):
            bound = 1 / math.sqrt(shape[-1] if len(shape) == 3 else shape[0])
            tensors[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
        elif name.endswith(".m"):
            assert weight_squares is not None
            tensors[name] = np.sqrt(weight_squares[name.removesuffix(".m")]).astype(np.float32)
        else:
            tensors[name] = np.zeros(shape, np.float32)
    return tensors


def unchanging(shapes: Mapping[str, Shape], weight_squares: Mapping[str, NDArray[np.float64]]) -> dict[str, Float32]:
    """The adapter that leaves the base as it was: see ``initial_adapter``, with A zero too."""
    start = initial_adapter(shapes, 0, weight_squares)
    return {name: values if name.endswith(".m") else np.zeros_like(values) for name, values in start.items()}


def fitting(tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, Shape], what: str = "the adapter") -> dict[str, Float32]:
    """``tensors`` as float32 copies in the order of ``shapes``, if exactly these names and shapes are there.

    Raises InputError that names the first few misfits and counts the rest: missing, not of this model, of another shape,
    or with values that are not finite.
    """
    misfits = [f"{name} is missing" for name in shapes if name not in tensors]
    misfits += [f"{name} is not a part of it" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        found = tuple(tensors[name].shape)
        if found != tuple(shapes[name]):
            misfits.append(f"{name} is {found}, not {tuple(shapes[name])}")
        elif not np.isfinite(tensors[name]).all():
            misfits.append(f"{name} holds values that are not finite")
    if misfits:
        rest = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise InputError(f"{what} does not fit this model and these LoRA settings: {'; '.join(sorted(misfits)[:3])}{rest}")
    return {name: np.array(tensors[name], np.float32) for name in shapes}


def split_like(flat: Float32, tensors: Sequence[NDArray[Any]]) -> list[Float32]:
    """The parts of a flat array in the shapes of ``tensors``, in their order."""
    ends = np.cumsum([tensor.size for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(np.split(flat, ends[:-1]), tensors, strict=True)]


def optimizer_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Names and shapes of AdamW's state: ``step`` (), the count of steps done; ``m.NAME`` and ``v.NAME``, the moments."""
    return {"step": ()} | {f"{moment}.{name}": shape for moment in "mv" for name, shape in shapes.items()}
