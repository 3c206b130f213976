"""Engines: what computes losses, gradients and tokens. ``open_engine`` is the only place that knows them by name."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from localsft.config import LoraConfig, OptimConfig
from localsft.engine.base import Engine
from localsft.errors import MissingPart, UsageError

if TYPE_CHECKING:
    from localsft.weights.load import BaseModel


def choose_engine(name: str) -> str:
    """``auto`` becomes mlx on Apple silicon and cpu elsewhere; other names stay."""
    if name != "auto":
        return name
    return "mlx" if sys.platform == "darwin" and platform.machine() == "arm64" else "cpu"


def physical_cores() -> int:
    """The default number of threads: physical cores that this process may use."""
    import os

    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def write_quantized_by_mlx_lm(base: BaseModel, bits: int, folder: Path) -> None:
    """Weights and config.json of a family whose tensors only mlx-lm can take apart. Raises MissingPart where it is not installed."""
    if not has_mlx():
        family = base.config.model_type
        raise MissingPart(f"quantizing a {family} model needs mlx-lm, which is not installed: run pip install 'localsft[mlx]'")
    from localsft.engine.mlx.quantized import write_quantized

    write_quantized(base, bits, folder)


def has_mlx() -> bool:
    """Whether MLX and mlx-lm are installed."""
    return find_spec("mlx") is not None and find_spec("mlx_lm") is not None


def open_engine(
    name: str,
    base: BaseModel,
    lora: LoraConfig,
    optim: OptimConfig,
    *,
    seed: int = 0,
    threads: int | None = None,
    checkpoint: bool = False,
    cache: Path | None = None,
    exact: bool = False,
    resumed_isa: str = "",
) -> Engine:
    """The engine ``auto``, ``cpu`` or ``mlx`` over a loaded base, its adapter at its start (A random from ``seed``, B zero).

    ``checkpoint`` recomputes layers to save memory. ``cache`` is a folder where the cpu engine may keep what frozen layers
    below the adapted ones put out, so that later epochs skip them. ``exact`` is for holding other programs against: activations stay
    float32 where the cpu engine would round them to bfloat16; the mlx engine computes in the base's type either way. ``resumed_isa``:
    the kernels that the run was begun with, which the cpu engine goes on with where it can, for the same bits.

    Raises MissingPart where an engine's packages are not installed, InputError for a base that it can't run.
    """
    chosen = choose_engine(name)
    if chosen == "cpu":
        from localsft.engine.cpu.engine import CpuEngine
        from localsft.engine.cpu.ops import Ops, float32_isa, kept_isa

        ops = Ops(float32_isa() if exact else kept_isa(resumed_isa), threads or physical_cores())
        engine = CpuEngine(base, lora, optim, ops, seed=seed, checkpoint=checkpoint)
        if cache is not None:
            engine.keep_frozen(cache)
        return engine
    if chosen == "mlx":
        if not has_mlx():
            raise MissingPart(f"--engine {name} needs MLX, which is not installed: run pip install 'localsft[mlx]', or use --engine cpu")
        from localsft.engine.mlx.engine import MlxEngine

        return MlxEngine(base, lora, optim, seed=seed, checkpoint=checkpoint)
    raise UsageError(f"--engine {name}: there is no such engine; choose auto, cpu or mlx")
