"""config.json in its variants, and RoPE frequencies against mlx-lm's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.errors import InputError
from localsft.weights.config import ModelConfig, config_from_hf, rope_frequencies
from tests.weights.model_maker import LLAMA

WHERE = Path("folder/config.json")
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _config(changes: dict[str, Any], *, has_head: bool = True) -> ModelConfig:
    values = {key: value for key, value in {**LLAMA, **changes}.items() if value != "absent"}
    return config_from_hf(json.loads(json.dumps(values)), WHERE, source="safetensors", has_head=has_head, quantization=None)


def test_defaults_are_those_of_hugging_face() -> None:
    config = _config({"num_key_value_heads": "absent", "rope_theta": "absent", "hidden_act": "absent"})
    assert (config.n_kv_heads, config.head_size, config.rope_size, config.rope_theta, config.activation) == (4, 16, 16, 10000.0, "silu")
    assert (config.qkv_bias, config.attention_output_bias, config.mlp_bias, config.qk_norm) == (False, False, False, False)
    assert config.sliding_window is None
    assert config.rope_scaling is None


def test_the_head_is_tied_as_said_or_else_as_found() -> None:
    assert _config({"tie_word_embeddings": True}).tied_head
    assert not _config({"tie_word_embeddings": False}, has_head=False).tied_head
    assert not _config({"tie_word_embeddings": "absent"}).tied_head
    assert _config({"tie_word_embeddings": "absent"}, has_head=False).tied_head


def test_biases_norms_and_windows_by_model_type() -> None:
    llama = _config({"attention_bias": True, "mlp_bias": True})
    assert (llama.qkv_bias, llama.attention_output_bias, llama.mlp_bias) == (True, True, True)
    qwen2 = _config({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False})
    assert (qwen2.qkv_bias, qwen2.attention_output_bias, qwen2.sliding_window) == (True, False, None)
    qwen3 = _config({"model_type": "qwen3", "head_dim": 32, "attention_bias": False})
    assert (qwen3.qk_norm, qwen3.head_size, qwen3.qkv_bias) == (True, 32, False)
    assert _config({"model_type": "mistral", "sliding_window": 4096}).sliding_window == 4096
    assert _config({"model_type": "mistral", "sliding_window": None}).sliding_window is None
    assert _config({"partial_rotary_factor": 0.5}).rope_size == 8


@pytest.mark.parametrize(
    ("scaling", "module"),
    [(None, "RoPE"), ({"rope_type": "default"}, "RoPE"), (LLAMA3, "Llama3RoPE"), ({"type": "linear", "factor": 4.0}, "RoPE")],
)
@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
def test_rope_frequencies_are_those_of_mlx_lm(scaling: dict[str, Any] | None, module: str, style: str) -> None:
    rope_utils = pytest.importorskip("mlx_lm.models.rope_utils", reason="mlx-lm is the oracle")
    theta, size = 500000.0, 64
    if style == "rope_scaling":
        config = _config({"rope_theta": theta, "head_dim": size, "rope_scaling": scaling})
    else:
        config = _config({"rope_theta": "absent", "head_dim": size, "rope_parameters": {"rope_theta": theta, **(scaling or {})}})
    theirs = rope_utils.initialize_rope(size, theta, False, scaling, 131072)
    assert type(theirs).__name__ == module
    if module == "Llama3RoPE":
        expected = 1 / np.array(theirs._freqs, np.float64)
    else:
        expected = theirs.scale * theta ** (-np.arange(0, size, 2) / size)
    np.testing.assert_allclose(rope_frequencies(config), expected, rtol=1e-6)  # theirs are float32: a few roundings of 6e-8


def test_rope_factors_of_a_gguf_divide() -> None:
    plain = rope_frequencies(_config({}))
    factors = np.linspace(1, 8, 8)
    config = _config({"rope_scaling": {"rope_type": "factors", "factors": factors.tolist()}})
    assert np.array_equal(rope_frequencies(config), plain / factors)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": ["llama3"]},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": -1},
        {"rope_type": "linear", "factor": "many"},
        {"rope_type": "linear", "factor": 10**400},
        {"rope_type": "llama3", "factor": 8.0},
        {**LLAMA3, "factor": 0},
        {"rope_type": "factors", "factors": [1.0]},
        {"rope_type": "factors", "factors": [0.0] * 8},
        {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
    ],
)
def test_rope_scaling_that_is_not_understood_is_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"rope.scaling"):
        rope_frequencies(_config({"rope_scaling": scaling}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": "absent"}, "'hidden_size' is missing"),
        ({"hidden_size": 0}, "'hidden_size' is 0, not a positive integer"),
        ({"hidden_size": True}, "'hidden_size' is True"),
        ({"hidden_size": 64.0}, "'hidden_size' is 64.0"),
        ({"hidden_size": 10**400}, "'hidden_size' is 1000"),
        ({"num_attention_heads": -4}, "'num_attention_heads' is -4"),
        ({"num_key_value_heads": 3}, "4 query heads can't share 3"),
        ({"num_key_value_heads": [2, 2]}, "'num_key_value_heads' is "),
        ({"num_hidden_layers": 10**6}, "1000000 layers"),
        ({"head_dim": 15}, "15 rotated values"),
        ({"partial_rotary_factor": 2.0}, "32 rotated values"),
        ({"rms_norm_eps": "absent"}, "'rms_norm_eps' is missing"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan"),
        ({"rope_theta": float("inf")}, "'rope_theta' is inf"),
        ({"rope_theta": "x" * 10**6}, "'rope_theta' is 'xxx"),
        ({"model_type": "absent"}, "'model_type' is missing"),
        ({"model_type": 7}, "'model_type' is 7, not a text"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is 'yes', not true or false"),
        ({"rope_scaling": [1]}, "'rope_scaling' is not an object"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        _config(changes)
    assert str(caught.value).startswith("folder/config.json: ")
    assert len(str(caught.value)) < 250
