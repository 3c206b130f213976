"""A whole model from one GGUF file: config from the metadata, tensors under their Hugging Face names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from localsft.errors import InputError
from localsft.weights.config import ConfigReader, ModelConfig, check_config
from localsft.weights.folder import LazyTensor
from localsft.weights.gguf import GgufFile, GgufValue, open_gguf
from localsft.weights.messages import shown
from localsft.weights.names import MODEL_TYPES, hf_name, hf_row_order, permuted_heads, take_rows
from localsft.weights.tensor import Dense, Tensor

_UNUSED = frozenset({"rope_freqs.weight"})  # read into the config


def open_gguf_model(path: Path) -> tuple[ModelConfig, Mapping[str, LazyTensor], Mapping[str, GgufValue]]:
    """Config, tensors by Hugging Face name and metadata of a GGUF file. InputError where it is not a model known here."""
    file = open_gguf(path)
    read = ConfigReader(file.metadata, path)
    architecture = read.text("general.architecture")
    kind = read.text("general.type", "model")
    if kind != "model":
        raise InputError(f"{path} is a GGUF of type {shown(kind)}, not a model; give the base model's file")
    if architecture not in MODEL_TYPES:
        raise InputError(
            f"{path} has the architecture {shown(architecture)}; GGUF files of {', '.join(MODEL_TYPES)} models can be read, "
            "so give one of those, or the model's safetensors folder"
        )
    if read.size("split.count", 1) != 1:
        raise InputError(f"{path} is one part of a split model; merge the parts with llama-gguf-split --merge first")
    file.check_readable(list(file.tensors))
    config = _config(file, read, architecture)
    tensors: dict[str, LazyTensor] = {}
    unknown = []
    for name, info in file.tensors.items():
        if name in _UNUSED:
            continue
        target = hf_name(name)
        if target is None:
            unknown.append(name)
        else:
            heads = permuted_heads(target, architecture, config)
            tensors[target] = LazyTensor(info.shape, _reader(file, name, heads))
    if unknown:
        raise InputError(
            f"{path} has {len(unknown)} tensors that a dense {architecture} model does not have, such as {shown(unknown[0])}; "
            "mixtures of experts and multimodal models are not supported, so choose another model"
        )
    return config, tensors, file.metadata


def _reader(file: GgufFile, name: str, heads: int | None) -> Callable[[], Tensor]:
    def read() -> Tensor:
        tensor = file.tensor(name)
        return tensor if heads is None else take_rows(tensor, hf_row_order(tensor.shape[0], heads))

    return read


def _config(file: GgufFile, read: ConfigReader, architecture: str) -> ModelConfig:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{file.path} has no token embedding (token_embd.weight), so it is not a whole model; get it again")
    hidden = read.size(f"{architecture}.embedding_length")
    heads = read.size(f"{architecture}.attention.head_count")
    head_size = read.size(f"{architecture}.attention.key_length", max(1, hidden // heads))
    config = ModelConfig(
        model_type=MODEL_TYPES[architecture],
        source="gguf",
        hidden_size=hidden,
        n_layers=read.size(f"{architecture}.block_count"),
        n_heads=heads,
        n_kv_heads=read.size(f"{architecture}.attention.head_count_kv", heads),
        head_size=head_size,
        ffn_size=read.size(f"{architecture}.feed_forward_length"),
        vocab_size=embedding.shape[0],
        max_positions=read.size(f"{architecture}.context_length"),
        rms_eps=read.positive(f"{architecture}.attention.layer_norm_rms_epsilon"),
        rope_theta=read.positive(f"{architecture}.rope.freq_base", 10000.0),
        rope_size=read.size(f"{architecture}.rope.dimension_count", head_size),
        rope_scaling=_rope_scaling(file, read, architecture),
        tied_head="output.weight" not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        attention_output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        activation="silu",
        sliding_window=_sliding_window(read, architecture),
        quantization=None,
    )
    return check_config(config, file.path)


def _sliding_window(read: ConfigReader, architecture: str) -> int | None:
    key = f"{architecture}.attention.sliding_window"
    value = read.get(key)
    return None if value is None or (isinstance(value, int) and value == 0) else read.size(key)


def _rope_scaling(file: GgufFile, read: ConfigReader, architecture: str) -> Mapping[str, object] | None:
    if "rope_freqs.weight" in file.tensors:
        tensor = file.tensor("rope_freqs.weight")
        if not isinstance(tensor, Dense) or tensor.bf16 or tensor.data.ndim != 1:
            raise InputError(f"{file.path}: rope_freqs.weight is not a list of floats; get the model again")
        return {"rope_type": "factors", "factors": tensor.data.astype(np.float64).tolist()}
    kind = read.text(f"{architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": read.positive(f"{architecture}.rope.scaling.factor", 1.0)}
