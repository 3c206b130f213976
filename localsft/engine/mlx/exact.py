"""The MLX engine in float32 wherever it runs, for comparisons."""

from __future__ import annotations

import mlx.core as mx

from localsft.config import LoraConfig, OptimConfig
from localsft.engine.mlx.engine import MlxEngine
from localsft.weights.load import BaseModel

GPU_FLOAT32_LIMIT = 1e-3  # relative: Apple's GPUs may multiply float32 with fewer bits


def device_name() -> str:
    """``gpu`` or ``cpu``."""
    return str(mx.default_device().type.name)


def float32_engine(base: BaseModel, lora: LoraConfig, optim: OptimConfig) -> MlxEngine:
    """An engine that computes in float32 whatever the base's own precision is."""
    return MlxEngine(base, lora, optim, dtype=mx.float32)
