"""Names both ways, and the row order of q and k against the permutation that llama.cpp's converter applies."""

from __future__ import annotations

import numpy as np
import pytest

from localsft.weights.names import gguf_name, gguf_row_order, hf_name, hf_row_order, take_rows
from localsft.weights.quant import as_f32, quantize_affine
from localsft.weights.tensor import Dense

PAIRS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "blk.29.ffn_norm.weight": "model.layers.29.post_attention_layernorm.weight",
    "blk.3.attn_q.weight": "model.layers.3.self_attn.q_proj.weight",
    "blk.3.attn_q.bias": "model.layers.3.self_attn.q_proj.bias",
    "blk.3.attn_k.weight": "model.layers.3.self_attn.k_proj.weight",
    "blk.3.attn_v.weight": "model.layers.3.self_attn.v_proj.weight",
    "blk.3.attn_output.weight": "model.layers.3.self_attn.o_proj.weight",
    "blk.3.attn_q_norm.weight": "model.layers.3.self_attn.q_norm.weight",
    "blk.3.attn_k_norm.weight": "model.layers.3.self_attn.k_norm.weight",
    "blk.10.ffn_gate.weight": "model.layers.10.mlp.gate_proj.weight",
    "blk.10.ffn_up.weight": "model.layers.10.mlp.up_proj.weight",
    "blk.10.ffn_down.weight": "model.layers.10.mlp.down_proj.weight",
}


@pytest.mark.parametrize("name", PAIRS)
def test_names_translate_both_ways(name: str) -> None:
    assert hf_name(name) == PAIRS[name]
    assert gguf_name(PAIRS[name]) == name


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "blk.01.attn_q.weight", "blk.0.attn_q.weight.lora_a", "rope_freqs.weight", "x", ""]
)
def test_names_without_a_counterpart(name: str) -> None:
    assert hf_name(name) is None


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.mlp.router.weight", "token_embd.weight"])
def test_hf_names_without_a_counterpart(name: str) -> None:
    assert gguf_name(name) is None


@pytest.mark.parametrize(("heads", "size"), [(1, 2), (9, 64), (3, 64), (4, 6)])
def test_row_orders_are_the_converters_permutation_and_its_inverse(heads: int, size: int) -> None:
    rows = heads * size
    weight = np.random.default_rng(0).standard_normal((rows, 5))
    stored = weight.reshape(heads, 2, rows // heads // 2, 5).swapaxes(1, 2).reshape(weight.shape)  # convert_hf_to_gguf's permute
    assert np.array_equal(weight[gguf_row_order(rows, heads)], stored)
    assert np.array_equal(stored[hf_row_order(rows, heads)], weight)
    # A RoPE pair: neighbours in GGUF, half a head apart in Hugging Face.
    assert hf_row_order(rows, heads)[[0, size // 2]].tolist() == [0, 1]


def test_rows_of_a_quantized_tensor_move_whole() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    quantized = quantize_affine(weight, 5, 32)
    order = hf_row_order(16, 2)
    assert np.array_equal(as_f32(take_rows(quantized, order)), as_f32(quantized)[order])
    assert np.array_equal(as_f32(take_rows(Dense(weight), order)), weight[order])
    assert np.array_equal(as_f32(take_rows(Dense(weight[:, 0]), order)), weight[order, 0])
