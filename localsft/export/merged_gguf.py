"""A GGUF with the adapter merged into its weights: the base's file, the adapted linears replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.errors import InputError, UsageError
from localsft.export.families import import_gguf
from localsft.export.gguf import permuted_module
from localsft.export.gguf_copy import FILE_TYPES, copy_gguf, metadata_bytes
from localsft.export.lowrank import Update
from localsft.export.proof import Check
from localsft.export.source import Source
from localsft.export.survival import Survival, survival_of
from localsft.weights.gguf import open_gguf
from localsft.weights.gguf_blocks import decode
from localsft.weights.load import BaseModel, load_base
from localsft.weights.names import gguf_name, gguf_row_order
from localsft.weights.quant import as_f32

MERGED_GGUF = "model.gguf"
OWN = "base"  # --type base: every tensor in the type that it has in the base
# Narrow to wide: where an update does not survive in one, a later one may hold it.
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32")


def types_of(base: BaseModel, updates: Mapping[str, Update], kind: str) -> dict[str, str]:
    """GGUF name of each adapted weight -> the type that it gets. Raises UsageError where that type can't be written."""
    if not base.metadata:
        raise UsageError(
            "--to merged-gguf: the base is a folder; export it --to merged and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    if kind != OWN and kind not in TYPES:
        raise UsageError(f"--type {kind}: a merged GGUF can be {OWN}, {', '.join(TYPES)}")
    with open_gguf(base.path) as file:
        names = [str(gguf_name(f"{module}.weight")) for module in updates]
        chosen = {name: file.tensors[name].type if kind == OWN else kind for name in names}
    unwritable = sorted({type_name for type_name in chosen.values() if type_name not in TYPES})
    if unwritable:
        raise UsageError(f"--type {kind}: weights can't be written as {', '.join(unwritable)}; choose {', '.join(TYPES)}")
    return chosen


def quantized(weight: NDArray[np.float32], type_name: str) -> NDArray[np.uint8]:
    """A weight in GGUF's row order as the bytes of a type, by the gguf package (the reference quantizers of ggml)."""
    gguf = import_gguf()
    data: NDArray[Any] = gguf.quantize(weight, gguf.GGMLQuantizationType[type_name])
    return np.ascontiguousarray(data).view(np.uint8)


def merged_weight(base: BaseModel, module: str, update: Update) -> NDArray[np.float32]:
    """W + ΔW in float32, Hugging Face's row order."""
    weight = as_f32(base.tensors[f"{module}.weight"])
    return weight + update.delta(weight)


def rows_for_gguf(weight: NDArray[np.float32], module: str, base: BaseModel) -> NDArray[np.float32]:
    heads = permuted_module(module, base)
    return weight[gguf_row_order(len(weight), heads)] if heads else weight


def measure(base: BaseModel, updates: Mapping[str, Update], kind: str) -> Iterator[Survival]:
    """What would survive in each linear if it were merged as ``kind``, without writing anything."""
    chosen = types_of(base, updates, kind)
    for module, update in updates.items():
        type_name = chosen[str(gguf_name(f"{module}.weight"))]
        weight = as_f32(base.tensors[f"{module}.weight"])
        delta = update.delta(weight)
        tensor = decode(quantized(weight + delta, type_name).reshape(-1), type_name, weight.shape)
        yield survival_of(module, weight, delta, as_f32(tensor))


def write_merged_gguf(folder: Path, source: Source, kind: str) -> None:
    """Write ``model.gguf`` into ``folder``: adapted weights as ``kind``, all else as in the base."""
    base = source.model.base
    chosen = types_of(base, source.updates, kind)
    replaced = {}
    for module, update in source.updates.items():
        name = str(gguf_name(f"{module}.weight"))

        def rewrite(module: str = module, update: Update = update, type_name: str = chosen[name]) -> NDArray[np.uint8]:
            return quantized(rows_for_gguf(merged_weight(base, module, update), module, base), type_name)

        replaced[name] = (chosen[name], rewrite)
    file_type = None if kind == OWN else FILE_TYPES[kind]
    copy_gguf(base.path, folder / MERGED_GGUF, replaced, source.provenance.texts(), file_type)


def check_merged_gguf(path: Path, source: Source) -> tuple[list[Check], list[Survival]]:
    """The written file through our reader: what survives in each linear, nothing else changed, metadata byte for byte."""
    base = source.model.base
    try:
        merged = load_base(path)
    except InputError as error:
        return [Check("read back", False, str(error))], []
    parts = []
    for module, update in source.updates.items():
        weight = as_f32(base.tensors[f"{module}.weight"])
        parts.append(survival_of(module, weight, update.delta(weight), as_f32(merged.tensors[f"{module}.weight"])))
    checks = [Check("read back", True, f"{len(merged.tensors)} tensors, as llama.cpp names them"), _check_rest(path, source)]
    checks.append(_check_metadata(path, source))
    return checks, parts


def _check_rest(path: Path, source: Source) -> Check:
    """Every tensor that was not adapted has the bytes of the base's."""
    adapted = {gguf_name(f"{module}.weight") for module in source.updates}
    with open_gguf(source.model.base.path) as old, open_gguf(path) as new:
        if list(old.tensors) != list(new.tensors):
            return Check("other tensors", False, "the file has other tensors than the base")
        changed = []
        with source.model.base.path.open("rb") as a, path.open("rb") as b:
            for name, info in old.tensors.items():
                if name in adapted:
                    continue
                a.seek(info.offset)
                b.seek(new.tensors[name].offset)
                if info.type != new.tensors[name].type or a.read(info.nbytes) != b.read(info.nbytes):
                    changed.append(name)
        kept = len(old.tensors) - len(adapted)
    return Check(
        "other tensors", not changed, f"changed: {', '.join(changed[:3])}" if changed else f"{kept} tensors are the base's, byte for byte"
    )


def _check_metadata(path: Path, source: Source) -> Check:
    """Tokenizer, template and all other keys have the base's bytes; ours carry the provenance."""
    old, new = metadata_bytes(source.model.base.path), metadata_bytes(path)
    wrong = [key for key, value in old.items() if new.get(key) != value and key != "general.file_type"]
    with open_gguf(path) as file:
        lost = [key for key, text in source.provenance.texts().items() if file.metadata.get(key) != text]
    if wrong or lost:
        return Check("metadata", False, f"differs from the base or lacks: {', '.join([*wrong, *lost][:4])}")
    return Check(
        "metadata", True, f"{len(old)} keys are the base's, byte for byte, tokenizer and template among them; provenance is bound in"
    )
