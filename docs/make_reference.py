"""Writes docs/cli.md from every --help, and docs/settings.md from the settings of a run: ``python docs/make_reference.py``."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import click

from localsft.cli.main import cli
from localsft.config import describe, settings

FOLDER = Path(__file__).parent
WIDTH = 100


def commands(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it; groups before their commands."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


def help_text(path: tuple[str, ...]) -> str:
    """What ``localsft PATH --help`` prints."""
    with redirect_stdout(io.StringIO()) as text:
        cli.main([*path, "--help"], prog_name="localsft", standalone_mode=False, terminal_width=WIDTH, max_content_width=WIDTH)
    return text.getvalue()


def command_line() -> str:
    parts = ["# The command line\n\nMade from `--help` by `python docs/make_reference.py`.\n"]
    parts += [f"## {' '.join(('localsft', *path))}\n\n```text\n{help_text(path).rstrip()}\n```\n" for path, _ in commands()]
    return "\n".join(parts)


def settings_table() -> str:
    lines = [
        "# Settings of a training run",
        "",
        "Made from `localsft/config.py` by `python docs/make_reference.py`.",
        "",
        "Every setting is a key of the TOML file that `--config` names, and most are flags of `localsft train`. A flag overrides the",
        "file. Keys with a dot stand in a table: `lora.rank` is `rank` under `[lora]`.",
        "",
        "| key | flag | values | default | |",
        "|---|---|---|---|---|",
    ]
    for setting in settings():
        default = ", ".join(map(str, setting.default)) if isinstance(setting.default, tuple) else setting.default
        shown = "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        flag = f"`{setting.flag}`" if setting.has_flag else ""
        lines.append(f"| `{setting.key}` | {flag} | {describe(setting)} | {shown} | {setting.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (FOLDER / "cli.md").write_text(command_line(), encoding="utf-8")
    (FOLDER / "settings.md").write_text(settings_table(), encoding="utf-8")
