"""The learning rate of a step."""

from __future__ import annotations

import math

from localsft.config import OptimConfig


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Of step 1..steps: a linear warm-up to the peak, then constant, or falling to 0 by a line or half a cosine."""
    warmup = optim.warmup_steps(steps)
    if step <= warmup:
        return optim.learning_rate * step / warmup
    if optim.schedule == "constant":
        return optim.learning_rate
    done = (step - warmup - 1) / max(1, steps - warmup)
    return optim.learning_rate * (1 - done if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
