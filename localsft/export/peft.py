"""The PEFT adapter folder: adapter_model.safetensors and adapter_config.json, as peft.PeftModel.from_pretrained reads them.

Keys ``base_model.model.<linear>.lora_A.weight`` (R, in) and ``.lora_B.weight`` (out, R); ΔW = alpha/R · B·A, or alpha/√R with
``use_rslora`` (peft/tuners/lora/layer.py, update_layer). DoRA: ``.lora_magnitude_vector`` (out,), ``use_dora``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from localsft.errors import InputError, UsageError
from localsft.export.families import family_of, linears, named
from localsft.export.lowrank import Update
from localsft.export.source import Source
from localsft.weights.load import BaseModel
from localsft.weights.safetensors import write_safetensors

PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_KEY = re.compile(
    r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.(?:lora_(?P<half>[AB])(?:\.default)?\.weight|lora_(?P<m>magnitude_vector)(?:\.default)?(?:\.weight)?)"
)
_LAYER = re.compile(r"\.layers\.([0-9]+)\.")


def write_peft(folder: Path, source: Source) -> None:
    """Write both files into ``folder``; provenance goes into the header of the tensors, since PEFT's config knows no such keys.

    Raises UsageError for a family or a linear that PEFT can't address by the same name, and where the base's Hugging Face id is
    not known.
    """
    base = source.model.base
    if not family_of(base.config.model_type, "peft").peft:
        raise UsageError(f"--to peft: the {base.config.model_type} family has other names in Hugging Face; export it --to mlx")
    stacked = [name for name, update in source.updates.items() if len(update.shape) > 2]
    if stacked:
        raise UsageError(f"--to peft: PEFT can't express an adapter on stacked experts ({named(stacked)}); export it --to mlx or gguf-lora")
    if not source.provenance.base_model:
        raise UsageError("--to peft: the base's Hugging Face id is not known; give it with --base-model ORGANISATION/NAME")
    tensors: dict[str, Any] = {}
    for module, update in source.updates.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(update.a.T)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(update.b.T)
        if update.magnitude is not None:
            tensors[f"{_PREFIX}{module}.lora_magnitude_vector"] = update.magnitude
    write_safetensors(folder / PEFT_FILE, tensors, {"format": "pt", **source.provenance.texts()})
    config = peft_config(source)
    (folder / PEFT_CONFIG).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def peft_config(source: Source) -> dict[str, Any]:
    """adapter_config.json of a LoraConfig, with every field that loaders and converters read."""
    lora = source.adapter.lora
    targets, layers = _targets(source.updates, source.model.base)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source.provenance.base_model,
        "revision": None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": targets,
        "layers_to_transform": layers,
        "layers_pattern": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": lora.variant == "rslora",
        "use_dora": lora.variant == "dora",
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }


def _targets(updates: Mapping[str, Update], base: BaseModel) -> tuple[list[str], list[int] | None]:
    """target_modules and layers_to_transform that select exactly the adapted linears; else their whole names."""
    numbers = {int(match[1]) for name in updates if (match := _LAYER.search(name))}
    suffixes = {name.rpartition(".")[2] for name in updates}
    layers = None if len(numbers) == base.config.n_layers else sorted(numbers)
    selected = {
        name
        for name in linears(base)
        if name.rpartition(".")[2] in suffixes and (match := _LAYER.search(name)) and int(match[1]) in numbers
    }
    if selected == set(updates):
        return sorted(suffixes), layers
    return sorted(updates), None


def read_peft(folder: Path) -> tuple[dict[str, Update], dict[str, str], dict[str, Any]]:
    """Updates by linear, the file's texts and the config, scaled as PEFT scales them: by r and lora_alpha of the config, or of
    rank_pattern and alpha_pattern where they match.

    Reads with the safetensors package. Raises InputError that collects what is missing, mixed up or not LoRA.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / PEFT_FILE
    try:
        config: dict[str, Any] = orjson.loads((folder / PEFT_CONFIG).read_bytes())
        with safe_open(path, framework="numpy") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder}: can't be read as a PEFT adapter ({type(error).__name__}: {error}); write it again") from None
    _refuse_unlike_lora(config, folder)
    halves: dict[str, dict[str, Any]] = {}
    problems = []
    for name, values in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None or values.ndim != (1 if match["m"] else 2):
            problems.append(f"{name} is no LoRA matrix of a linear layer")
        else:
            halves.setdefault(match["module"], {})[match["half"] or "m"] = values
    found: dict[str, Update] = {}
    for module, pair in sorted(halves.items()):
        names = {"A": "lora_A", "B": "lora_B"} | ({"m": "lora_magnitude_vector"} if config.get("use_dora") else {})
        if lacking := [name for half, name in names.items() if half not in pair]:
            problems.append(f"{module}.{lacking[0]} is missing")
            continue
        if len(pair) > len(names):
            problems.append(f"{module} has magnitudes, but use_dora is not set")
            continue
        rank, alpha = _pattern(config, "rank_pattern", module, "r"), _pattern(config, "alpha_pattern", module, "lora_alpha")
        a, b = pair["A"], pair["B"]
        if a.shape[0] != rank or b.shape[1] != rank:
            problems.append(f"{module} has shapes {a.shape} and {b.shape}, not rank {rank:g}")
            continue
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        magnitude = pair.get("m")
        if magnitude is not None and magnitude.shape != b.shape[:1]:
            problems.append(f"{module} has {magnitude.size} magnitudes for {len(b)} outputs")
            continue
        found[module] = Update(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), scale, magnitude)
    if problems:
        raise InputError(f"{folder}: {named(problems, 4)}; write the adapter again with the program that made it")
    return found, texts, config


def _refuse_unlike_lora(config: Mapping[str, Any], folder: Path) -> None:
    unlike = [
        name
        for name, present in {
            f"peft_type {config.get('peft_type')}": config.get("peft_type") != "LORA",
            f"bias '{config.get('bias')}'": config.get("bias", "none") != "none",
            "fan_in_fan_out": config.get("fan_in_fan_out"),
            "modules_to_save": config.get("modules_to_save"),
            "layer_replication": config.get("layer_replication"),
        }.items()
        if present
    ]
    if unlike:
        raise InputError(f"{folder}: uses {', '.join(unlike)}, which localsft does not train; only LoRA, rsLoRA and DoRA can be used")


def _pattern(config: Mapping[str, Any], key: str, module: str, default: str) -> float:
    """As peft.utils.other.get_pattern_key: a key matches the end of the name, after a dot or at its start, as an expression."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    try:
        return float(config[default])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"adapter_config.json: {default} is missing or no number; write the adapter again") from None
