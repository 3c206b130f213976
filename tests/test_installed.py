"""The installed package, away from the checkout: the command, the catalogue and the examples are in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localsft.shared_files import shared_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def command() -> str:
    """The installed ``localsft`` of this environment."""
    found = shutil.which("localsft", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("localsft is not installed in this environment (make install)")
    return found


def test_the_catalogue_is_in_the_package(command: str, tmp_path: Path) -> None:
    result = subprocess.run([command, "models", "list", "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {row["name"] for row in json.loads(result.stdout)} == {path.stem for path in (ROOT / "models").glob("*.toml")}


def test_the_example_and_the_kernels_are_in_the_package(command: str, tmp_path: Path) -> None:
    script = (
        "import localsft\nfrom localsft import _core\nfrom localsft.shared_files import shared_folder\n"
        "print(shared_folder('examples') / 'billing-support')\nprint(_core.available_isas()[0])"
    )
    result = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    folder, isa = result.stdout.splitlines()
    assert isa == "baseline"
    for name in ("train.jsonl", "holdout.jsonl", "README.md", "LICENSE"):
        assert (Path(folder) / name).read_bytes() == (ROOT / "examples" / "billing-support" / name).read_bytes()


def test_a_checkout_finds_its_own() -> None:
    assert shared_folder("models") == ROOT / "models"
