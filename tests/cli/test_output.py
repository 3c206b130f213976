from __future__ import annotations

import sys
from pathlib import Path

import pytest

from localsft.cli.output import megabytes, program, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nwith ümlauts 漢字 😀", "plain\ttext\nwith ümlauts 漢字 😀"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("over\rwritten\x08\x07", "over\\x0dwritten\\x08\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("user\u202egnp.exe", "user\\u202egnp.exe"),
        ("line\u2028break", "line\\u2028break"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_control_characters_are_shown_not_obeyed(text: str, shown: str) -> None:
    assert visible(text) == shown.replace("\\x0d", "\\r")


def test_sizes_for_people() -> None:
    assert [megabytes(n) for n in (98_362_432, 1_250_000_000)] == ["98 MB", "1.2 GB"]


def test_the_program_is_named_so_that_it_can_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [".venv/bin/localsft", "demo"])
    assert program() == ".venv/bin/localsft"
    monkeypatch.setattr(sys, "argv", ["/x/localsft/__main__.py", "demo"])
    assert program() == f"{sys.executable} -m localsft"
    (tmp_path / "localsft").write_text("#!/bin/sh\n")
    (tmp_path / "localsft").chmod(0o755)
    assert program() == "localsft"
