"""Adapters and checkpoints on disk. Both are folders that are whole or absent; what is loaded was checked first.

An adapter folder is mlx-lm's: ``adapters.safetensors`` and ``adapter_config.json``. A checkpoint adds the optimizer's state and
the loop's, so that a resumed run goes on bit by bit, and last a manifest of hashes, so that a torn one is known for what it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from localsft.atomic import atomic_folder
from localsft.batch import Float32
from localsft.config import LoraConfig
from localsft.engine.adapter import in_layer
from localsft.errors import InputError
from localsft.weights.safetensors import open_safetensors, write_safetensors

Tensors = Mapping[str, NDArray[Any]]

ADAPTER_FILE = "adapters.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
LOOP_FILE = "loop.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class BaseRef:
    """Which base model an adapter belongs to: an adapter on other weights is noise."""

    name: str
    hash: str
    layers: int


def adapter_config(lora: LoraConfig, names: list[str], base: BaseRef) -> dict[str, Any]:
    """adapter_config.json as mlx-lm's ``load_adapters`` reads it (tuner/utils.py), and our own keys under "localsft"."""
    modules = sorted({in_layer(name.rpartition(".")[0]) for name in names})
    return {
        "fine_tune_type": "dora" if lora.variant == "dora" else "lora",
        "num_layers": -1 if lora.layers == "all" else lora.layers,
        "lora_parameters": {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout, "keys": modules},
        "localsft": {
            "alpha": lora.alpha,
            "variant": lora.variant,
            "layers": lora.layers,
            "targets": list(lora.targets),
            "base_model": base.name,
            "base_hash": base.hash,
        },
    }


def save_adapter(path: Path, tensors: Mapping[str, Float32], lora: LoraConfig, base: BaseRef) -> None:
    """Write the adapter folder ``path``, replacing an older one in one step. Raises InputError on a full disk."""
    with atomic_folder(path, replace=True) as folder:
        _write_adapter(folder, tensors, lora, base)


def _write_adapter(folder: Path, tensors: Mapping[str, Float32], lora: LoraConfig, base: BaseRef) -> None:
    write_safetensors(folder / ADAPTER_FILE, tensors, {"format": "mlx"})
    config = adapter_config(lora, list(tensors), base)
    (folder / ADAPTER_CONFIG).write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter folder that was read and checked. ``base_hash`` is '' when another program wrote it."""

    tensors: Mapping[str, Float32]
    lora: LoraConfig
    base_name: str
    base_hash: str


def load_adapter(path: Path) -> SavedAdapter:
    """Read an adapter folder of ours or of mlx-lm. Raises InputError that names the file and what is wrong with it."""
    config_path = path / ADAPTER_CONFIG
    config = _read_json(config_path, "is this an adapter folder?")
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise InputError(f"{config_path}: fine_tune_type is {kind!r}; only LoRA and DoRA adapters can be loaded")
    ours = config.get("localsft", {})
    try:
        parameters = config["lora_parameters"]
        rank, scale = int(parameters["rank"]), float(parameters["scale"])
        layers = ours.get("layers", "all" if config["num_layers"] == -1 else int(config["num_layers"]))
        targets = ours.get("targets") or sorted({key.rpartition(".")[2] for key in parameters["keys"]})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{config_path}: misses or garbles {error}; write the adapter again with the program that made it") from None
    lora = LoraConfig(
        rank=rank,
        alpha=float(ours.get("alpha", scale * rank)),
        dropout=float(parameters.get("dropout", 0.0)),
        layers=layers,
        targets=tuple(targets),
        variant=ours.get("variant", kind),
    )
    if abs(lora.scale - scale) > 1e-6 * max(1.0, abs(scale)):
        raise InputError(f"{config_path}: scale {scale:g} contradicts alpha {lora.alpha:g} and rank {rank}; was it edited by hand?")
    return SavedAdapter(_read_dense(path / ADAPTER_FILE), lora, str(ours.get("base_model", "")), str(ours.get("base_hash", "")))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the next step depends on."""

    path: Path
    adapter: Tensors
    optimizer: Tensors
    loop: Mapping[str, Any]


def save_checkpoint(
    path: Path, adapter: Mapping[str, Float32], optimizer: Tensors, loop: Mapping[str, Any], lora: LoraConfig, base: BaseRef
) -> None:
    """Write the checkpoint folder ``path``; its manifest of SHA-256 hashes goes in last. Raises InputError on a full disk."""
    with atomic_folder(path, replace=True) as folder:
        _write_adapter(folder, adapter, lora, base)
        write_safetensors(folder / OPTIMIZER_FILE, {name: np.atleast_1d(x) for name, x in optimizer.items()}, {})
        (folder / LOOP_FILE).write_bytes(orjson.dumps(dict(loop), option=orjson.OPT_INDENT_2))
        hashes = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
        (folder / MANIFEST).write_bytes(orjson.dumps(hashes, option=orjson.OPT_INDENT_2))


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises InputError when a file is missing or does not match the manifest."""
    manifest = _read_json(path / MANIFEST, "the checkpoint is incomplete")
    for name, expected in manifest.items():
        file = path / Path(name).name
        if not file.is_file() or _sha256(file) != expected:
            raise InputError(f"{file}: missing or changed since the checkpoint was written; use an older checkpoint")
    optimizer = {name: x[0] if name == "step" else x for name, x in _read_dense(path / OPTIMIZER_FILE).items()}
    return Checkpoint(path, _read_dense(path / ADAPTER_FILE), optimizer, _read_json(path / LOOP_FILE, "the checkpoint is damaged"))


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint under ``folder`` (names sort by step), and why newer ones were passed over."""
    skipped: list[str] = []
    for path in sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True):
        try:
            return load_checkpoint(path), skipped
        except InputError as error:
            skipped.append(str(error))
    return None, skipped


def _read_dense(path: Path) -> dict[str, Float32]:
    tensors: dict[str, Float32] = {}
    with open_safetensors(path) as file:
        for name in file.tensors:
            values = file.array(name)
            if values.dtype != np.float32:
                raise InputError(f"{path}: {name} is not float32; write the adapter again in float32")
            tensors[name] = np.array(values, np.float32)  # a copy: the file may be replaced while we run
    return tensors


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {hint}") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object")
    return value


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
