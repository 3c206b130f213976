"""The mlx-lm adapter folder: adapters.safetensors and adapter_config.json, as mlx_lm.tuner.utils.load_adapters reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson

from localsft.checkpoint import ADAPTER_CONFIG, ADAPTER_FILE, BaseRef, adapter_config
from localsft.errors import InputError
from localsft.export.lowrank import Update, mlx_tensors, updates_of
from localsft.export.source import Source
from localsft.weights.safetensors import write_safetensors


def write_mlx(folder: Path, source: Source) -> None:
    """Write both files into ``folder``, provenance in the header of the tensors and under "localsft" of the config."""
    lora = source.adapter.lora
    tensors = mlx_tensors(source.updates, lora.scale)
    write_safetensors(folder / ADAPTER_FILE, tensors, {"format": "mlx", **source.provenance.texts()})
    ref: BaseRef = source.model.ref
    config = adapter_config(lora, list(tensors), ref)
    config["localsft"] |= {key.removeprefix("localsft."): text for key, text in source.provenance.texts().items()}
    (folder / ADAPTER_CONFIG).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def read_mlx(folder: Path) -> tuple[dict[str, Update], dict[str, str]]:
    """Updates by linear and the file's texts, as mlx-lm takes them: ``scale`` is the multiplier, alpha is not looked at.

    Reads with the safetensors package, not with our own reader. Raises InputError for what mlx-lm would refuse.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / ADAPTER_FILE
    try:
        config = orjson.loads((folder / ADAPTER_CONFIG).read_bytes())
        parameters = config["lora_parameters"]
        scale, rank, keys, count = float(parameters["scale"]), int(parameters["rank"]), parameters.get("keys"), config["num_layers"]
        with safe_open(path, framework="numpy") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder}: can't be read as an mlx-lm adapter ({type(error).__name__}: {error}); write it again") from None
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise InputError(f"{folder}: fine_tune_type is {kind!r}; only LoRA and DoRA adapters can be used")
    found = updates_of(tensors, scale, str(path))
    problems = [f"{name} has rank {update.rank}, not {rank}" for name, update in found.items() if update.rank != rank]
    # mlx-lm passes over tensors that it has no place for, and keeps the base's magnitudes where the file has none.
    problems += [
        f"fine_tune_type is {kind}, but {name} has {'no ' if kind == 'dora' else ''}magnitudes"
        for name, update in found.items()
        if (update.magnitude is not None) != (kind == "dora")
    ]
    if keys is not None:
        problems += [f"{name} is not among the keys" for name in found if not any(name.endswith(f".{key}") for key in keys)]
    if isinstance(count, int) and count > 0:
        layers = sorted({int(part) for name in found for part in name.split(".") if part.isdigit()})
        if layers and layers[-1] - layers[0] >= count:
            problems.append(f"num_layers is {count}, but layers {layers[0]} to {layers[-1]} have tensors")
    if problems:
        raise InputError(f"{folder}: mlx-lm would not load this adapter ({'; '.join(problems[:3])}); write it again")
    return found, texts
