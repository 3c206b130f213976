"""The weights of a model folder: safetensors in shards, quantized ones in the form of MLX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from localsft.weights.safetensors import write_safetensors
from localsft.weights.tensor import AffineQuantized, Dense, Tensor

SHARD_BYTES = 4 << 30


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write a folder's weights as safetensors, quantized ones as mlx-lm keeps them; return its ``quantization``, {} if all are dense."""
    writer = _Shards(folder, metadata)
    quantized: dict[str, dict[str, int]] = {}
    for name, tensor in tensors:
        if isinstance(tensor, AffineQuantized):
            module = name.removesuffix(".weight")
            quantized[module] = {"group_size": tensor.group_size, "bits": tensor.bits}
            writer.add(name, Dense(tensor.packed))
            writer.add(f"{module}.scales", Dense(tensor.scales, bf16=tensor.bf16_scales))
            writer.add(f"{module}.biases", Dense(tensor.biases, bf16=tensor.bf16_scales))
        else:
            writer.add(name, tensor)
    writer.finish()
    return _quantization(quantized) if quantized else {}


def _quantization(modules: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """mlx-lm's table: the most frequent setting as the default, the others by name."""
    settings = [tuple(setting.values()) for setting in modules.values()]
    group, bits = max(set(settings), key=settings.count)
    others = {name: dict(setting) for name, setting in modules.items() if tuple(setting.values()) != (group, bits)}
    return {"group_size": group, "bits": bits, "mode": "affine", **others}


class _Shards:
    """Safetensors files of at most SHARD_BYTES, and the index where there is more than one."""

    def __init__(self, folder: Path, metadata: Mapping[str, str]) -> None:
        self._folder, self._metadata = folder, metadata
        self._tensors: dict[str, Dense] = {}
        self._bytes = self._total = 0
        self._files: list[list[str]] = []

    def add(self, name: str, tensor: Dense) -> None:
        if self._tensors and self._bytes + tensor.data.nbytes > SHARD_BYTES:
            self._flush()
        self._tensors[name] = tensor
        self._bytes += tensor.data.nbytes
        self._total += tensor.data.nbytes

    def _flush(self) -> None:
        write_safetensors(self._folder / f"part-{len(self._files) + 1}.safetensors", self._tensors, self._metadata)
        self._files.append(list(self._tensors))
        self._tensors, self._bytes = {}, 0

    def finish(self) -> None:
        self._flush()
        count = len(self._files)
        names = [f"model-{i:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors" for i in range(1, count + 1)]
        for number, name in enumerate(names, 1):
            (self._folder / f"part-{number}.safetensors").rename(self._folder / name)
        if count > 1:
            weight_map = {tensor: name for name, tensors in zip(names, self._files, strict=True) for tensor in tensors}
            index = orjson.dumps({"metadata": {"total_size": self._total}, "weight_map": weight_map}, option=orjson.OPT_INDENT_2)
            (self._folder / "model.safetensors.index.json").write_bytes(index)
