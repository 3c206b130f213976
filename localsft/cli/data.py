"""``localsft data ...``: what is in a data file, what the model will see of it, and what is wrong with it."""

from __future__ import annotations

import importlib

import click

from localsft.cli.command import ExampleGroup

COMMANDS: tuple[str, ...] = ("check", "preview", "stats", "split", "convert", "diff")


class DataGroup(ExampleGroup):
    """Each command is in a module of its own, which is imported when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"localsft.cli.data_{cmd_name}").command
        return command


@click.group(cls=DataGroup, example="localsft data check tickets.jsonl\nlocalsft data preview tickets.jsonl --row 3", name="data")
def command() -> None:
    """Look at data before it is trained on: check, preview, measure, split, convert, compare."""
