"""Choosing the next token from logits, the same way for every engine."""

from __future__ import annotations

import numpy as np

from localsft.batch import Float32
from localsft.engine.base import Sampling


class Sampler:
    """Draws one prompt's tokens. Its random numbers depend on the seed and the prompt's index alone, not on the batch around it."""

    def __init__(self, sampling: Sampling, prompt: int) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        self._random = np.random.Generator(np.random.Philox(key=[sampling.seed, prompt]))

    def choose(self, logits: Float32) -> int:
        """A token id from logits float32 (V,): the largest at temperature 0, else a draw from the nucleus of mass ``top_p``."""
        if self._temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self._temperature
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        if self._top_p < 1:
            order = np.argsort(-probabilities, kind="stable")
            mass = np.cumsum(probabilities[order])
            kept = order[: int(np.searchsorted(mass, self._top_p)) + 1]  # the smallest set with at least that mass
            return int(self._random.choice(kept, p=probabilities[kept] / probabilities[kept].sum()))
        return int(self._random.choice(probabilities.size, p=probabilities))
