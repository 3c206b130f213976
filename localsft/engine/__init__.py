"""Engines: what computes losses, gradients and tokens. ``open_engine`` is the only place that knows them by name."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

from localsft.config import LoraConfig, OptimConfig
from localsft.engine.base import Engine
from localsft.errors import UsageError

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


def open_engine(
    name: str,
    base: BaseModel,
    lora: LoraConfig,
    optim: OptimConfig,
    *,
    seed: int = 0,
    threads: int | None = None,
    checkpoint: bool = False,
) -> Engine:
    """The engine ``auto``, ``cpu`` or ``mlx`` over a loaded base, its adapter at its start (A random from ``seed``, B zero).

    Raises MissingPart where an engine's packages are not installed, InputError for a base that it can't run.
    """
    chosen = choose_engine(name)
    if chosen == "cpu":
        from localsft.engine.cpu.engine import CpuEngine
        from localsft.engine.cpu.ops import Ops

        return CpuEngine(base, lora, optim, Ops("", threads or physical_cores()), seed=seed, checkpoint=checkpoint)
    raise UsageError(f"--engine {name}: there is no such engine; choose auto or cpu")
