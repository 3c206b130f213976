from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Localsft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def localsft(tmp_path: Path) -> Localsft:
    """Runs ``localsft`` as a user does: its own process, no terminal, an empty cache, in an empty folder."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localsft", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "LOCALSFT_HOME": str(tmp_path / "home")} | environment,
            timeout=120,
        )

    return run
