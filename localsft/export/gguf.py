"""The GGUF adapter that llama.cpp loads with ``--lora`` (src/llama-adapter.cpp, llama_adapter_lora_init).

llama.cpp scales by alpha / rank, the rank being each tensor's own, and by 1 where alpha is 0. For architectures whose q and k
rows are permuted in GGUF, the rows of B are permuted in the same way; A, which reads the input, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from localsft.errors import InputError, UsageError
from localsft.export.families import gguf_architecture, gguf_modules, import_gguf, named, permutes
from localsft.export.lowrank import Update
from localsft.export.source import Source
from localsft.weights.gguf import GgufValue, open_gguf
from localsft.weights.load import BaseModel
from localsft.weights.names import gguf_row_order, hf_row_order
from localsft.weights.tensor import Dense

GGUF_FILE = "adapter.gguf"


def write_gguf_lora(folder: Path, source: Source) -> None:
    """Write ``adapter.gguf`` into ``folder``, float32, one alpha for all (every linear has the same rank).

    Raises UsageError for DoRA, whose magnitudes llama.cpp does not know.
    """
    base, updates = source.model.base, source.updates
    if any(update.magnitude is not None for update in updates.values()):
        raise UsageError(
            "llama.cpp's adapters can't express DoRA (llama-adapter.cpp knows A and B only): export it --to merged-gguf, or --to ollama "
            "with a merged type"
        )
    names = gguf_modules(updates, base)
    gguf = import_gguf()
    rank = next(iter(updates.values())).rank
    writer = gguf.GGUFWriter(folder / GGUF_FILE, gguf_architecture(base))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, source.adapter.lora.scale * rank)
    writer.add_name(source.provenance.run or source.path.name)
    if source.provenance.base_model:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, source.provenance.base_model.rpartition("/")[2])
    for key, text in source.provenance.texts().items():
        writer.add_string(key, text)
    for module, update in updates.items():
        b = update.b.swapaxes(-1, -2)  # (out, R)
        heads = permuted_module(module, base)
        if heads:
            b = b[gguf_row_order(b.shape[0], heads)]
        writer.add_tensor(f"{names[module]}.weight.lora_a", np.ascontiguousarray(update.a.swapaxes(-1, -2)))
        writer.add_tensor(f"{names[module]}.weight.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted_module(module: str, base: BaseModel) -> int | None:
    """The heads by which GGUF permutes the rows of this linear of this base, else None."""
    if not permutes(base):
        return None
    if module.endswith("self_attn.q_proj"):
        return base.config.n_heads
    return base.config.n_kv_heads if module.endswith("self_attn.k_proj") else None


def read_gguf_lora(
    path: Path, base: BaseModel, modules: Iterable[str]
) -> tuple[dict[str, Update], dict[str, str], Mapping[str, GgufValue]]:
    """Updates by linear (names among ``modules``), the file's texts, and all its keys; scaled as llama.cpp scales them.

    Reads with our own checked reader; the gguf package wrote it. Raises InputError for what llama.cpp would refuse, all at once:
    another architecture, halves without the other, tensors that the base does not have.
    """
    file = open_gguf(path)
    metadata = file.metadata
    problems = []
    expected = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": gguf_architecture(base)}
    problems += [f"{key} is {metadata.get(key)!r}, not {value!r}" for key, value in expected.items() if metadata.get(key) != value]
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    modules_by_name = {name: module for module, name in gguf_modules(modules, base).items()}
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name in file.tensors:
        target, _, half = name.rpartition(".weight.lora_")
        if target not in modules_by_name or half not in ("a", "b"):
            problems.append(f"{name} belongs to no linear of the base")
            continue
        tensor = file.tensor(name)
        if not isinstance(tensor, Dense) or tensor.bf16:
            problems.append(f"{name} is neither float32 nor float16")
            continue
        halves.setdefault(modules_by_name[target], {})[half] = np.asarray(tensor.data, np.float32)
    found: dict[str, Update] = {}
    for module, pair in sorted(halves.items()):
        if len(pair) < 2:
            problems.append(f"{module}: lora_{'b' if 'a' in pair else 'a'} is missing")
            continue
        a, b = pair["a"], pair["b"]
        rank = b.shape[-1]
        if a.shape[-2] != rank or a.ndim != b.ndim:
            problems.append(f"{module} has shapes {a.shape} and {b.shape}, which do not go together")
            continue
        if heads := permuted_module(module, base):
            b = b[hf_row_order(b.shape[0], heads)]
        scale = float(alpha) / rank if isinstance(alpha, int | float) and alpha else 1.0
        found[module] = Update(np.ascontiguousarray(a.swapaxes(-1, -2)), np.ascontiguousarray(b.swapaxes(-1, -2)), scale)
    file.close()
    if problems:
        raise InputError(f"{path}: llama.cpp would not take this adapter for this base ({named(problems, 4)}); write it again")
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return found, texts, metadata
