"""What a model scores on a holdout: mean loss and the share of tokens it would have said itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from localsft.batch import PackedBatch
from localsft.engine.base import Engine
from localsft.engine.distributed import ALONE, Team


@dataclass(frozen=True, slots=True)
class Score:
    """Over all supervised tokens: ``loss`` Σ w·CE / Σ w in nats, ``accuracy`` the weighted share of greedy hits."""

    loss: float
    accuracy: float
    weight: float
    targets: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(engine: Engine, batches: Iterable[PackedBatch], team: Team = ALONE) -> Score:
    """Scores every target of every batch, once. Sums are float64, so that the order of batches hardly matters.

    In a ``team`` the batches are this rank's share, and the score is that of all shares.
    """
    loss = hits = weight = 0.0
    targets = 0
    for batch in batches:
        logprobs, correct = engine.score(batch)
        weights = batch.target_weights.astype(np.float64)
        loss -= float(np.dot(weights, logprobs.astype(np.float64)))
        hits += float(np.dot(weights, correct))
        weight += float(weights.sum())
        targets += batch.n_targets
    loss, hits, weight, counted = team.total(loss, hits, weight, targets)
    if not weight:
        return Score(math.nan, math.nan, 0.0, 0)
    return Score(loss / weight, hits / weight, weight, int(counted))
