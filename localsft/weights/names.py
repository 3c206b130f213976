"""Names of the same tensor in Hugging Face folders and in GGUF files, the order of its rows, and what a model must have.

GGUF names: llama.cpp's ``blk.N.attn_q.weight`` and so on. For the architectures in PERMUTED, GGUF stores the rows of q and k
so that the two values of a RoPE pair are neighbours; Hugging Face keeps them half a head apart.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from localsft.weights.config import ModelConfig
from localsft.weights.tensor import AffineQuantized, Tensor

# GGUF architecture -> Hugging Face model_type, for the architectures whose names and metadata are known here.
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# GGUF architectures with permuted q and k rows (mistral and mixtral are "llama" there); qwen, gemma, phi are not.
PERMUTED = frozenset({"llama", "granite", "smollm3", "olmo", "minicpm"})

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_REVERSE = {hf: gguf for gguf, hf in _TOP.items()}
_BLOCK_REVERSE = {hf: gguf for gguf, hf in _BLOCK.items()}
_GGUF_BLOCK_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(.+)\.(weight|bias)")
_HF_BLOCK_NAME = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,4})\.(.+)\.(weight|bias)")


def hf_name(name: str) -> str | None:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``; None where there is no counterpart."""
    if match := _GGUF_BLOCK_NAME.fullmatch(name):
        layer, module, kind = match.groups()
        return f"model.layers.{layer}.{_BLOCK[module]}.{kind}" if module in _BLOCK else None
    module, _, kind = name.rpartition(".")
    return f"{_TOP[module]}.{kind}" if module in _TOP and kind in ("weight", "bias") else None


def gguf_name(name: str) -> str | None:
    """The inverse of ``hf_name``."""
    if match := _HF_BLOCK_NAME.fullmatch(name):
        layer, module, kind = match.groups()
        return f"blk.{layer}.{_BLOCK_REVERSE[module]}.{kind}" if module in _BLOCK_REVERSE else None
    module, _, kind = name.rpartition(".")
    return f"{_TOP_REVERSE[module]}.{kind}" if module in _TOP_REVERSE and kind in ("weight", "bias") else None


def permuted_heads(name: str, architecture: str, config: ModelConfig) -> int | None:
    """The heads by which GGUF permutes the rows of a tensor (Hugging Face ``name``): H for q, K for k, else None."""
    if architecture not in PERMUTED:
        return None
    module = name.rpartition(".")[0]
    if module.endswith("self_attn.q_proj"):
        return config.n_heads
    return config.n_kv_heads if module.endswith("self_attn.k_proj") else None


def hf_row_order(rows: int, heads: int) -> NDArray[np.intp]:
    """Row i of the Hugging Face tensor is row order[i] of the GGUF one. ``rows`` = heads·E."""
    order: NDArray[np.intp] = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
    return order


def gguf_row_order(rows: int, heads: int) -> NDArray[np.intp]:
    """Row i of the GGUF tensor is row order[i] of the Hugging Face one. The inverse of ``hf_row_order``."""
    order: NDArray[np.intp] = np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
    return order


def take_rows(tensor: Tensor, order: NDArray[np.intp]) -> Tensor:
    """The tensor with its rows in ``order``, as a copy. Rows move whole, so quantization groups stay as they are."""
    if isinstance(tensor, AffineQuantized):
        return replace(tensor, packed=tensor.packed[order], scales=tensor.scales[order], biases=tensor.biases[order])
    return replace(tensor, data=tensor.data[order])


LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def llama_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face name -> shape of every tensor that a model of a LLAMA_LIKE type has, no more and no fewer."""
    hidden, ffn = config.hidden_size, config.ffn_size
    queries, keys = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tied_head:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    linears = {
        "self_attn.q_proj": (queries, hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, queries, config.attention_output_bias),
        "mlp.gate_proj": (ffn, hidden, config.mlp_bias),
        "mlp.up_proj": (ffn, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, ffn, config.mlp_bias),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": config.head_size, "self_attn.k_norm": config.head_size}
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}."
        for module, (out, into, bias) in linears.items():
            shapes[f"{prefix}{module}.weight"] = (out, into)
            if bias:
                shapes[f"{prefix}{module}.bias"] = (out,)
        for module, width in norms.items():
            shapes[f"{prefix}{module}.weight"] = (width,)
    return shapes
