"""The types that cross rooms: what data produces, what an engine consumes, what a loss is made of.

Letters: T tokens in a packed batch, S segments, N targets (supervised predictions).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: token ids and the weight of each token *as a target*.

    ``token_ids`` int32 (n,); ``target_weights`` float32 (n,): the weight with which token i counts when it is
    predicted from tokens < i. 0 means not supervised; token 0 is never a target, so its weight is 0.
    Ids and weights are born together, from one render. ``source`` names file and line, for messages.
    """

    token_ids: Int32
    target_weights: Float32
    source: str = ""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A forest of segments without padding or dense masks: the only type that crosses from data to an engine.

    A token attends to its own segment causally and to all tokens of its ancestor segments. Plain packing is the case
    where every parent is -1. Segments lie one after the other in ``tokens``, a parent before its children.
    Supervision is sparse: the hidden state of ``target_rows[i]`` predicts ``target_ids[i]`` with weight
    ``target_weights[i]``; one row may predict several ids (the branches of a shared prefix).
    """

    tokens: Int32  # (T,)
    positions: Int32  # (T,)   RoPE position of each token
    segment_starts: Int32  # (S+1,) token ranges of the segments
    segment_parents: Int32  # (S,)   -1 for a root; a parent comes before its children
    target_rows: Int32  # (N,)   row whose hidden state predicts; ascending
    target_ids: Int32  # (N,)   the token to predict
    target_weights: Float32  # (N,)   > 0

    @property
    def n_tokens(self) -> int:
        """T, the tokens that an engine computes."""
        return int(self.tokens.shape[0])

    @property
    def n_targets(self) -> int:
        """N, the supervised predictions."""
        return int(self.target_ids.shape[0])

    @property
    def weight(self) -> float:
        """Σ w over the targets, in float64."""
        return float(self.target_weights.sum(dtype=np.float64))


@dataclass(frozen=True, slots=True)
class LossSum:
    """Σ w·CE (nats) and Σ w. Kept apart so that a step's loss never depends on how the step was packed."""

    loss: float = 0.0
    weight: float = 0.0

    def __add__(self, other: LossSum) -> LossSum:
        return LossSum(self.loss + other.loss, self.weight + other.weight)

    @property
    def mean(self) -> float:
        """Σ w·CE / Σ w; nan when nothing is supervised."""
        return self.loss / self.weight if self.weight else float("nan")
