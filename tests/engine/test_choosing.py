"""Which engine a run gets, and what is said where MLX is missing."""

from __future__ import annotations

import platform
import sys

import pytest

from localsft import engine
from localsft.answer import NO_ADAPTER
from localsft.config import OptimConfig
from localsft.engine import choose_engine, open_engine
from localsft.errors import MissingPart


@pytest.mark.parametrize(
    ("system", "machine", "chosen"),
    [("darwin", "arm64", "mlx"), ("darwin", "x86_64", "cpu"), ("linux", "x86_64", "cpu"), ("linux", "aarch64", "cpu")],
)
def test_auto_is_mlx_on_apple_silicon_alone(monkeypatch: pytest.MonkeyPatch, system: str, machine: str, chosen: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert choose_engine("auto") == chosen
    assert choose_engine("cpu") == "cpu" and choose_engine("mlx") == "mlx"


def test_without_mlx_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(MissingPart, match=r"^--engine mlx needs MLX, which is not installed: run pip install 'localsft\[mlx\]'"):
        open_engine("mlx", None, NO_ADAPTER, OptimConfig())  # type: ignore[arg-type]
