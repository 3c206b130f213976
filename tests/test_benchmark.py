"""A user's own figures: shares of the peak, which must be what the machine can do and not what it did when it was asked first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from localsft.benchmark import _peak


def test_the_peak_is_that_of_the_best_run() -> None:
    """A virtual machine's threads may be on one core of its host when the first runs are measured."""
    rates = iter([104e9, 104e9, 207e9, 190e9])
    engine: Any = SimpleNamespace(ops=SimpleNamespace(peak_flops=lambda: next(rates)))
    clock = iter([0.0, 1.0, 2.0, 2.5, 3.5])
    with patch("localsft.benchmark.time.perf_counter", lambda: next(clock)):
        assert _peak(engine) == (207e9, 4)
