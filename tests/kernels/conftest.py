"""Contexts on every ISA that this machine can run."""

from __future__ import annotations

import pytest

from localsft import _core


@pytest.fixture(params=_core.available_isas())
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ctx(isa: str) -> _core.Context:
    return _core.Context(isa, 2)
