"""The mlx engine against the cpu engine: the same loss, gradients and steps; either goes on where the other stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.checkpoint import BaseRef, load_checkpoint, save_checkpoint
from localsft.config import LoraConfig, OptimConfig
from localsft.engine.base import Engine
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops
from localsft.engine.mlx.engine import MlxEngine
from tests.engine.mlx.mlx_cases import LORAS, OPTIM, Golden, accumulate, load_golden, packed, random_tree, relative

LORA = LORAS["all"]
TREE = random_tree(211, [-1, 0, 0, 2, -1, 4, 2], [13, 4, 6, 5, 9, 3, 8])


@pytest.fixture(params=["tiny_tied", "tiny_untied"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def cpu_engine(golden: Golden) -> CpuEngine:
    engine = CpuEngine(golden.base, LORA, OPTIM, Ops("baseline", 1), seed=4)
    assert engine.ops.act_bf16 is False
    return engine


def mlx_engine(golden: Golden) -> MlxEngine:
    return MlxEngine(golden.base, LORA, OPTIM, seed=4)


def start(golden: Golden, *engines: Engine) -> None:
    for engine in engines:
        engine.load_adapter(golden.tensors("init/"))


def test_both_start_at_the_same_adapter(golden: Golden) -> None:
    cpu, mlx = cpu_engine(golden).adapter(), mlx_engine(golden).adapter()
    assert list(cpu) == list(mlx)
    assert all(np.array_equal(cpu[name], mlx[name]) for name in cpu)


def test_loss_and_gradients_agree_on_a_tree(golden: Golden) -> None:
    cpu, mlx = cpu_engine(golden), mlx_engine(golden)
    start(golden, cpu, mlx)
    assert mlx.accumulate(TREE).loss == pytest.approx(cpu.accumulate(TREE).loss, rel=1e-6)
    for name, gradient in cpu.gradients().items():
        assert relative(mlx.gradients()[name], gradient) < 2e-5, name
    for found, expected in zip(mlx.score(TREE), cpu.score(TREE), strict=True):
        assert np.allclose(found, expected, atol=1e-4)


def ten_steps(golden: Golden, first: Engine, second: Engine, folder: Path) -> list[float]:
    """Five steps on one engine, a checkpoint on disk, five on the other."""
    batches = [packed(golden.examples()[:3]), packed(golden.examples()[3:])]
    losses = []
    for engine in (first, second):
        if engine is second:
            base = BaseRef("tiny", golden.base.hash, 3)
            save_checkpoint(folder, first.adapter(), first.optimizer_state(), {}, LORA, base)
            saved = load_checkpoint(folder)
            engine.load_adapter(saved.adapter)
            engine.load_optimizer_state(saved.optimizer)
        for _ in range(5):
            losses.append(accumulate(engine, batches).mean)
            engine.step(0.01)
    return losses


@pytest.mark.parametrize("order", ["cpu, mlx", "mlx, cpu", "mlx, mlx"])
def test_ten_steps_across_engines_equal_peft(golden: Golden, order: str, tmp_path: Path) -> None:
    make = {"cpu": cpu_engine, "mlx": mlx_engine}
    first, second = (make[name](golden) for name in order.split(", "))
    start(golden, first)
    assert ten_steps(golden, first, second, tmp_path / "checkpoint") == pytest.approx(list(golden.values["all/step_losses"]), rel=1e-5)


@pytest.mark.slow
def test_smollm2(smollm2_path: Path) -> None:
    """The default base as it is, Q4_1 weights and all, both in float32. Slow: MLX multiplies quantized matrices plainly on CPUs."""
    from localsft.weights.load import load_base

    base = load_base(smollm2_path)
    lora = LoraConfig(rank=4)
    import mlx.core as mx

    cpu = CpuEngine(base, lora, OptimConfig(), Ops("baseline", 2))
    mlx = MlxEngine(base, lora, OptimConfig(), dtype=mx.float32)
    random = np.random.default_rng(0)
    values: dict[str, Any] = {
        name: x if name.endswith("a") else 0.02 * random.standard_normal(x.shape) for name, x in cpu.adapter().items()
    }
    for engine in (cpu, mlx):
        engine.load_adapter(values)
    tree = random_tree(49152, [-1, 0, 0], [12, 5, 7])
    assert mlx.accumulate(tree).loss == pytest.approx(cpu.accumulate(tree).loss, rel=1e-4)
    gradients = mlx.gradients()
    for name, gradient in cpu.gradients().items():
        assert relative(gradients[name], gradient) < 1e-3, name
