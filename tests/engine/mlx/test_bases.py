"""Every source of a base model: GGUF quantizations without expanding them, MLX folders, dense folders; in each dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

pytest.importorskip("gguf", reason="the gguf package writes the GGUF files that are read here")
from mlx_lm.utils import load_model as load_folder

from localsft.config import LoraConfig
from localsft.engine.mlx.engine import MlxEngine
from localsft.errors import InputError
from localsft.weights.load import load_base
from localsft.weights.quant import as_f32
from tests.engine.mlx.families import config_of
from tests.engine.mlx.mlx_cases import OPTIM, load_golden, packed, relative
from tests.engine.mlx.test_families import write_model
from tests.weights.model_maker import LLAMA, E, V, llama_weights, write_folder, write_gguf

LORA = LoraConfig(rank=2)
IDS = np.random.default_rng(3).integers(0, V, 24).astype(np.int32)
EVERY = packed([(np.append(IDS, 0), np.ones(25))])


def logits_of(path: Path, **options: Any) -> Any:
    return MlxEngine(load_base(path), LORA, OPTIM, **options).logits(EVERY)


@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "F32"])
def test_gguf_computes_with_the_files_own_values(quantization: str, tmp_path: Path) -> None:
    calm = {name: weight / 8 if weight.ndim == 2 else weight for name, weight in llama_weights().items()}  # attention far from one-hot
    path = write_gguf(tmp_path / "m.gguf", "llama", calm, quantization)
    base = load_base(path)
    dense = write_folder(tmp_path / "dense", LLAMA, {name: as_f32(tensor) for name, tensor in base.tensors.items()})
    engine = MlxEngine(base, LORA, OPTIM, dtype=mx.float32)
    quantized = [module for _, module in engine.model.named_modules() if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)]
    assert bool(quantized) == quantization.startswith("Q")
    expected = logits_of(dense)
    assert relative(engine.logits(EVERY), expected) < 1e-5
    half = MlxEngine(base, LORA, OPTIM)
    assert half.info.details["precision"] == ("float32" if quantization == "F32" else "float16")
    assert relative(half.logits(EVERY), expected) < 32 * 2**-11  # each of some thirty operations rounds to 11 bits


def test_values_too_large_for_float16_are_computed_in_float32(tmp_path: Path) -> None:
    weights = llama_weights()
    weights["model.layers.0.mlp.down_proj.weight"] *= 1e4
    path = write_gguf(tmp_path / "m.gguf", "llama", weights, "Q8_0")
    assert MlxEngine(load_base(path), LORA, OPTIM).info.details["precision"] == "float32"


@pytest.mark.parametrize(("architecture", "bias", "norm"), [("qwen2", True, False), ("qwen3", False, True)])
def test_other_gguf_architectures(architecture: str, bias: bool, norm: bool, tmp_path: Path) -> None:
    weights = llama_weights(qkv_bias=bias, qk_norm=norm)
    config = LLAMA | {"model_type": architecture, "head_dim": E}
    expected = logits_of(write_folder(tmp_path / "dense", config, weights))
    assert relative(logits_of(write_gguf(tmp_path / "m.gguf", architecture, weights), dtype=mx.float32), expected) < 1e-5


def test_gguf_rope_factors_are_llama3s(tmp_path: Path) -> None:
    """A GGUF says llama3 scaling as one divisor for each pair."""
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    frequencies = 10000.0 ** (-np.arange(0, E, 2) / E)
    turns = 32 * frequencies / (2 * np.pi)
    blend = np.clip((turns - 1) / 3, 0, 1)
    factors = (1 / ((1 - blend) / 8 + blend)).astype(np.float32)
    weights = llama_weights()
    expected = logits_of(write_folder(tmp_path / "dense", LLAMA | {"rope_scaling": scaling}, weights))
    found = logits_of(write_gguf(tmp_path / "m.gguf", "llama", {**weights, "rope_freqs.weight": factors}), dtype=mx.float32)
    assert relative(found, expected) < 1e-5
    plain = logits_of(write_folder(tmp_path / "plain", LLAMA, weights))
    assert relative(plain, expected) > 1e-2


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_mlx_folders(family: str, bits: int, tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "m", config_of(family) | {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32}, bits
    )
    model, _ = load_folder(folder)
    ids = IDS % 101
    expected = np.array(model(mx.array(ids)[None])[0].astype(mx.float32))
    engine = MlxEngine(load_base(folder), LORA, OPTIM)
    assert relative(engine.logits(packed([(np.append(ids, 0), np.ones(25))])), expected) < 1e-5
    loss = engine.accumulate(EVERY)
    assert np.isfinite(loss.loss)
    assert any(np.abs(g).max() > 0 for g in engine.gradients().values())


def test_computation_in_16_bits(tmp_path: Path) -> None:
    """The adapter stays float32; what is computed is close to what float32 would."""
    golden = load_golden("tiny_tied")
    batch = packed(golden.examples())
    for dtype, eps in ((mx.bfloat16, 2**-8), (mx.float16, 2**-11)):
        engine = golden.engine(dtype=dtype, checkpoint=True)
        loss = engine.accumulate(batch)
        assert loss.loss == pytest.approx(float(golden.values["all/loss"]), rel=4 * eps)
        worst = max(relative(g / loss.weight, golden.values[f"all/grad/{name}"]) for name, g in engine.gradients().items())
        assert worst < 32 * eps
        engine.step(0.01)
        assert all(value.dtype == np.float32 for value in engine.adapter().values())


def test_a_family_that_mlx_lm_lacks(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", LLAMA | {"model_type": "unheard_of"}, llama_weights())
    with pytest.raises(InputError, match="unheard_of not supported"):
        MlxEngine(load_base(folder), LORA, OPTIM)
