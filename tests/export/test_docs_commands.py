"""The commands of docs/export/*.md are commands: every localsft line parses; and each page runs, from the export to a first answer, where
its program is installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from localsft.cli.main import cli
from localsft.export.hf_files import write_gguf_tokenizer
from tests.export.tiny import gguf_base, hf_base, loaded, source_of, trained

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "export"
LINES = [
    (page.name, line.strip("`"))
    for page in sorted(PAGES.glob("*.md"))
    for line in re.findall(r"^ {4}localsft [^\n]+|`localsft [^`]+`", page.read_text(encoding="utf-8"), re.MULTILINE)
]


def parse(words: list[str]) -> None:
    """As the command line does, up to the call. Raises click.UsageError."""
    command: Any = cli
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no command {name}"
        command = found
    command.make_context(command.name, words)


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda text: text.strip()[:60])
def test_every_localsft_line_parses(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ADAPTER").mkdir()
    words = [word for word in shlex.split(line.strip()) if word != "..."][1:]
    words = [word.partition("|")[0] for word in words]  # --to mlx|peft|...: the first
    parse(words)


def test_pages_have_commands_and_wrong_ones_are_seen() -> None:
    assert {page for page, _ in LINES} == {page.name for page in PAGES.glob("*.md")}
    with pytest.raises(click.UsageError):
        parse(["export", "RUN", "--to", "mlx", "--output", "x"])


# ---- each page as it stands ----


def blocks(page: str, language: str = "") -> list[str]:
    """The indented blocks of a page, or the fenced ones of a language."""
    text = (PAGES / page).read_text(encoding="utf-8")
    if language:
        return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block.replace("\n    ", "\n").strip() for block in re.findall(r"(?:^ {4}[^\n]+\n)+", text, re.MULTILINE)]


def run(command: str | list[str], folder: Path, **environment: str) -> str:
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, shell=isinstance(command, str), cwd=folder, env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with runs/tickets in it, and a ``localsft`` on its path."""
    (tmp_path / "bin").mkdir()
    launcher = tmp_path / "bin" / "localsft"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m localsft "$@"\n')
    launcher.chmod(0o755)
    return tmp_path


def on_gguf(folder: Path) -> None:
    base = gguf_base(folder / "BASE.gguf")
    trained(folder / "runs/tickets", replace(loaded(base), name=str(base.path)))


def on_folder(folder: Path) -> None:
    source = source_of(folder / "made", hf_base(folder / "BASE"))
    write_gguf_tokenizer(folder / "BASE", replace(source.model, base=gguf_base(folder / "vocabulary.gguf")))
    trained(folder / "runs/tickets", replace(source.model, name=str(folder / "BASE")))


def commands(page: str) -> list[str]:
    lines = [line for block in blocks(page) for line in block.splitlines()]
    return [line for line in lines if not line.startswith("pip install")]


@pytest.mark.slow
def test_the_mlx_page(folder: Path) -> None:
    if find_spec("mlx_lm") is None:
        pytest.skip("mlx-lm is not installed")
    on_folder(folder)
    lines = commands("mlx.md")
    assert sum(line.startswith("mlx_lm.generate") for line in lines) == 2
    for line in lines:
        out = run(line, folder)
        assert "localsft" in line or "tokens-per-sec" in out


@pytest.mark.slow
def test_the_peft_page(folder: Path) -> None:
    python = os.environ.get("LOCALSFT_PEFT_PYTHON") or (sys.executable if find_spec("torch") and find_spec("peft") else "")
    if not python:
        pytest.skip("torch and peft are not here and LOCALSFT_PEFT_PYTHON does not name a Python that has them")
    on_folder(folder)
    (program,) = blocks("peft.md", "python")
    first, merged = (line for line in commands("peft.md") if line.startswith("localsft"))
    run(first, folder)
    assert "I was charged twice" in run([python, "-c", program], folder, PYTHONPATH="")
    run(merged, folder)


@pytest.mark.slow
def test_the_llama_cpp_page(folder: Path) -> None:
    on_gguf(folder)
    lines = commands("llama.cpp.md")
    modules = os.environ.get("LOCALSFT_NODE_LLAMA_CPP")
    if not shutil.which("llama-cli") and not modules:
        pytest.skip("neither llama-cli on PATH nor a folder with node-llama-cpp in LOCALSFT_NODE_LLAMA_CPP")
    assert sum(line.startswith("llama-cli") for line in lines) == 2
    for line in lines:
        if line.startswith("localsft") or shutil.which("llama-cli"):
            run(line, folder)
    if modules:
        (folder / "node_modules").symlink_to(Path(modules).resolve() / "node_modules")
        (folder / "answer.mjs").write_text(blocks("llama.cpp.md", "js")[0] + "\nprocess.exit(0);\n")
        run(["node", "answer.mjs"], folder)


@pytest.mark.slow
def test_the_ollama_page_up_to_ollama_itself(folder: Path) -> None:
    on_gguf(folder)
    (block,) = blocks("ollama.md")
    export, serve = block.splitlines()
    run(export, folder)
    assert serve.startswith("cd tickets && ollama create tickets -f Modelfile") and (folder / "tickets/Modelfile").is_file()
