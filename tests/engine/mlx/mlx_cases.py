"""What the tests of the mlx engine share: the golden llamas, segment trees, and the same trees expanded to single examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from localsft.batch import LossSum, PackedBatch
from localsft.config import LoraConfig, OptimConfig
from localsft.engine.base import Engine
from localsft.engine.mlx.engine import MlxEngine
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
    """A tiny llama and what PyTorch + PEFT computed for it; keys in tests/goldens/README.md."""

    base: BaseModel
    values: dict[str, Any]

    def tensors(self, prefix: str) -> dict[str, Any]:
        return {key[len(prefix) :]: value for key, value in self.values.items() if key.startswith(prefix)}

    def examples(self) -> list[tuple[Any, Any]]:
        """(ids, weights) of each example."""
        starts = self.values["starts"]
        return [(self.values["ids"][a:b], self.values["weights"][a:b]) for a, b in pairwise(starts)]

    def engine(self, case: str = "all", **options: Any) -> MlxEngine:
        engine = MlxEngine(self.base, LORAS[case], OPTIM, **options)
        init = self.tensors("init/")
        engine.load_adapter({name: init[name] for name in engine.shapes})
        return engine


def load_golden(name: str) -> Golden:
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
        return Golden(load_base(GOLDENS / name), dict(file))


def batch_of(segments: Sequence[tuple[Any, int]], targets: Sequence[tuple[int, int, float]]) -> PackedBatch:
    """A batch from (ids, parent) of each segment and (row, id, weight) of each target."""
    lengths = [len(ids) for ids, _ in segments]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    first: list[int] = []
    for _, parent in segments:
        first.append(0 if parent < 0 else first[parent] + lengths[parent])
    positions = [np.arange(at, at + n) for at, n in zip(first, lengths, strict=True)]
    rows, ids, weights = zip(*sorted(targets), strict=True)
    return PackedBatch(
        tokens=np.concatenate([ids for ids, _ in segments]).astype(np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        segment_starts=starts,
        segment_parents=np.array([parent for _, parent in segments], np.int32),
        target_rows=np.array(rows, np.int32),
        target_ids=np.array(ids, np.int32),
        target_weights=np.array(weights, np.float32),
    )


def packed(examples: Sequence[tuple[Any, Any]]) -> PackedBatch:
    """Examples (ids, weights) side by side, nothing shared."""
    targets: list[tuple[int, int, float]] = []
    start = 0
    for ids, weights in examples:
        targets += [(start + i - 1, int(ids[i]), float(weights[i])) for i in range(1, len(ids)) if weights[i] > 0]
        start += len(ids)
    return batch_of([(ids, -1) for ids, _ in examples], targets)


def random_tree(vocabulary: int, parents: Sequence[int], lengths: Sequence[int], seed: int = 0) -> PackedBatch:
    """Random ids in the given segments; about half of the tokens predict something, some of them several ids."""
    random = np.random.default_rng(seed)
    segments = [(random.integers(0, vocabulary, n), parent) for n, parent in zip(lengths, parents, strict=True)]
    rows = [int(row) for row in range(sum(lengths)) for _ in range(random.integers(0, 3))]
    return batch_of(segments, [(row, int(random.integers(vocabulary)), float(random.uniform(0.2, 2))) for row in rows])


def expanded(batch: PackedBatch) -> list[PackedBatch]:
    """Every segment of a tree as an example of its own, with its ancestors in front and its own targets only."""
    starts, parents = batch.segment_starts, batch.segment_parents
    alone: list[PackedBatch] = []
    for s in range(len(parents)):
        path = [s]
        while parents[path[0]] >= 0:
            path.insert(0, int(parents[path[0]]))
        ids = np.concatenate([batch.tokens[starts[p] : starts[p + 1]] for p in path])
        shift = len(ids) - int(starts[s + 1])
        mine = np.flatnonzero((batch.target_rows >= starts[s]) & (batch.target_rows < starts[s + 1]))
        targets = [(int(batch.target_rows[i]) + shift, int(batch.target_ids[i]), float(batch.target_weights[i])) for i in mine]
        if targets:
            alone.append(batch_of([(ids, -1)], targets))
    return alone


def accumulate(engine: Engine, batches: Sequence[PackedBatch]) -> LossSum:
    total = LossSum()
    for batch in batches:
        total += engine.accumulate(batch)
    return total


def relative(found: Any, expected: Any) -> float:
    """The largest difference, as a share of the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
