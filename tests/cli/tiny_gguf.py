"""A whole model of a few thousand weights as a GGUF file: tokenizer, chat template and all."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.tiny_vocab import tiny_metadata

D, F, L, H, K, E = 64, 96, 2, 4, 2, 16


def write_tiny_gguf(path: Path) -> Path:
    metadata = tiny_metadata()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_block_count(L)
    writer.add_head_count(H)
    writer.add_head_count_kv(K)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(metadata["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.add_chat_template(metadata["tokenizer.chat_template"])
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(metadata["tokenizer.ggml.tokens"]), D)}
    for layer in range(L):
        linears = {"attn_q": (H * E, D), "attn_k": (K * E, D), "attn_v": (K * E, D), "attn_output": (D, H * E)}
        linears |= {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in linears.items()}
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(D, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(D, np.float32))
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) * 0.2).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
