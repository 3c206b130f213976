"""``localsft data check``: what is wrong with a dataset, before it is trained on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import say, visible, write_json

if TYPE_CHECKING:
    from localsft.data.check.run import CheckReport


@click.command(cls=ExampleCommand, name="check", example="localsft data check tickets.jsonl --valid holdout.jsonl")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--valid", type=click.Path(path_type=Path), metavar="F", help="Holdout file. Default: the data folder's valid file.")
@click.option("--map", "mapping", metavar="KEY=COLUMN,...", help="Columns of DATA under the keys of a shape.")
@click.option("--skip-bad", is_flag=True, help="Make a row that can't be read a finding, and go on.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(data: Path, valid: Path | None, mapping: str | None, skip_bad: bool, as_json: bool) -> None:
    """Look for rows of DATA that teach the wrong thing. Exit code 1 if something must be corrected.

    Errors must be corrected, warnings looked at; notes say what to know.
    """
    from localsft.data.check.run import check
    from localsft.data.formats import parse_mapping
    from localsft.data.load import data_files

    files = data_files(data)
    report = check(files["train"], valid or files.get("valid"), parse_mapping(mapping) if mapping else None, skip_bad)
    show(report)
    if as_json:
        write_json(asdict(report))
    if report.has_errors:
        raise click.exceptions.Exit(1)


def show(report: CheckReport) -> None:
    """The findings for a person."""
    say(f"{visible(report.file)}: {report.rows:,} rows of {report.format}, fingerprint {report.fingerprint[:12]}")
    for finding in report.findings:
        say(f"{finding.severity}: {finding.code}: {visible(finding.message)} ({finding.count:,}); {finding.remedy}")
        for line in finding.lines:
            say(f"    {visible(line)}")
        if finding.lines and finding.count > len(finding.lines):
            say(f"    and {finding.count - len(finding.lines):,} more")
    if not report.findings:
        say("nothing found")
