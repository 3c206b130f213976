"""Tiny bases of several families, and trained-looking adapters on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from localsft.checkpoint import BaseRef, save_adapter
from localsft.config import LoraConfig
from localsft.data.render import chat_template
from localsft.engine.adapter import adapter_shapes
from localsft.export.families import linears
from localsft.export.source import Source, open_source
from localsft.session import LoadedModel
from localsft.tokenizer import Tokenizer
from localsft.weights.config import ModelConfig
from localsft.weights.load import BaseModel, load_base
from localsft.weights.names import gguf_name, gguf_row_order, llama_shapes
from localsft.weights.quant import row_squares
from localsft.weights.safetensors import write_safetensors
from tests.tiny_vocab import tiny_metadata, tiny_tokenizer

D, F, L, H, K, E = 64, 96, 2, 4, 2, 16
METADATA = tiny_metadata()
V = len(METADATA["tokenizer.ggml.tokens"])

HF: dict[str, Any] = {
    "hidden_size": D, "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": K,
    "vocab_size": V, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "head_dim": E,
    "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 2,
}  # fmt: skip


def weights_of(config: ModelConfig, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights in Hugging Face's names, of the size that training leaves: logits far from flat."""
    rng = np.random.default_rng(seed)
    return {
        name: (1 + 0.1 * rng.standard_normal(shape) if len(shape) == 1 and "norm" in name else rng.standard_normal(shape) / 8).astype("f4")
        for name, shape in llama_shapes(config).items()
    }


def hf_base(folder: Path, model_type: str = "llama", **changes: Any) -> BaseModel:
    """A Hugging Face folder of a llama-like family."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(HF | {"model_type": model_type} | changes))
    write_safetensors(folder / "model.safetensors", weights_of(config_of(model_type)))
    return load_base(folder)


def config_of(model_type: str) -> ModelConfig:
    return ModelConfig(
        model_type, "safetensors", D, L, H, K, E, F, V, 512, 1e-5, 10000.0, E, None, True, model_type == "qwen2", False, False,
        model_type == "qwen3", "silu", None, None,
    )  # fmt: skip


def gguf_base(path: Path, architecture: str = "llama", quantization: str = "F32", **keys: Any) -> BaseModel:
    """The same model as a GGUF with a tokenizer and a chat template."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(L)
    writer.add_context_length(2048)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(K)
    writer.add_key_length(E)
    writer.add_value_length(E)
    writer.add_rope_dimension_count(E)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(0)
    for key, value in (METADATA | keys).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    for name, weight in weights_of(config_of(architecture)).items():
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = weight[gguf_row_order(len(weight), H if "q_proj" in name else K)]
        kind = gguf.GGMLQuantizationType[quantization if weight.ndim == 2 else "F32"]
        writer.add_tensor(gguf_name(name) or name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return load_base(path)


def loaded(base: BaseModel, tokenizer: Tokenizer | None = None) -> LoadedModel:
    tokenizer = tokenizer or tiny_tokenizer()
    return LoadedModel("tiny", base, tokenizer, chat_template(tokenizer))


def trained(folder: Path, model: LoadedModel, lora: LoraConfig | None = None, seed: int = 0, size: float = 0.1) -> Path:
    """An adapter folder with random A and B, and with DoRA magnitudes off the base's: what a run leaves."""
    lora = lora or LoraConfig(rank=4, alpha=10.0)
    rng = np.random.default_rng(seed)
    shapes = adapter_shapes(linears(model.base), lora)
    tensors = {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    for name in [name for name in tensors if name.endswith(".m")]:
        norms = np.sqrt(row_squares(model.base.tensors[f"{name.removesuffix('.m')}.weight"]))
        tensors[name] = (norms * rng.uniform(0.8, 1.2, norms.shape)).astype(np.float32)
    save_adapter(folder, tensors, lora, BaseRef(model.name, model.base.hash, model.base.config.n_layers))
    return folder


def source_of(
    folder: Path, base: BaseModel, lora: LoraConfig | None = None, engine: str = "auto", tokenizer: Tokenizer | None = None
) -> Source:
    model = loaded(base, tokenizer)
    return open_source(trained(folder / "adapter", model, lora), model, base_model="someone/tiny", licence="mit", engine=engine)
