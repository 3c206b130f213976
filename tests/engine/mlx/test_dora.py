"""DoRA in the MLX engine: PEFT's gradients, the CPU engine's numbers, and mlx-lm's own logits from the saved adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model as load_folder

from localsft.checkpoint import BaseRef, save_adapter
from localsft.config import LoraConfig
from localsft.engine.base import Engine
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops
from localsft.engine.mlx.engine import MlxEngine
from localsft.engine.mlx.lora import weight_squares
from localsft.weights.load import load_base
from localsft.weights.quant import quantize_affine, row_squares
from tests.engine.mlx.families import VOCABULARY, config_of
from tests.engine.mlx.mlx_cases import GOLDENS, OPTIM, Golden, accumulate, load_golden, packed, random_tree, relative
from tests.engine.mlx.test_families import write_model

DORA = LoraConfig(rank=4, alpha=8.0, variant="dora")
NAMES = ["tiny_tied", "tiny_untied"]


def expected(name: str, prefix: str) -> dict[str, Any]:
    with np.load(GOLDENS / f"{name}_dora.npz", allow_pickle=False) as file:
        return {key[len(prefix) :]: value for key, value in file.items() if key.startswith(prefix)}


def start(name: str, golden: Golden) -> dict[str, Any]:
    """A, B and m of the goldens; B is not zero, m not the norm of W."""
    return golden.tensors("init/") | expected(name, "init/")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}, {"compiled": True}])
def test_every_gradient_equals_peft(name: str, options: dict[str, bool]) -> None:
    golden = load_golden(name)
    engine = MlxEngine(golden.base, DORA, OPTIM, **options)
    engine.load_adapter(start(name, golden))
    loss = accumulate(engine, [packed(golden.examples())])
    assert loss.loss == pytest.approx(float(expected(name, "loss")[""]), rel=1e-5)
    gradients = engine.gradients()
    for parameter, gradient in expected(name, "grad/").items():
        assert relative(gradients[parameter] / loss.weight, gradient) < 1e-4, parameter


@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_over_both_engines_equal_peft(name: str) -> None:
    golden = load_golden(name)
    first: Engine = MlxEngine(golden.base, DORA, OPTIM, seed=4)
    second: Engine = CpuEngine(golden.base, DORA, OPTIM, Ops("baseline", 1), seed=4)
    first_values, second_values = first.adapter(), second.adapter()
    assert list(first_values) == list(second_values)
    assert all(np.allclose(first_values[key], second_values[key], rtol=1e-6, atol=0) for key in first_values)
    first.load_adapter(start(name, golden))
    losses = []
    for engine in (first, second):
        if engine is second:
            engine.load_adapter(first.adapter())
            engine.load_optimizer_state(first.optimizer_state())
        for _ in range(5):
            losses.append(accumulate(engine, [packed(golden.examples())]).mean)
            engine.step(0.01)
    np.testing.assert_allclose(losses, expected(name, "step_losses")[""], rtol=1e-5)


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])  # qwen2: biases, which the factors leave alone
def test_the_adapter_works_in_mlx_lm(family: str, bits: int, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", config_of(family) | {"intermediate_size": 64}, bits)
    base = load_base(folder)
    engine = MlxEngine(base, replace(DORA, rank=3), OPTIM)
    rng = np.random.default_rng(1)
    values = {name: value + 0.1 * rng.standard_normal(value.shape) * np.abs(value).mean() for name, value in engine.adapter().items()}
    values = {name: 0.1 * rng.standard_normal(value.shape) if name.endswith("b") else value for name, value in values.items()}
    tree = random_tree(VOCABULARY, [-1], [14])
    before = engine.logits(tree)
    engine.load_adapter(values)
    after = engine.logits(tree)
    save_adapter(tmp_path / "adapter", engine.adapter(), replace(DORA, rank=3), BaseRef("tiny", base.hash, base.config.n_layers))
    model, _ = load_folder(folder)
    model = load_adapters(model, str(tmp_path / "adapter"))
    model.eval()
    theirs = np.array(model(mx.array(tree.tokens)[None])[0].astype(mx.float32))[tree.target_rows]
    assert relative(before, after) > 1e-2
    assert relative(after, theirs) < 1e-4


def test_a_quantized_base_gives_the_cpu_engines_numbers(tmp_path: Path) -> None:
    base = load_base(
        write_model(tmp_path / "model", config_of("llama") | {"intermediate_size": 64, "attention_bias": False, "mlp_bias": False}, 4)
    )
    mlx = MlxEngine(base, DORA, OPTIM)
    cpu = CpuEngine(base, DORA, OPTIM, Ops("baseline", 1))
    rng = np.random.default_rng(2)
    values = {n: 0.1 * rng.standard_normal(x.shape) if n.endswith("b") else x * 1.1 for n, x in cpu.adapter().items()}
    tree = random_tree(VOCABULARY, [-1, 0, 0], [9, 6, 5])
    for engine in (mlx, cpu):
        engine.load_adapter(values)
    assert mlx.accumulate(tree).loss == pytest.approx(cpu.accumulate(tree).loss, rel=1e-5)
    for name, gradient in cpu.gradients().items():
        assert relative(mlx.gradients()[name], gradient) < 1e-4, name


def test_norms_of_float16_scales_are_computed_in_float32() -> None:
    rng = np.random.default_rng(3)
    tensor = quantize_affine(rng.standard_normal((32, 64)).astype(np.float16), 4, 32)
    linear = nn.QuantizedLinear(64, 32, bias=False, group_size=32, bits=4)
    linear.weight, linear.scales, linear.biases = map(mx.array, (tensor.packed, tensor.scales, tensor.biases))
    np.testing.assert_allclose(np.array(weight_squares(linear)), row_squares(tensor), rtol=1e-6)
