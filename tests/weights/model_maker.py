"""Tiny whole models: Hugging Face and MLX folders, and the same weights as a GGUF written by the gguf package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from localsft.weights.names import gguf_name, gguf_row_order
from localsft.weights.safetensors import write_safetensors

D, F, L, H, K, E, V = 64, 96, 2, 4, 2, 16, 70

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": K,
    "vocab_size": V,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def llama_weights(*, tied: bool = False, qkv_bias: bool = False, qk_norm: bool = False) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not tied:
        shapes["lm_head.weight"] = (V, D)
    for layer in range(L):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (D,)
        linears = {"q": (H * E, D), "k": (K * E, D), "v": (K * E, D), "o": (D, H * E)}
        for letter, shape in linears.items():
            shapes[f"{prefix}self_attn.{letter}_proj.weight"] = shape
            if qkv_bias and letter != "o":
                shapes[f"{prefix}self_attn.{letter}_proj.bias"] = shape[:1]
        if qk_norm:
            shapes[f"{prefix}self_attn.q_norm.weight"] = shapes[f"{prefix}self_attn.k_norm.weight"] = (E,)
        for module, shape in {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}.items():
            shapes[f"{prefix}mlp.{module}.weight"] = shape
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def edit_config(path: Path, change: Mapping[str, Any]) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**values, **change}.items() if value != "absent"}))


def write_gguf(
    path: Path,
    architecture: str,
    weights: Mapping[str, NDArray[np.float32]],
    quantization: str = "F32",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """What llama.cpp's converter does: its names, q and k rows permuted for llama, norms and biases kept in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(L)
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(K)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_token_list([f"<{i}>" for i in range(V)])
    writer.add_token_scores([float(-i) for i in range(V)])
    for key, value in (extra or {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    for name, weight in weights.items():
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            weight = weight[gguf_row_order(len(weight), H if "q_proj" in name else K)]
        kind = gguf.GGMLQuantizationType[quantization if weight.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name) or name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
