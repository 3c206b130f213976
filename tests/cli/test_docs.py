"""Every command and option is documented, and every --help starts with an example."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import click
import pytest

from localsft.config import settings
from tests.cli.conftest import ROOT


def load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


REFERENCE = load_reference()
COMMANDS = list(REFERENCE.commands())


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) or "localsft" for path, _ in COMMANDS])
def test_help_starts_with_an_example_that_the_command_understands(path: tuple[str, ...], command: click.Command) -> None:
    first, example = REFERENCE.help_text(path).splitlines()[:2]
    assert first == "Example:"
    assert example.startswith("  " + " ".join(("localsft", *path)).rstrip())
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.help.endswith((".", "]")), parameter.opts


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) or "localsft" for path, _ in COMMANDS])
def test_the_reference_has_every_option_with_its_help(path: tuple[str, ...], command: click.Command) -> None:
    # Not compared as a whole, nor by spaces: Click's releases differ in how they lay out the same help.
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = "".join(text.split(f"## {' '.join(('localsft', *path))}\n")[1].split("\n## ")[0].split())
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            for part in (*parameter.opts, "".join(str(parameter.help).split())):
                assert part in section, f"{part}: run python docs/make_reference.py"


def test_the_table_of_settings_is_up_to_date() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == REFERENCE.settings_table(), "run: python docs/make_reference.py"


def test_every_setting_with_a_flag_is_an_option_of_train_once() -> None:
    train = dict(COMMANDS)[("train",)]
    options = [option for parameter in train.params if isinstance(parameter, click.Option) for option in parameter.opts]
    assert len(options) == len(set(options))
    assert {setting.flag for setting in settings() if setting.has_flag} <= set(options)


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path, command in COMMANDS:
        if path and not isinstance(command, click.Group):
            assert f"localsft {' '.join(path)}" in readme, path
