"""A base model as an mlx-lm model: folders through mlx-lm's own loader, GGUF files from our exact repacking."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes
from mlx_lm.utils import load_model as load_folder
from numpy.typing import NDArray

from localsft.errors import InputError
from localsft.weights.config import ModelConfig
from localsft.weights.load import BaseModel
from localsft.weights.tensor import AffineQuantized, Dense


def load_model(base: BaseModel, dtype: mx.Dtype | None = None) -> nn.Module:
    """The base as mlx-lm's model of its family, frozen, its floating tensors in ``dtype``.

    By default a folder keeps its dtypes. A quantized GGUF file computes in float16, the dtype of its scales, in which Q4_0 to
    Q8_0 stay exact (bfloat16 would round them), or in float32 where the model's values are too large for that; one that is
    not quantized, in the dtype of its embedding. Raises InputError for a family that mlx-lm lacks, or weights that do not fit it.
    """
    try:
        if base.config.source == "gguf":
            model = _from_gguf(base)
            dtype = dtype or _dtype_of(model)
        else:
            model, _ = load_folder(base.path, lazy=True)
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{base.path}: mlx-lm can't load this {base.config.model_type} model ({reason}); update mlx-lm, or take another base"
        ) from error
    if dtype is not None:
        model.set_dtype(dtype)
    model.freeze()
    mx.eval(model.parameters())
    return model


def _dtype_of(model: nn.Module) -> mx.Dtype:
    if not any(isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding) for _, module in model.named_modules()):
        return model.model.embed_tokens.weight.dtype  # type: ignore[no-any-return]
    largest = _largest_hidden(model)
    return mx.float16 if largest < float(mx.finfo(mx.float16).max) / 2 else mx.float32


def _largest_hidden(model: nn.Module) -> float:
    """The largest value between the layers on a few tokens; infinite where it is not finite.

    Large models keep one huge value in the hidden states of the first token of any text (arXiv:2402.17762): float16 ends at 65504.
    """
    hidden = model.model.embed_tokens(mx.arange(8)[None])
    largest = 0.0
    for layer in model.layers:
        hidden = layer(hidden, "causal")
        value = float(mx.abs(hidden).max())
        largest = max(largest, value if math.isfinite(value) else math.inf)
    return largest


def to_mlx(values: NDArray[Any], bf16: bool = False) -> mx.array:
    """A copy of a numpy array on the device; ``bf16``: its uint16 are the bits of bfloat16 values."""
    array = mx.array(values)
    return array.view(mx.bfloat16) if bf16 else array


def _from_gguf(base: BaseModel) -> nn.Module:
    config = hf_config(base.config)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    weights: dict[str, mx.array] = {}
    quantized: dict[str, Mapping[str, int]] = {}
    for name, tensor in base.tensors.items():
        if isinstance(tensor, Dense):
            weights[name] = to_mlx(tensor.data, tensor.bf16)
            continue
        module = name.removesuffix(".weight")
        quantized[module] = {"group_size": tensor.group_size, "bits": tensor.bits}
        weights |= _quantized_tensors(module, tensor)
    nn.quantize(model, class_predicate=lambda path, _: quantized.get(path, False))
    model.load_weights(list(weights.items()))
    return model


def _quantized_tensors(module: str, tensor: AffineQuantized) -> dict[str, mx.array]:
    return {
        f"{module}.weight": mx.array(tensor.packed),
        f"{module}.scales": to_mlx(tensor.scales, tensor.bf16_scales),
        f"{module}.biases": to_mlx(tensor.biases, tensor.bf16_scales),
    }


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json from which mlx-lm would build this model."""
    scaling = None if config.rope_scaling is None else dict(config.rope_scaling)
    if scaling and scaling["rope_type"] == "factors":
        # GGUF's divisor for each pair; mlx-lm's longrope multiplies the wavelengths by just such a list, and scales nothing
        # else as long as the trained length is the original one.
        factors = [float(factor) for factor in scaling["factors"]]
        scaling = {"rope_type": "longrope", "original_max_position_embeddings": config.max_positions}
        scaling |= {"long_factor": factors, "short_factor": factors}
    return {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "intermediate_size": config.ffn_size,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": config.sliding_window,
    }
