"""The kernels under test: every ISA of this machine, and the numpy reference that proves the model code by itself."""

from __future__ import annotations

from typing import Any

import pytest

from localsft.engine.cpu.ops import Ops, available_isas
from localsft.engine.cpu.reference import ReferenceOps


@pytest.fixture(params=["reference", *available_isas()])
def ops(request: pytest.FixtureRequest) -> Any:
    return ReferenceOps() if request.param == "reference" else Ops(request.param, threads=2)
