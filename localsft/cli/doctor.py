"""``localsft doctor``: what this machine has for localsft, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import megabytes, write, write_json

if TYPE_CHECKING:
    from localsft.selftest import Check


@click.command(cls=ExampleCommand, example="localsft doctor\nlocalsft doctor --selftest", name="doctor")
@click.option("--selftest", is_flag=True, help="Also prove every set of kernels and every engine on this machine; under a minute.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(selftest: bool, as_json: bool) -> None:
    """What this machine has: processor, kernels, memory, packages, the cache folder.

    gflops are the rates of the kernels' register tiles on one thread, by which the kernel that is used was chosen.
    Ends with 1 when something is found that would stop a run.
    """
    from localsft.doctor import examine

    report = examine()
    checks = prove(quiet=as_json) if selftest else []
    if as_json:
        write_json(report | ({"selftest": [asdict(check) | {"passed": check.passed} for check in checks]} if selftest else {}))
    else:
        for key, value in report.items():
            write(f"{key.removesuffix('_bytes').replace('_', ' ') + ':':14}{_words(key, value)}\n")
    if report["problems"] or not all(check.passed for check in checks):
        raise click.exceptions.Exit(1)


def prove(quiet: bool) -> list[Check]:
    """Run the selftest; unless quiet, show each check as it ends."""
    from localsft.selftest import run

    checks = []
    for check in run():
        checks.append(check)
        if not quiet:
            verdict = "ok    " if check.passed else "FAILED"
            figures = check.problem or f"{check.difference:.1e}, at most {check.limit:.1e}"
            write(f"{verdict} {check.subject:<12}{check.claim:<42}{figures}\n")
    return checks


def _words(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return megabytes(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {version or 'not installed'}" for name, version in value.items())
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return str(value)
