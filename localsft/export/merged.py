"""A whole model folder with the adapter merged in: dense for transformers and mlx-lm, or quantized as MLX does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localsft.errors import InputError, UsageError
from localsft.export.families import named
from localsft.export.hf_files import folder_config, write_json, write_side_files
from localsft.export.lowrank import Update
from localsft.export.proof import Check
from localsft.export.source import Source
from localsft.export.survival import Survival, survival_of
from localsft.session import LoadedModel
from localsft.tokenizer import load_tokenizer
from localsft.weights.load import BaseModel, load_base
from localsft.weights.quant import as_f32, f32_to_bf16, quantize_affine
from localsft.weights.side_files import SIDE_FILES
from localsft.weights.tensor import AffineQuantized, Dense, Tensor
from localsft.weights.write import write_tensors

OWN = "base"
DENSE = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
MLX = {f"mlx-{bits}bit": bits for bits in (3, 4, 5, 6, 8)}
TYPES = ("mlx-3bit", "mlx-4bit", "mlx-5bit", "mlx-6bit", "mlx-8bit", "bf16", "f16", "f32")  # narrow to wide
_HALF_UNIT = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 0.0}  # relative rounding of a weight (float16: of a normal one)


def check_kind(base: BaseModel, updates: Mapping[str, Update], kind: str) -> None:
    """Raises UsageError for a type that does not exist, or linears that the base's folder keeps under other names."""
    if kind != OWN and kind not in TYPES:
        raise UsageError(f"--type {kind}: a merged folder can be {OWN}, {', '.join(TYPES)}")
    absent = [module for module in updates if f"{module}.weight" not in base.tensors]
    if absent:
        raise UsageError(f"--to merged: the base's files keep {named(absent)} in another form; export it --to mlx and use mlx_lm.fuse")


def stored(tensor: Tensor, name: str, update: Update | None, kind: str) -> Tensor:
    """What becomes of one tensor. Without an update and with ``kind`` "base": itself."""
    if update is None and (kind == OWN or (kind in MLX and isinstance(tensor, AffineQuantized))):
        return tensor
    weight = as_f32(tensor) if update is None else _sum(as_f32(tensor), update)
    if kind == OWN:
        return _like(weight, tensor)
    if kind in DENSE:
        return _dense(weight, kind)
    if weight.ndim != 2:  # norms and biases
        return tensor
    group = next((size for size in (64, 32) if weight.shape[1] % size == 0), None)
    return _dense(weight, "bf16") if group is None else quantize_affine(weight.astype(np.float16), MLX[kind], group)


def _sum(weight: NDArray[np.float32], update: Update) -> NDArray[np.float32]:
    return weight + update.delta(weight)


def _like(weight: NDArray[np.float32], tensor: Tensor) -> Tensor:
    """``weight`` in the form of ``tensor``: its dtype, or its bits, groups and dtype of scales."""
    if isinstance(tensor, AffineQuantized):
        dtype = np.float32 if tensor.bf16_scales else tensor.scales.dtype
        return quantize_affine(weight.astype(dtype), tensor.bits, tensor.group_size, bf16_scales=tensor.bf16_scales)
    return Dense(f32_to_bf16(weight), bf16=True) if tensor.bf16 else Dense(weight.astype(tensor.data.dtype))


def _dense(weight: NDArray[np.float32], kind: str) -> Dense:
    if kind == "bf16":
        return Dense(f32_to_bf16(weight), bf16=True)
    return Dense(weight.astype(np.float16 if kind == "f16" else np.float32))


def measure(base: BaseModel, updates: Mapping[str, Update], kind: str) -> Iterator[Survival]:
    """What would survive in each linear if it were merged as ``kind``, without writing anything."""
    for module, update in updates.items():
        tensor = base.tensors[f"{module}.weight"]
        weight = as_f32(tensor)
        yield survival_of(module, weight, update.delta(weight), as_f32(stored(tensor, module, update, kind)))


def write_merged(
    folder: Path, model: LoadedModel, updates: Mapping[str, Update], kind: str, texts: Mapping[str, str], tokenizer_from: Path | None = None
) -> None:
    """Write config.json, the weights in shards, and the tokenizer's files into ``folder``. No ``updates``: the base itself."""
    base = model.base
    check_kind(base, updates, kind)
    tensors = ((name, stored(base.tensors[name], name, updates.get(name.removesuffix(".weight")), kind)) for name in base.tensors)
    quantization = write_tensors(folder, tensors, {"format": "mlx" if kind in MLX else "pt", **texts})
    config = folder_config(model, DENSE.get(kind, "bfloat16" if kind == OWN else "float16"))
    if quantization:
        config["quantization"] = quantization
    write_json(folder / "config.json", config)
    write_side_files(folder, model, tokenizer_from)


def check_merged(folder: Path, source: Source, kind: str) -> tuple[list[Check], list[Survival]]:
    """The written folder through our loader: what survives in each linear, the other weights, the tokenizer."""
    base = source.model.base
    try:
        merged = load_base(folder)
    except InputError as error:
        return [Check("read back", False, str(error))], []
    parts, changed = [], []
    for name in base.tensors:
        module = name.removesuffix(".weight")
        old = as_f32(base.tensors[name])
        new = as_f32(merged.tensors[name]) if name in merged.tensors else np.zeros(0, np.float32)
        if module in source.updates:
            parts.append(survival_of(module, old, source.updates[module].delta(old), new))
        elif old.shape != new.shape or (kind not in MLX and not _close(new, old, _HALF_UNIT.get(kind, 0.0))):
            changed.append(name)
    rest = len(base.tensors) - len(parts)
    detail = f"changed: {named(changed)}" if changed else f"{rest} other tensors are the base's, as {kind}"
    checks = [Check("read back", True, f"{len(merged.tensors)} tensors"), Check("other tensors", not changed, detail)]
    return [*checks, _check_tokenizer(folder, source)], parts


def _close(new: NDArray[np.float32], old: NDArray[np.float32], unit: float) -> bool:
    """Every value within half a unit of its rounding; float16 also rounds below its smallest normal number, by up to 2⁻²⁵."""
    return bool((np.abs(new - old) <= unit * np.abs(old) + (2.0**-25 if unit else 0)).all())


def _check_tokenizer(folder: Path, source: Source) -> Check:
    """The folder's own tokenizer and template give the same ids as the base's on every probe; copied files are the same bytes."""
    from localsft.data.render import chat_template, render_prompt
    from localsft.export.source import general_probes

    base = source.model.base
    different = []
    if not base.metadata:
        names = [name for name in SIDE_FILES if (base.path / name).is_file()]
        different = [name for name in names if (folder / name).read_bytes() != (base.path / name).read_bytes()]
    try:
        tokenizer = load_tokenizer(folder)
        template = chat_template(tokenizer)
    except InputError as error:
        return Check("tokenizer", False if base.metadata else None, str(error))
    probes = general_probes(source.model)
    different += [
        f"the ids of prompt {number}"
        for number, probe in enumerate(probes, 1)
        if render_prompt(probe.messages, tokenizer, template) != probe.prompt_ids
    ]
    texts = [source.model.tokenizer.decode(probe.ids) for probe in source.probes]
    ours, theirs = (t.encode_batch(texts, parse_special=True) for t in (source.model.tokenizer, tokenizer))
    different += [f"the ids of text {number}" for number, (a, b) in enumerate(zip(ours, theirs, strict=True), 1) if a != b]
    if not source.model.tokenizer.stop_ids <= tokenizer.stop_ids:
        different.append("the stop tokens")
    detail = (
        f"differ: {named(different)}" if different else f"{len(probes)} prompts and {len(texts)} texts have the same ids; same stop tokens"
    )
    return Check("tokenizer", not different, detail)
