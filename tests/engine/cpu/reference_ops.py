"""The numpy reference with one rule broken on purpose, to see that the tests notice."""

from __future__ import annotations

from typing import Any

import numpy as np

from localsft.engine.cpu.reference import ReferenceOps


class LeakingOps(ReferenceOps):
    """Segments see each other: packing that leaks between samples."""

    def _attention_parts(self, q: Any, k: Any, v: Any, q_rows: Any, starts: Any, parents: Any, *rest: Any) -> tuple[Any, ...]:
        return super()._attention_parts(q, k, v, q_rows, np.array([0, starts[-1]]), np.array([-1]), *rest)


class UnweightedOps(ReferenceOps):
    """Every target counts 1."""

    def head_loss(self, x: Any, weight: Any, target_ids: Any, target_weights: Any, dx: Any) -> float:
        return super().head_loss(x, weight, target_ids, np.ones_like(target_weights), dx)
