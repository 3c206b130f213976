"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from localsft.models.cache import home

_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default base model: LOCALSFT_TEST_SMOLLM2, or what `localsft models pull` left in its cache; else a skip."""
    named = os.environ.get("LOCALSFT_TEST_SMOLLM2")
    if named:
        return Path(named)
    found = sorted(home().rglob(_SMOLLM2))
    if not found:
        pytest.skip(f"{_SMOLLM2} is neither named by LOCALSFT_TEST_SMOLLM2 nor under {home()} (`localsft models pull` fetches it)")
    return found[0]
