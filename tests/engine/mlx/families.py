"""Tiny configurations of mlx-lm's families, as their config.json has them. Sliding windows are shorter than the test's examples."""

from __future__ import annotations

from typing import Any

VOCABULARY = 101
ABSENT = object()

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SU_ROPE = {"type": "longrope", "short_mscale": 1.1, "long_mscale": 1.2, "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 3.0]}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

# Families whose batches are packed, prefixes shared.
PACKED: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": LLAMA3_ROPE, "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 7, "layer_types": SLIDING, "tie_word_embeddings": False},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    "qwen2": {"attention_bias": ABSENT},
    "gemma3": {  # the text half of a model that also sees
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 7, "sliding_window_pattern": 3, "query_pre_attn_scalar": 8,
        },
    },
    "qwen2_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24,
        "tie_word_embeddings": False,
    },
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "decoder_sparse_step": 1, "mlp_only_layers": [0], "norm_topk_prob": True,
    },
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8.0},
    "gemma3_text": {"sliding_window": 7, "sliding_window_pattern": 3, "query_pre_attn_scalar": 8},
    "phi3": {"rope_scaling": SU_ROPE, "original_max_position_embeddings": 256, "tie_word_embeddings": False},
    "phimoe": {
        "rope_scaling": SU_ROPE, "original_max_position_embeddings": 256, "num_local_experts": 4, "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    },
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.3},
    "granitemoe": {
        "logits_scaling": 4.0, "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.3,
        "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "olmo2": {},
    "olmo3": {"sliding_window": 7, "layer_types": SLIDING},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "cohere": {"layer_norm_eps": 1e-5, "use_qk_norm": True, "logit_scale": 0.25},
    "cohere2": {"layer_norm_eps": 1e-5, "sliding_window": 7, "sliding_window_pattern": 2, "logit_scale": 0.25},
    "glm4": {"partial_rotary_factor": 0.5, "tie_word_embeddings": False},
    "glm4_moe": {
        "moe_intermediate_size": 16, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "n_routed_experts": 4,
        "routed_scaling_factor": 1.0, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "rope_scaling": None, "use_qk_norm": True,
        "partial_rotary_factor": 0.5, "tie_word_embeddings": False,
    },
    "starcoder2": {"norm_epsilon": 1e-5, "layer_norm_epsilon": 1e-5},
    "stablelm": {
        "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "norm_eps": 1e-5, "use_qkv_bias": True, "tie_word_embeddings": False,
    },
    "internlm2": {"bias": False},
    "deepseek_v3": {
        "moe_intermediate_size": 16, "n_shared_experts": 1, "n_routed_experts": 4, "routed_scaling_factor": 1.0, "kv_lora_rank": 12,
        "q_lora_rank": 12, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 8, "topk_method": "noaux_tc",
        "scoring_func": "sigmoid", "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_layer_freq": 1,
        "first_k_dense_replace": 1, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7, "layer_types": SLIDING, "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 64,
        },
    },
    "hunyuan_v1_dense": {
        "use_qk_norm": True, "rope_scaling": {"type": "dynamic", "alpha": 100.0, "factor": 1.0},
    },
    "ernie4_5": {"use_bias": False},
    "exaone4": {"rope_scaling": LLAMA3_ROPE, "sliding_window": 7, "sliding_window_pattern": "LG"},
    "seed_oss": {"attention_out_bias": False},
    "helium": {"tie_word_embeddings": False},
    "nemotron": {"hidden_act": "relu2", "norm_eps": 1e-5, "tie_word_embeddings": False},
    "minicpm": {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 3.0, "tie_word_embeddings": False},
    "apertus": {"post_norm": False, "qk_norm": True, "tie_word_embeddings": False},
    "dots1": {
        "first_k_dense_replace": 1, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1, "norm_topk_prob": True,
        "num_experts_per_tok": 2, "routed_scaling_factor": 1.0, "tie_word_embeddings": False,
    },
    "gemma4_text": {
        "global_head_dim": 16, "num_hidden_layers": 4, "num_kv_shared_layers": 1,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
        "sliding_window": 7, "sliding_window_pattern": 2, "use_double_wide_mlp": False,
    },
}  # fmt: skip

# Families that take one position for a row, not one for each token: a segment a row, prefixes shared.
SINGLE: dict[str, dict[str, Any]] = {
    "ministral3": {
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 8},
    },
    "gpt2": {"n_ctx": 512, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 512, "layer_norm_epsilon": 1e-5},
}

# Families that carry state from token to token, or whose rotation depends on the length: one example a row.
ALONE: dict[str, dict[str, Any]] = {
    "lfm2": {
        "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_dim": 32, "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False, "block_ff_dim": 48, "full_attn_idxs": [1],
    },
    "mamba2": {
        "num_heads": 4, "state_size": 8, "layer_norm_epsilon": 1e-5, "conv_kernel": 4, "n_groups": 1, "use_bias": False,
        "use_conv_bias": True, "time_step_limit": [0.0, 100.0], "time_step_rank": "auto", "head_dim": 16, "intermediate_size": 64,
    },
    "internlm3": {"bias": False, "qkv_bias": False, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "qwen3_next": {
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
        "shared_expert_intermediate_size": 16, "mlp_only_layers": [], "moe_intermediate_size": 16, "partial_rotary_factor": 0.5,
        "norm_topk_prob": True, "full_attention_interval": 2,
    },
    "granitemoehybrid": {
        "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "logits_scaling": 4.0, "residual_multiplier": 0.3,
        "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_proj_bias": False,
        "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_conv_bias": True,
    },
}  # fmt: skip


def config_of(family: str) -> dict[str, Any]:
    """The contents of its config.json; ABSENT in a table above takes a common key away."""
    values = COMMON | {"model_type": family} | {**PACKED, **SINGLE, **ALONE}[family]
    return {key: value for key, value in values.items() if value is not ABSENT}
