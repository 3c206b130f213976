"""The selftest passes here, and fails when the kernels are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localsft import selftest
from localsft.engine.cpu.ops import Ops, available_isas


def test_every_check_passes() -> None:
    checks = list(selftest.run())
    assert {check.subject for check in checks} >= set(available_isas())
    assert [f"{check.subject}: {check.claim}: {check.difference} {check.problem}" for check in checks if not check.passed] == []


@pytest.mark.parametrize(
    "operation", ["linear_backward", "attention", "swiglu_backward", "rms_norm_backward", "scale_columns", "column_dots"]
)
def test_a_wrong_kernel_fails(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that does nothing: its outputs are what was in the buffers."""
    original = Ops.__getattr__

    def broken(self: Ops, name: str) -> Any:
        return (lambda *arguments, **options: None) if name == operation else original(self, name)

    monkeypatch.setattr(Ops, "__getattr__", broken)
    checks = [check for check in selftest.run() if not check.subject.startswith("mlx")]
    assert any(not check.passed for check in checks)


def test_values_that_are_not_finite_never_pass() -> None:
    good, bad = (selftest.Outcome(1.0, np.array([1.0, value])) for value in (1.0, np.nan))
    for pair in ((good, bad), (bad, good), (bad, bad), (selftest.Outcome(np.nan, good.gradient), good)):
        assert not selftest.Check("x", "y", pair[0].differs(pair[1]), 1e9).passed
    assert selftest.Check("x", "y", good.differs(good), 0.0).passed
