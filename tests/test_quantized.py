"""--quantize: MLX's own bits, one hash for every engine, made once, and refused where it makes no sense."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the gguf package writes the models of these tests")
from localsft.errors import UsageError
from localsft.quantized import quantized_copy
from localsft.weights.load import load_base
from localsft.weights.quant import as_f32, f32_to_bf16
from localsft.weights.tensor import AffineQuantized, Dense
from tests.weights.model_maker import LLAMA, D, llama_weights, write_folder, write_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALSFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In bfloat16, as models come; the inputs of down_proj (96) are no multiple of 64."""
    weights = {name: Dense(f32_to_bf16(weight), bf16=True) for name, weight in llama_weights().items()}
    folder = write_folder(tmp_path / "m", LLAMA | {"torch_dtype": "bfloat16"}, weights)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("bits", [4, 8])
def test_the_copy_is_the_model_in_so_many_bits(folder: Path, bits: int) -> None:
    dense, copy = load_base(folder), quantized_copy(folder, bits)
    base = load_base(copy)
    assert set(base.tensors) == set(dense.tensors)
    for name, tensor in base.tensors.items():
        original = as_f32(dense.tensors[name])
        if original.ndim == 1:
            assert isinstance(tensor, Dense) and np.array_equal(as_f32(tensor), original)
            continue
        assert isinstance(tensor, AffineQuantized) and tensor.bits == bits and tensor.bf16_scales
        assert tensor.group_size == (64 if original.shape[1] % 64 == 0 else 32)
        groups = original.reshape(len(original), -1, tensor.group_size)
        step = (groups.max(-1) - groups.min(-1)).max() / (2**bits - 1)  # of the widest group; its far end may be a step off
        assert np.abs(as_f32(tensor) - original).max() < step + 2**-8 * np.abs(original).max()  # scales are bfloat16
    assert (copy / "tokenizer.json").read_text() == "{}"
    assert json.loads((copy / "config.json").read_text())["hidden_size"] == D


def test_the_bits_are_mlxs(folder: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="compared with MLX's own quantizer")
    tensor = load_base(quantized_copy(folder, 4)).tensors["model.layers.0.self_attn.q_proj.weight"]
    dense: Any = load_base(folder).tensors["model.layers.0.self_attn.q_proj.weight"]
    assert isinstance(tensor, AffineQuantized)
    packed, scales, biases = mx.quantize(mx.array(np.array(dense.data)).view(mx.bfloat16), 64, 4)
    assert np.array_equal(tensor.packed, np.array(packed))
    for ours, theirs in ((tensor.scales, scales), (tensor.biases, biases)):
        assert np.array_equal(ours, np.array(theirs.view(mx.uint16)))


def test_it_is_made_once_and_again_when_the_model_changes(folder: Path) -> None:
    said: list[str] = []
    first = quantized_copy(folder, 4, said.append)
    times = {file.name: file.stat().st_mtime_ns for file in first.iterdir()}
    assert quantized_copy(folder, 4, said.append) == first
    assert {file.name: file.stat().st_mtime_ns for file in first.iterdir()} == times
    assert len(said) == 1 and "quantizing m to 4 bits" in said[0]
    assert quantized_copy(folder, 8) != first
    os.utime(folder / "model.safetensors", ns=(1, 1))
    again = quantized_copy(folder, 4)
    assert again != first and load_base(again).hash == load_base(first).hash  # the same weights are the same base


def test_what_is_quantized_already_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantized already; leave --quantize away"):
        quantized_copy(quantized_copy(folder, 4), 4)
    with pytest.raises(UsageError, match="is a GGUF file"):
        quantized_copy(write_gguf(tmp_path / "m.gguf", "llama", llama_weights(), "F16"), 8)


def test_both_engines_train_on_it(folder: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="one of the engines")
    from localsft.config import LoraConfig
    from localsft.engine.cpu.engine import CpuEngine
    from localsft.engine.cpu.ops import Ops
    from localsft.engine.mlx.engine import MlxEngine
    from tests.engine.mlx.mlx_cases import OPTIM, random_tree, relative

    base, tree = load_base(quantized_copy(folder, 4)), random_tree(70, [-1, 0, 0], [9, 4, 6])
    cpu = CpuEngine(base, LoraConfig(rank=2), OPTIM, Ops("baseline", 1))
    mlx = MlxEngine(base, LoraConfig(rank=2), OPTIM, dtype=mx.float32)
    assert mlx.accumulate(tree).loss == pytest.approx(cpu.accumulate(tree).loss, rel=1e-4)
    for name, gradient in cpu.gradients().items():
        assert relative(mlx.gradients()[name], gradient) < 1e-3, name


@pytest.mark.parametrize("family", ["mixtral", "gemma2"])
def test_families_that_mlx_lm_takes_apart(family: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="these families are quantized by mlx-lm")
    mx.disable_compile()
    from localsft.config import LoraConfig
    from localsft.engine.mlx.engine import MlxEngine
    from tests.engine.mlx.families import config_of
    from tests.engine.mlx.mlx_cases import OPTIM, random_tree
    from tests.engine.mlx.test_families import write_model

    config = config_of(family) | {"hidden_size": 64, "intermediate_size": 64}
    copy = quantized_copy(write_model(tmp_path / "m", config), 8)
    dense, engine = (MlxEngine(load_base(path), LoraConfig(rank=2), OPTIM) for path in (tmp_path / "m", copy))
    tree = random_tree(101, [-1, 0, 0], [9, 4, 6])
    assert engine.accumulate(tree).loss == pytest.approx(dense.accumulate(tree).loss, rel=1e-2)
    assert load_base(copy).config.quantization is not None
