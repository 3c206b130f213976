"""Which kernels run when nobody names them."""

from __future__ import annotations

import pytest

from localsft import _core


def test_the_last_isa_near_the_highest_rate_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCALSFT_ISA", raising=False)
    rates = _core.isa_rates()
    assert list(rates) == _core.available_isas()
    assert min(rates.values()) > 0
    near = [isa for isa, rate in rates.items() if rate >= 0.75 * max(rates.values())]
    assert _core.fastest_isa() == near[-1] == _core.Context().isa


def test_rates_are_measured_once() -> None:
    assert _core.isa_rates() == _core.isa_rates()  # no two measurements are equal to the last bit


def test_the_environment_and_the_argument_name_an_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALSFT_ISA", "baseline")
    assert _core.Context().isa == "baseline"
    for isa in _core.available_isas():
        assert _core.Context(isa).isa == isa
    with pytest.raises(ValueError, match="unknown ISA 'sse9': this machine can run baseline"):
        _core.Context("sse9")
