"""How much of an update survives when the sum of weight and update is stored in a coarser type.

A merged weight is Q(W + ΔW). Where ΔW is small beside the steps of Q, rounding takes W + ΔW back to W and the adapter is gone.
The share that survives is the part of what changed that lies along the update, ⟨Q(W + ΔW) - W, ΔW⟩ / ‖ΔW‖²: 1 where everything
is kept, 0 where nothing is. What rounding adds besides is noise, ‖Q(W + ΔW) - (W + ΔW)‖ / ‖ΔW‖; how much that hurts shows in
the loss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsft.export.proof import Check

SURVIVAL_BOUND = 0.9
OVERSHOOT_BOUND = 1.1  # steps somewhat larger than the update blow a part of it up to a whole step
# The merged model may lose this share of what training gained on the probes, or LOSS_FLOOR nats a token where it gained little.
LOSS_SHARE = 0.1
LOSS_FLOOR = 0.01

_LAYER = re.compile(r"\.([0-9]+)\.")


@dataclass(frozen=True, slots=True)
class Survival:
    """One linear's sums: ⟨stored - W, ΔW⟩, ‖ΔW‖² and ‖stored - (W + ΔW)‖²."""

    module: str
    along: float
    update: float
    noise: float

    @property
    def share(self) -> float:
        return self.along / self.update if self.update else 1.0


def survival_of(module: str, weight: NDArray[np.float32], delta: NDArray[np.float32], stored: NDArray[np.float32]) -> Survival:
    """Sums in float64. ``weight`` W, ``delta`` ΔW, ``stored`` what a reader of the file gets; all of one shape."""
    changed = stored.astype(np.float64) - weight
    return Survival(
        module,
        along=float(np.vdot(changed, delta)),
        update=float(np.vdot(delta.astype(np.float64), delta)),
        noise=float(np.square(changed - delta).sum()),
    )


def total(parts: Iterable[Survival]) -> Survival:
    """All linears as one: the sums of their sums."""
    parts = list(parts)
    return Survival("all", sum(p.along for p in parts), sum(p.update for p in parts), sum(p.noise for p in parts))


def by_layer(parts: Iterable[Survival]) -> dict[int, float]:
    """The surviving share of each layer."""
    layers: dict[int, list[Survival]] = {}
    for part in parts:
        match = _LAYER.search(part.module)
        layers.setdefault(int(match[1]) if match else -1, []).append(part)
    return {layer: total(members).share for layer, members in sorted(layers.items())}


def check_survival(parts: Iterable[Survival], kind: str) -> Check:
    """Between SURVIVAL_BOUND and OVERSHOOT_BOUND of the whole update, and of every layer's."""
    parts = list(parts)
    whole, layers = total(parts), by_layer(parts)
    worst = max(layers, key=lambda layer: abs(layers[layer] - 1))
    figures = {
        "share": whole.share,
        "noise": float(np.sqrt(whole.noise / whole.update)) if whole.update else 0.0,
        "layers": {str(layer): share for layer, share in layers.items()},
        "bounds": [SURVIVAL_BOUND, OVERSHOOT_BOUND],
    }
    holds = all(SURVIVAL_BOUND <= share <= OVERSHOOT_BOUND for share in (whole.share, *layers.values()))
    detail = f"as {kind} {100 * whole.share:.1f} % of the update survives, {100 * layers[worst]:.1f} % in layer {worst}"
    return Check("survival", holds, detail, figures)


def check_loss(base: float, trained: float, merged: float) -> Check:
    """Mean loss on the probes: of the base, of base and adapter, of the merged model; nats a token."""
    bound = trained + max(LOSS_FLOOR, LOSS_SHARE * abs(base - trained))
    figures = {"base": base, "trained": trained, "merged": merged, "bound": bound}
    detail = f"loss {base:.4f} of the base, {trained:.4f} with the adapter, {merged:.4f} merged (at most {bound:.4f})"
    return Check("loss", merged <= bound, detail, figures)
