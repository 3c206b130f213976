"""Imports go downwards only: files become conversations, examples, batches, losses, runs; nothing flows back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "localsft"

# From low to high; a module may import what stands in a lower row. In one row stand rooms that don't know each other.
LAYERS = (
    {"__init__", "_core", "errors"},
    {"atomic", "shared_files", "config"},
    {"batch"},
    {"tokenizer", "weights", "models", "frozen_cache", "schedule"},
    {"data", "engine"},
    {"checkpoint", "runs"},
    {"evaluate"},
    {"train"},
    {"plan"},
    {"session", "quantized"},
    {"answer", "resume", "doctor", "benchmark", "selftest", "export"},
    {"cli"},
    {"__main__"},
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
# What only some rooms may touch at all.
ONLY = {"_core": {"data", "tokenizer", "engine", "doctor"}, "click": {"cli"}, "rich": {"cli"}, "mlx": {"engine"}, "pybind11": set[str]()}
PROGRAMS = {
    "export/keeper.py",
    "export/render_jinja.py",
}  # run by themselves in a process of their own, which answers on its standard output


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it, with their whole names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """ "localsft.data.pack.pack_step" -> "data"; "localsft.__version__" -> "__init__"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__version__" else "__init__"


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in LAYER, f"{own} has no place in the order; give it one in {__file__}"
    for module in imports(path):
        if module.split(".")[0] == "localsft" and (other := room(module)) != own:
            assert LAYER[other] < LAYER[own], f"{own} may not import {other} ({module})"
        top = "_core" if module.startswith("localsft._core") else module.split(".")[0]
        assert own in ONLY.get(top, {own}), f"{own} may not import {top}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "cli" or path.relative_to(PACKAGE).as_posix() in PROGRAMS:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Name) and node.id == "print"), f"{path}:{node.lineno} prints"
        assert not (
            isinstance(node, ast.Attribute)
            and node.attr in ("stdout", "stderr")
            and isinstance(node.value, ast.Name)
            and node.value.id == "sys"
        ), f"{path}:{node.lineno} uses a standard stream"


def test_engines_know_no_files_of_conversations_and_data_knows_no_engine() -> None:
    assert LAYER["engine"] == LAYER["data"]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, f"{path} is two ideas"
