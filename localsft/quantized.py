"""``--quantize 4|8``: a dense model folder as a quantized one, in the form that MLX and both engines read.

The copy is made once and kept in the cache, since quantizing takes longer than training a few steps. Its bits come from numpy
(``quantize_affine``, MLX's own arithmetic), so that every machine and engine gets the same base with the same hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import xxhash

from localsft.atomic import atomic_folder
from localsft.errors import UsageError
from localsft.models.cache import Notice, home, locked
from localsft.models.download import check_space
from localsft.weights.folder import read_json
from localsft.weights.load import BaseModel, load_base
from localsft.weights.names import LLAMA_LIKE
from localsft.weights.quant import quantize_affine, to_f32
from localsft.weights.side_files import copy_side_files
from localsft.weights.tensor import Dense, Tensor
from localsft.weights.write import write_tensors

GROUPS = (64, 32)  # inputs that share a scale: mlx-lm's choice, or the half where a weight's inputs are no multiple of it


def quantized_copy(path: Path, bits: int, notice: Notice = lambda text: None) -> Path:
    """The folder of the model ``path`` with its matrices in ``bits`` bits, made if it is not in the cache yet.

    Norms, biases and what no group divides stay as they are; scales have the dtype of the weights. Raises UsageError for a base
    that is quantized already, MissingPart for a family that only mlx-lm can take apart where it is not installed.
    """
    base = load_base(path)
    if base.config.source != "safetensors":
        what = "a GGUF file" if base.config.source == "gguf" else "quantized already"
        raise UsageError(f"--quantize {bits}: {path} is {what}; leave --quantize away, or give a folder with dense safetensors")
    folder = home() / "quantized" / f"{path.resolve().name}-{bits}bit-{_state(base)}"
    with locked(folder, notice):
        if not folder.is_dir():
            check_space(folder.parent, sum(file.stat().st_size for file in base.files) * bits // 12)
            notice(f"quantizing {path.name} to {bits} bits into {folder}; this is done once")
            with atomic_folder(folder) as into:
                _write(base, bits, into)
    return folder


def _state(base: BaseModel) -> str:
    """What a changed model changes, without reading its weights: the files' names, sizes and times, the bytes of config.json."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in base.files]
    return xxhash.xxh3_64_hexdigest(repr(files).encode() + base.files[0].read_bytes())


def _write(base: BaseModel, bits: int, into: Path) -> None:
    copy_side_files(base.path, into)
    if base.config.model_type not in LLAMA_LIKE:
        from localsft.engine import write_quantized_by_mlx_lm

        write_quantized_by_mlx_lm(base, bits, into)
        return
    config = read_json(base.path / "config.json")
    config["quantization"] = write_tensors(into, _tensors(base, bits), {"format": "mlx"})
    (into / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _tensors(base: BaseModel, bits: int) -> Iterator[tuple[str, Tensor]]:
    for name in base.tensors:
        tensor = base.tensors[name]
        assert isinstance(tensor, Dense)
        yield name, _quantized(tensor, bits)


def _quantized(tensor: Dense, bits: int) -> Tensor:
    group = next((size for size in GROUPS if len(tensor.shape) == 2 and tensor.shape[1] % size == 0), None)
    if group is None:
        return tensor
    weight = to_f32(tensor.data, bf16=True) if tensor.bf16 else np.asarray(tensor.data)
    return quantize_affine(weight, bits, group, bf16_scales=tensor.bf16)
