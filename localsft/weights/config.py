"""What a base model is made of, in one form for Hugging Face folders, MLX folders and GGUF files.

Letters: D hidden size, L layers, H query heads, K key/value heads, E head size, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from localsft.errors import InputError
from localsft.weights.messages import shown

_MAX_LAYERS = 4096

Source = Literal["safetensors", "mlx", "gguf"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """The default of an MLX folder; single tensors may differ, and say so themselves."""

    bits: int
    group_size: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers that a forward pass needs. Every size is at least 1; H is a multiple of K.

    ``rope_scaling`` None, or a dict with ``rope_type`` as in Hugging Face's config.json, or, from a GGUF with a
    ``rope_freqs`` tensor, {"rope_type": "factors", "factors": [...]}: ``rope_frequencies`` reads them all.
    ``sliding_window`` tokens, None for full attention. ``quantization`` only of an MLX folder.
    """

    model_type: str  # as in config.json: "llama", "mistral", "qwen2", ...
    source: Source
    hidden_size: int  # D
    n_layers: int  # L
    n_heads: int  # H
    n_kv_heads: int  # K
    head_size: int  # E
    ffn_size: int  # F
    vocab_size: int  # V, the rows of the embedding
    max_positions: int
    rms_eps: float
    rope_theta: float
    rope_size: int  # how many of the E values of a head are rotated; E except for partial rotation
    rope_scaling: Mapping[str, Any] | None
    tied_head: bool  # logits from the embedding; there is no lm_head.weight
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm over each query and key head before RoPE (qwen3)
    activation: str  # of the gate: "silu", ...
    sliding_window: int | None
    quantization: Quantization | None


def rope_frequencies(config: ModelConfig) -> NDArray[np.float64]:
    """Radians per position of each rotated pair: float64 (rope_size/2,); pair i is values i and i + rope_size/2 of a head.

    θ^(-2i/rope_size), then as ``rope_scaling`` says: "linear" divides by ``factor``; "llama3" divides long wavelengths by
    ``factor`` and blends the middle ones (Llama 3.1); "factors" divides by a factor per pair (GGUF). Raises InputError for
    other kinds (yarn, dynamic, longrope), which also change the attention scale or depend on the length.
    """
    half = config.rope_size // 2
    frequencies = config.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    kind = scaling["rope_type"]
    try:
        with np.errstate(all="ignore"):  # a factor of zero shows in the result
            if kind == "linear":
                frequencies = frequencies / float(scaling["factor"])
            elif kind == "factors":
                frequencies = frequencies / np.asarray(scaling["factors"], np.float64).reshape(half)
            elif kind == "llama3":
                frequencies = _llama3(frequencies, scaling)
            else:
                raise InputError(
                    f"the model's rope scaling {shown(kind)} is not supported; use a model without it, or with linear or llama3"
                )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise _bad_rope_scaling(scaling) from error
    if not (np.isfinite(frequencies) & (frequencies > 0)).all():
        raise _bad_rope_scaling(scaling)
    return frequencies


def _bad_rope_scaling(scaling: Mapping[str, Any]) -> InputError:
    return InputError(f"the model's rope_scaling {shown(dict(scaling), 200)} makes no sense; get its config.json again")


def _llama3(frequencies: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    factor, context = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = context * frequencies / (2 * math.pi)  # full rotations within the original context
    blend = np.clip((turns - low) / (high - low), 0, 1)  # 0: long wavelength, slowed down; 1: short, kept
    return frequencies * ((1 - blend) / factor + blend)


class ConfigReader:
    """Typed look-ups in a config.json or in GGUF metadata, with errors that name the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self._values = values
        self.where = where

    def fail(self, key: str, problem: str) -> InputError:
        return InputError(f"{self.where}: {key!r} {problem}; get the model again or correct that value")

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; an array whose values are all the same counts as that value (GGUF, one per layer)."""
        value = self._values.get(key)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size and (value == value[0]).all():
            value = int(value[0])
        if value is None:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise self.fail(key, f"is {shown(value)}, not a positive integer")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self._values.get(key)
        if value is None:
            if default is None:
                raise self.fail(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            raise self.fail(key, f"is {shown(value)}, not a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, f"is {shown(value)}, not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str) or not value:
            raise self.fail(key, "is missing" if value is None else f"is {shown(value)}, not a text")
        return value


# What other families call the same number.
_SYNONYMS = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "intermediate_size": ("block_ff_dim", "n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
    "rms_norm_eps": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"),
}


def plain_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a family that only mlx-lm knows, with the usual names, so that ``config_from_hf`` can read it.

    A text model inside of a larger one comes to the top. What the family does not have (the heads of a state-space model)
    gets a number that takes no part in what mlx-lm computes: it reads the file itself.
    """
    text = values.get("text_config")
    plain = {**values, **(text if isinstance(text, Mapping) else {}), "model_type": values.get("model_type")}
    for name, others in _SYNONYMS.items():
        found = next((plain[other] for other in others if plain.get(other) is not None), None)
        if plain.get(name) is None and found is not None:
            plain[name] = found
    absent = {
        "num_attention_heads": 1,
        "intermediate_size": plain.get("hidden_size"),
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    return absent | {name: value for name, value in plain.items() if value is not None}


def config_from_hf(
    values: Mapping[str, Any], where: Path, *, source: Source, has_head: bool, quantization: Quantization | None
) -> ModelConfig:
    """ModelConfig from the contents of a config.json at ``where``; ``has_head``: the folder holds lm_head.weight.

    Raises InputError naming the file and the key for a value that is missing or makes no sense.
    """
    read = ConfigReader(values, where)
    model_type = read.text("model_type")
    hidden, heads = read.size("hidden_size"), read.size("num_attention_heads")
    head_size = read.size("head_dim", max(1, hidden // heads))
    theta, scaling = _rope_from_hf(read)
    partial = read.positive("partial_rotary_factor", 1.0)
    bias = read.flag("attention_bias", default=model_type == "qwen2")
    config = ModelConfig(
        model_type=model_type,
        source=source,
        hidden_size=hidden,
        n_layers=read.size("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=read.size("num_key_value_heads", heads),
        head_size=head_size,
        ffn_size=read.size("intermediate_size"),
        vocab_size=read.size("vocab_size"),
        max_positions=read.size("max_position_embeddings"),
        rms_eps=read.positive("rms_norm_eps"),
        rope_theta=theta,
        rope_size=int(head_size * partial),
        rope_scaling=scaling,
        tied_head=read.flag("tie_word_embeddings", default=not has_head),
        qkv_bias=bias,
        attention_output_bias=bias and model_type != "qwen2",
        mlp_bias=read.flag("mlp_bias", default=False),
        qk_norm=model_type == "qwen3",
        activation=read.text("hidden_act", "silu"),
        sliding_window=_sliding_window(read, model_type),
        quantization=quantization,
    )
    return check_config(config, where)


def _rope_from_hf(read: ConfigReader) -> tuple[float, Mapping[str, Any] | None]:
    """rope_theta and rope_scaling; newer files keep both in rope_parameters."""
    parameters = read.get("rope_parameters")
    if isinstance(parameters, Mapping):
        theta = ConfigReader(parameters, read.where).positive("rope_theta", read.positive("rope_theta", 10000.0))
        scaling: Any = {key: value for key, value in parameters.items() if key != "rope_theta"}
    else:
        theta, scaling = read.positive("rope_theta", 10000.0), read.get("rope_scaling")
    if scaling is None:
        return theta, None
    if not isinstance(scaling, Mapping):
        raise read.fail("rope_scaling", "is not an object")
    if any(isinstance(value, Mapping) for value in scaling.values()):
        return theta, {"rope_type": "per layer type"}  # Gemma 3: rope_frequencies refuses it
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    return theta, {**{key: value for key, value in scaling.items() if key != "type"}, "rope_type": kind}


def _sliding_window(read: ConfigReader, model_type: str) -> int | None:
    if read.get("sliding_window") is None or not read.flag("use_sliding_window", default=model_type not in ("qwen2", "qwen3")):
        return None
    return read.size("sliding_window")


def check_config(config: ModelConfig, where: Path) -> ModelConfig:
    """The relations between the sizes; returns ``config`` or raises InputError."""
    if config.n_layers > _MAX_LAYERS:
        raise InputError(f"{where}: {config.n_layers} layers is more than any model has ({_MAX_LAYERS} allowed); get the model again")
    if config.n_heads % config.n_kv_heads:
        raise InputError(
            f"{where}: {config.n_heads} query heads can't share {config.n_kv_heads} key/value heads evenly; get the model again"
        )
    if config.rope_size % 2 or not 0 < config.rope_size <= config.head_size:
        raise InputError(f"{where}: {config.rope_size} rotated values in heads of {config.head_size} make no pairs; get the model again")
    return config
