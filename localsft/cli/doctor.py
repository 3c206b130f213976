"""``localsft doctor``: what this machine has for localsft, and what is missing."""

from __future__ import annotations

from typing import Any

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import megabytes, write, write_json


@click.command(cls=ExampleCommand, example="localsft doctor", name="doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(as_json: bool) -> None:
    """What this machine has: processor, kernels, memory, packages, the cache folder.

    Ends with 1 when something is found that would stop a run.
    """
    from localsft.doctor import examine

    report = examine()
    if as_json:
        write_json(report)
    else:
        for key, value in report.items():
            write(f"{key.removesuffix('_bytes').replace('_', ' ') + ':':14}{_words(key, value)}\n")
    if report["problems"]:
        raise click.exceptions.Exit(1)


def _words(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return megabytes(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {version or 'not installed'}" for name, version in value.items())
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return str(value)
