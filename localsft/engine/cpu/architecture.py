"""Which base models the CPU engine runs: the llama architecture, and what sets a model apart from it.

Pre-norm with RMSNorm, rotary positions on whole heads, grouped-query attention (with a sliding window or not), SwiGLU, no biases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from localsft.errors import InputError
from localsft.weights.load import BaseModel

SUPPORTED = ("llama", "mistral")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of a llama-like model, in the project's letters."""

    layers: int  # L
    hidden: int  # D
    ffn: int  # F
    heads: int  # H
    kv_heads: int  # K
    head_size: int  # E
    vocab: int  # V
    rms_eps: float
    window: int  # tokens of a sliding window; 0 for none

    @property
    def attention_scale(self) -> float:
        return 1.0 / math.sqrt(self.head_size)

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """(out, in) of one layer's linears by HF name, in the order in which the forward pass meets them."""
        attention, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        prefix = f"model.layers.{layer}."
        return {
            f"{prefix}self_attn.q_proj": (attention, self.hidden),
            f"{prefix}self_attn.k_proj": (keys, self.hidden),
            f"{prefix}self_attn.v_proj": (keys, self.hidden),
            f"{prefix}self_attn.o_proj": (self.hidden, attention),
            f"{prefix}mlp.gate_proj": (self.ffn, self.hidden),
            f"{prefix}mlp.up_proj": (self.ffn, self.hidden),
            f"{prefix}mlp.down_proj": (self.hidden, self.ffn),
        }


def architecture_of(base: BaseModel) -> Architecture:
    """Raises InputError for a model type or a feature that this engine does not compute."""
    config = base.config
    features = {
        "biases": config.qkv_bias or config.attention_output_bias or config.mlp_bias,
        "norms of queries and keys": config.qk_norm,
        f"the activation '{config.activation}'": config.activation != "silu",
        "partial rotary embedding": config.rope_size != config.head_size,
    }
    missing = [name for name, present in features.items() if present]
    if config.model_type not in SUPPORTED:
        missing.insert(0, f"the architecture '{config.model_type}'")
    if missing:
        raise InputError(
            f"{base.path}: the cpu engine does not compute {', '.join(missing)}; "
            f"choose a base of the {' or '.join(SUPPORTED)} architecture, or --engine mlx"
        )
    return Architecture(
        layers=config.n_layers,
        hidden=config.hidden_size,
        ffn=config.ffn_size,
        heads=config.n_heads,
        kv_heads=config.n_kv_heads,
        head_size=config.head_size,
        vocab=config.vocab_size,
        rms_eps=config.rms_eps,
        window=config.sliding_window or 0,
    )
