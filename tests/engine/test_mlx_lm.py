"""An adapter that our CPU engine trained, loaded by mlx-lm itself on the same base: the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.batch import Example
from localsft.checkpoint import BaseRef, load_adapter, save_adapter
from localsft.config import LoraConfig
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops, available_isas
from localsft.engine.cpu.reference import ReferenceOps
from localsft.weights.load import BaseModel, load_base
from localsft.weights.safetensors import write_safetensors
from localsft.weights.tensor import AffineQuantized, Dense
from tests.engine.cpu.cases import LORAS, OPTIM, Golden, alone, load_golden, relative

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install 'localsft[mlx]'")


def save_trained(engine: CpuEngine, lora: LoraConfig, base: BaseModel, path: Path, ids: Any) -> None:
    """Two real steps on ``ids``, so that B is not zero, and the adapter folder."""
    weights = np.ones(len(ids), np.float32)
    weights[0] = 0
    for _ in range(2):
        engine.accumulate(alone(Example(np.asarray(ids, np.int32), weights)))
        engine.step(5e-3)
    save_adapter(path, engine.adapter(), lora, BaseRef("tiny", base.hash, base.config.n_layers))


def our_logits(engine: CpuEngine, ids: Any) -> Any:
    """float32 (n - 1, V)."""
    weights = np.ones(len(ids), np.float32)
    weights[0] = 0
    return engine.logits(alone(Example(np.asarray(ids, np.int32), weights)))


def mlx_lm_logits(folder: Path, adapter: Path, ids: Any) -> Any:
    """By mlx-lm's own loaders and model, float32."""
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model = load_adapters(model, str(adapter))
    model.eval()
    return np.array(model(mx.array(np.asarray(ids))[None])[0, :-1].astype(mx.float32))


@pytest.fixture(params=["tiny_tied", "tiny_untied"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("case", LORAS)
def test_the_adapter_works_in_mlx_lm(golden: Golden, tmp_path: Path, case: str, isa: str) -> None:
    folder = Path(__file__).parents[1] / "goldens" / golden.name
    ids = golden.examples[3].token_ids
    engine = CpuEngine(golden.base, LORAS[case], OPTIM, Ops(isa, 1))
    save_trained(engine, LORAS[case], golden.base, tmp_path / "adapter", ids)
    theirs = mlx_lm_logits(folder, tmp_path / "adapter", ids)
    without = CpuEngine(golden.base, LORAS[case], OPTIM, engine.ops)
    assert relative(our_logits(without, ids), theirs) > 1e-2  # the adapter matters
    bound = 1e-4
    if engine.ops.act_bf16:  # twice what a plain bfloat16 implementation is off by
        plain = CpuEngine(golden.base, LORAS[case], OPTIM, ReferenceOps(bf16=True))
        plain.load_adapter(engine.adapter())
        bound = 2 * relative(our_logits(plain, ids), theirs)
    assert relative(our_logits(engine, ids), theirs) < bound


def test_an_adapter_folder_comes_back_as_it_was(golden: Golden, tmp_path: Path) -> None:
    engine = golden.engine(Ops("", 1), "last2")
    save_adapter(tmp_path / "a", engine.adapter(), LORAS["last2"], BaseRef("tiny", golden.base.hash, 3))
    saved = load_adapter(tmp_path / "a")
    assert saved.lora == LORAS["last2"] and saved.base_hash == golden.base.hash
    assert all(np.array_equal(saved.tensors[name], value) for name, value in engine.adapter().items())


def write_mlx_folder(base: BaseModel, folder: Path) -> None:
    """The base as mlx-lm's quantized format: the same packed bits, scales and biases, nothing rounded."""
    folder.mkdir()
    tensors: dict[str, Any] = {}
    quantization: dict[str, Any] = {"bits": 4, "group_size": 32}
    for name in base.tensors:
        tensor = base.tensors[name]
        if isinstance(tensor, AffineQuantized):
            stem = name.removesuffix(".weight")
            tensors |= {name: tensor.packed, f"{stem}.scales": tensor.scales, f"{stem}.biases": tensor.biases}
            if (tensor.bits, tensor.group_size) != (4, 32):
                quantization[stem] = {"bits": tensor.bits, "group_size": tensor.group_size}
        else:
            assert isinstance(tensor, Dense)
            tensors[name] = tensor.data
    c = base.config
    config = {
        "model_type": c.model_type, "hidden_size": c.hidden_size, "num_hidden_layers": c.n_layers, "intermediate_size": c.ffn_size,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "vocab_size": c.vocab_size, "rms_norm_eps": c.rms_eps,
        "rope_theta": c.rope_theta, "max_position_embeddings": c.max_positions, "tie_word_embeddings": c.tied_head,
        "head_dim": c.head_size, "quantization": quantization,
    }  # fmt: skip
    write_safetensors(folder / "model.safetensors", tensors, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_smollm2_in_mlx_lm(smollm2_path: Path, tmp_path: Path) -> None:
    """On the real 4-bit base, carried over bit by bit: equal to bfloat16 rounding."""
    base = load_base(smollm2_path)
    write_mlx_folder(base, tmp_path / "base")
    lora = LoraConfig()
    engine = CpuEngine(base, lora, OPTIM, Ops("", 2))
    ids = np.random.default_rng(0).integers(100, 40000, size=48)
    save_trained(engine, lora, base, tmp_path / "adapter", ids)
    theirs = mlx_lm_logits(tmp_path / "base", tmp_path / "adapter", ids)
    assert relative(our_logits(engine, ids), theirs) < 2**-8 * 4  # a few roundings of 2^-8 through 30 layers
