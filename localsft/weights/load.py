"""``load_base(path)``: a base model from a GGUF file, a Hugging Face folder or an MLX folder, in one form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from localsft.errors import InputError
from localsft.weights.config import ModelConfig
from localsft.weights.folder import PICKLE_HINT, PICKLE_SUFFIXES, LazyTensor, open_folder
from localsft.weights.gguf import GgufValue
from localsft.weights.gguf_model import open_gguf_model
from localsft.weights.names import LLAMA_LIKE, llama_shapes
from localsft.weights.quant import all_finite
from localsft.weights.tensor import Dense, Tensor, same_tensor


class TensorMap(Mapping[str, Tensor]):
    """Hugging Face name -> tensor, read on access. Nothing is cached: every look-up reads (for GGUF: repacks) again, so
    hold on to what you get. A tensor with NaN or infinity raises InputError."""

    def __init__(self, tensors: Mapping[str, LazyTensor], path: Path) -> None:
        self._tensors = tensors
        self._path = path

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name].read()
        if isinstance(tensor, Dense):
            finite = all_finite(tensor.data, tensor.bf16)
        else:
            finite = all(all_finite(values, tensor.bf16_scales) for values in (tensor.scales, tensor.biases))
        if not finite:
            raise InputError(f"{self._path}: tensor {name!r} holds NaN or infinity; the file is damaged, get the model again")
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, outputs first, without reading it."""
        return self._tensors[name].shape


@dataclass(frozen=True)
class BaseModel:
    """A frozen base model. ``tensors`` by Hugging Face name, q and k rows in Hugging Face order; ``metadata`` the keys of
    a GGUF (the tokenizer and the chat template among them), empty for a folder; ``files`` what ``hash`` covers."""

    path: Path
    config: ModelConfig
    tensors: TensorMap = field(repr=False)
    metadata: Mapping[str, GgufValue] = field(repr=False)
    files: tuple[Path, ...]

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what defines the base. Of a GGUF: the file's own, as ``sha256sum`` prints it. Of a folder: of
        the sorted lines "<sha256>  <name>" of config.json and the weight files. Reads every byte once, on first use."""
        if len(self.files) == 1:
            return sha256_file(self.files[0])
        lines = sorted(f"{sha256_file(path)}  {path.name}\n" for path in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as hex, read in pieces. Raises InputError where it can't be read."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(1 << 20))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                digest.update(piece[:count])
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); check the path and its permissions") from error
    return digest.hexdigest()


def load_base(path: str | Path) -> BaseModel:
    """Open a base model: a .gguf file, or a folder with config.json and safetensors (Hugging Face dense, MLX quantized).

    Reads headers and config only; tensors come from ``tensors`` on access. Raises InputError (one sentence with the file,
    what is wrong and the remedy) for anything unusable; all missing, mis-shaped and unexpected tensors are in one error.
    """
    path = Path(path)
    metadata: Mapping[str, Any] = {}
    if path.is_dir():
        folder = open_folder(path)
        config, tensors, files = folder.config, folder.tensors, folder.files
    elif path.suffix in PICKLE_SUFFIXES:
        raise InputError(f"{path} looks like a pickle; {PICKLE_HINT}")
    elif path.suffix == ".safetensors":
        raise InputError(f"{path} is one file of a model; give its folder, where config.json and the tokenizer are")
    else:
        config, tensors, metadata = open_gguf_model(path)
        files = (path,)
    return BaseModel(path, config, TensorMap(_checked(tensors, config, path), path), metadata, files)


def _checked(tensors: Mapping[str, LazyTensor], config: ModelConfig, path: Path) -> Mapping[str, LazyTensor]:
    """Leave out what a model keeps without needing it, and compare the rest with what the model type must have."""
    unused = {name for name in tensors if name.endswith(".rotary_emb.inv_freq")}  # precomputed, in old checkpoints
    if config.tied_head and "lm_head.weight" in tensors:
        embedding = tensors.get("model.embed_tokens.weight")
        if embedding is not None and not same_tensor(tensors["lm_head.weight"].read(), embedding.read()):
            raise InputError(
                f"{path}: config.json ties the head to the embedding (tie_word_embeddings), but lm_head.weight is another matrix, which "
                "transformers ignores and mlx-lm may not; set tie_word_embeddings to what was trained, or remove the tensor"
            )
        unused |= {"lm_head.weight"}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in unused}
    if config.model_type not in LLAMA_LIKE:
        return tensors
    expected = llama_shapes(config)
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            problems.append(f"{name} has shape {tensors[name].shape}, not {shape}")
    if problems:
        listed = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise InputError(
            f"{path} does not hold the tensors of a {config.model_type} model as its config describes it ({listed}); get it again"
        )
    return tensors
