"""The tiny golden models and their examples, as the engine tests use them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localsft.batch import Example, PackedBatch
from localsft.config import LoraConfig, OptimConfig
from localsft.engine.cpu.engine import CpuEngine
from localsft.weights.load import BaseModel, load_base

GOLDENS = Path(__file__).parents[2] / "goldens"
OPTIM = OptimConfig(learning_rate=0.01, weight_decay=0.01, max_grad_norm=1.0)
LORAS = {
    "all": LoraConfig(rank=4, alpha=8.0),
    "last2": LoraConfig(rank=4, alpha=8.0, layers=2),
    "qv": LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj")),
}


@dataclass(frozen=True)
class Golden:
    """One tiny model and what PyTorch + PEFT computed for it; keys in tests/goldens/README.md."""

    name: str
    base: BaseModel
    values: dict[str, Any]

    @property
    def examples(self) -> list[Example]:
        v = self.values
        return [Example(v["ids"][a:b], v["weights"][a:b]) for a, b in zip(v["starts"][:-1], v["starts"][1:], strict=True)]

    def tensors(self, prefix: str) -> dict[str, Any]:
        return {key[len(prefix) :]: value for key, value in self.values.items() if key.startswith(prefix)}

    def engine(self, ops: Any, case: str = "all", **options: Any) -> CpuEngine:
        """An engine with the golden adapter, restricted to the modules of the case."""
        engine = CpuEngine(self.base, LORAS[case], OPTIM, ops, **options)
        init = self.tensors("init/")
        engine.load_adapter({name: init[name] for name in engine.adapter()})
        return engine


def load_golden(name: str) -> Golden:
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
        return Golden(name, load_base(GOLDENS / name), dict(file))


def alone(example: Example) -> PackedBatch:
    """One example as a batch of its own: no packing code involved."""
    n = len(example.token_ids)
    targets = np.flatnonzero(example.target_weights > 0)
    return PackedBatch(
        tokens=example.token_ids,
        positions=np.arange(n, dtype=np.int32),
        segment_starts=np.array([0, n], np.int32),
        segment_parents=np.array([-1], np.int32),
        target_rows=(targets - 1).astype(np.int32),
        target_ids=example.token_ids[targets],
        target_weights=example.target_weights[targets],
    )


def relative(found: Any, expected: Any) -> float:
    """‖found - expected‖ / ‖expected‖."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))
