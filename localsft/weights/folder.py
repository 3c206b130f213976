"""Model folders: Hugging Face safetensors (dense) and MLX safetensors (affine-quantized), with their config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localsft.errors import InputError
from localsft.weights.config import ModelConfig, Quantization, config_from_hf, plain_names
from localsft.weights.messages import shown
from localsft.weights.names import LLAMA_LIKE
from localsft.weights.quant import BITS
from localsft.weights.safetensors import SafetensorsFile, SafetensorsInfo, open_safetensors
from localsft.weights.tensor import AffineQuantized, Dense, Tensor

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
PICKLE_HINT = "pickle files can run code when they are opened, so get the model as safetensors or GGUF"
_MAX_JSON_BYTES = 64 << 20
_GROUP_SIZES = (32, 64, 128)
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}\.safetensors")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is not read yet: its shape (outputs first) and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    config: ModelConfig
    tensors: Mapping[str, LazyTensor]
    files: tuple[Path, ...]  # config.json and the weight files


def open_folder(folder: Path) -> ModelFolder:
    """Read config.json and the safetensors headers of ``folder``; InputError where something is missing or wrong."""
    config_path = _inside(folder, "config.json")
    if not config_path.exists():
        raise InputError(f"{folder} has no config.json; give a model folder from Hugging Face or MLX, or the path of a .gguf file")
    values = read_json(config_path)
    shards = [open_safetensors(path) for path in _weight_files(folder)]
    stored = _index_tensors(shards, folder)
    quantization, overrides = _quantization(values, config_path)
    tensors: dict[str, LazyTensor] = {}
    for name, (shard, info) in stored.items():
        module, _, kind = name.rpartition(".")
        if f"{module}.scales" not in stored:
            tensors[name] = LazyTensor(info.shape, _dense_reader(shard, info))
        elif kind == "weight":
            settings = _settings(module, quantization, overrides, config_path)
            tensors[name] = _quantized(module, settings, stored, folder)
        elif kind not in ("scales", "biases"):
            tensors[name] = LazyTensor(info.shape, _dense_reader(shard, info))
    config = config_from_hf(
        values if values.get("model_type") in LLAMA_LIKE else plain_names(values),
        config_path,
        source="mlx" if quantization else "safetensors",
        has_head="lm_head.weight" in tensors,
        quantization=quantization,
    )
    return ModelFolder(config, tensors, (config_path, *(shard.path for shard in shards)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError where it is missing, too large, not JSON, or another kind of value."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise InputError(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB; get the model again")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); get the model again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object; get the model again")
    return values


def _inside(folder: Path, name: str) -> Path:
    """``folder/name``, whose symbolic links may not lead out of the folder, except into a hub cache's own blobs."""
    path = folder / name
    if not path.is_symlink():
        return path
    home, target = folder.resolve(), path.resolve()
    is_cache = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    if not is_cache and not target.is_relative_to(home):
        raise InputError(f"{path} is a link to {target}, outside of the model folder; copy the file into the folder if you trust it")
    return path


def _weight_files(folder: Path) -> list[Path]:
    index = _inside(folder, _INDEX)
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise InputError(f"{index} has no weight_map of file names; get the model again")
        names = sorted(set(weight_map.values()))
        for name in names:
            if not _SHARD_NAME.fullmatch(name):
                raise InputError(f"{index} names the file {shown(name)}, which is not a plain .safetensors name; do not trust this model")
    else:
        names = sorted(path.name for path in folder.glob("model*.safetensors") if _SHARD_NAME.fullmatch(path.name))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing[:3])}{' and more' if missing[3:] else ''}; download the model again")
    if not names:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise InputError(f"{folder} has its weights as {pickles[0]}; {PICKLE_HINT}")
        raise InputError(f"{folder} has no model*.safetensors; give a model folder with safetensors weights, or the path of a .gguf file")
    return [_inside(folder, name) for name in names]


def _index_tensors(shards: list[SafetensorsFile], folder: Path) -> dict[str, tuple[SafetensorsFile, SafetensorsInfo]]:
    stored: dict[str, tuple[SafetensorsFile, SafetensorsInfo]] = {}
    for shard in shards:
        for name, info in shard.tensors.items():
            if name in stored:
                raise InputError(
                    f"{folder}: tensor {name!r} is in {stored[name][0].path.name} and in {shard.path.name}; get the model again"
                )
            stored[name] = shard, info
    index = folder / _INDEX
    if index.exists():
        absent = sorted(name for name in read_json(index)["weight_map"] if name not in stored)
        if absent:
            raise InputError(
                f"{index} lists {len(absent)} tensors that no file holds, such as {shown(absent[0])}; download the model again"
            )
    return stored


def _quantization(values: Mapping[str, Any], where: Path) -> tuple[Quantization | None, Mapping[str, Any]]:
    """MLX's ``quantization`` of config.json: the default, and the whole table with its per-layer overrides."""
    table = values.get("quantization")
    if table is None:
        other = values.get("quantization_config")
        if other is not None:
            method = other.get("quant_method", "unknown") if isinstance(other, dict) else "unknown"
            raise InputError(f"{where}: the weights are quantized by {shown(method)}; get the model unquantized, as MLX 4-bit or as GGUF")
        return None, {}
    if not isinstance(table, dict):
        raise InputError(f"{where}: 'quantization' is not an object; get the model again")
    return _read_settings(table, "quantization", where), table


def _read_settings(table: Mapping[str, Any], key: str, where: Path) -> Quantization:
    bits, group_size, mode = table.get("bits"), table.get("group_size"), table.get("mode", "affine")
    if mode != "affine" or type(bits) is not int or bits not in BITS or type(group_size) is not int or group_size not in _GROUP_SIZES:
        raise InputError(
            f"{where}: {key!r} asks for mode {shown(mode)}, {shown(bits)} bits in groups of {shown(group_size)}, which is not "
            "supported; get the model with affine quantization (2, 3, 4, 5, 6 or 8 bits, groups of 32, 64 or 128)"
        )
    return Quantization(bits, group_size)


def _settings(module: str, default: Quantization | None, overrides: Mapping[str, Any], where: Path) -> Quantization:
    override = overrides.get(module, True)
    if isinstance(override, dict):
        return _read_settings(override, module, where)
    if default is None or override is not True:
        raise InputError(f"{where} does not say how {module!r} is quantized, but its file holds scales for it; get the model again")
    return default


def _quantized(
    module: str, settings: Quantization, stored: Mapping[str, tuple[SafetensorsFile, SafetensorsInfo]], folder: Path
) -> LazyTensor:
    bits, group = settings.bits, settings.group_size
    names = [f"{module}.{part}" for part in ("weight", "scales", "biases")]
    if names[2] not in stored:
        raise InputError(f"{folder}: {names[2]!r} is missing beside {names[1]!r}; download the model again")
    weight, scales, biases = (stored[name][1] for name in names)
    if len(weight.shape) != 2:
        return _experts(names[0], (*weight.shape[:-1], weight.shape[-1] * 32 // bits), folder)
    rows, inputs = weight.shape[0], weight.shape[1] * 32 // bits
    fits = scales.shape == biases.shape == (rows, inputs // group) and inputs % group == 0 and weight.shape[1] * 32 % bits == 0
    if not fits or weight.dtype != "U32" or scales.dtype not in ("F32", "F16", "BF16") or biases.dtype != scales.dtype:
        raise InputError(
            f"{folder}: {names[0]!r} ({weight.dtype} {weight.shape}) and its scales ({scales.dtype} {scales.shape}) and biases "
            f"({biases.dtype} {biases.shape}) do not fit {bits} bits in groups of {group}; get the model again"
        )

    def read() -> Tensor:
        packed, scale, bias = (stored[name][0].array(name) for name in names)
        return AffineQuantized(packed, scale, bias, bits, group, bf16_scales=scales.dtype == "BF16")

    return LazyTensor((rows, inputs), read)


def _experts(name: str, shape: tuple[int, ...], folder: Path) -> LazyTensor:
    """A stack of quantized experts: the mlx engine reads the folder itself; here it has a shape, but can't be read."""

    def read() -> Tensor:
        raise InputError(f"{folder}: {name!r} is a quantized mixture of experts, which only --engine mlx can use")

    return LazyTensor(shape, read)


def _dense_reader(shard: SafetensorsFile, info: SafetensorsInfo) -> Callable[[], Tensor]:
    def read() -> Tensor:
        if info.dtype not in ("F32", "F16", "BF16"):
            raise InputError(
                f"{shard.path}: tensor {info.name!r} is {info.dtype}, which is not supported; get the model as BF16, MLX 4-bit or GGUF"
            )
        return Dense(shard.array(info.name), bf16=info.dtype == "BF16")

    return read
