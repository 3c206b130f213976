"""``localsft data check``: what is wrong with a dataset, before it is trained on."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localsft.cli.command import ExampleCommand, given_settings, some_settings
from localsft.cli.output import say, visible, write_json
from localsft.errors import UsageError

if TYPE_CHECKING:
    from localsft.data.check.coverage import Coverage
    from localsft.data.check.run import CheckReport


@click.command(cls=ExampleCommand, name="check", example="localsft data check tickets.jsonl --valid holdout.jsonl")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--valid", type=click.Path(path_type=Path), metavar="F", help="Holdout file. Default: the data folder's valid file.")
@some_settings("model", "mask", "max_length")
@click.option(
    "--few", type=click.IntRange(min=1), default=5, metavar="N", help="Name tags and groups of like prompts with fewer rows.  [default: 5]"
)
@click.option("--no-tokens", is_flag=True, help="Leave out the checks that need a base model; none is fetched then.")
@click.option("--map", "mapping", metavar="KEY=COLUMN,...", help="Columns of DATA under the keys of a shape.")
@click.option("--skip-bad", is_flag=True, help="Make a row that can't be read a finding, and go on.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    data: Path,
    valid: Path | None,
    few: int,
    no_tokens: bool,
    mapping: str | None,
    skip_bad: bool,
    as_json: bool,
    **values: str | None,
) -> None:
    """Look for rows of DATA that teach the wrong thing. Exit code 1 if something must be corrected.

    Errors must be corrected, warnings looked at; notes say what to know.
    """
    from localsft.cli.train import open_model
    from localsft.config import resolve
    from localsft.data.check.run import check
    from localsft.data.check.tokens import TokenRules
    from localsft.data.formats import parse_mapping
    from localsft.data.load import data_files

    files = data_files(data)
    if no_tokens and values["model"]:
        raise UsageError("give either --model or --no-tokens, not both")
    config = resolve(given_settings(values))
    columns = parse_mapping(mapping) if mapping else None
    opened = None if no_tokens else open_model(config.model)
    rules = TokenRules(opened.tokenizer, opened.template, config.data.mask, config.data.max_length) if opened else None
    report = check(files["train"], valid or files.get("valid"), columns, skip_bad, rules, few)
    show(report, opened.name if opened else "")
    if as_json:
        write_json(asdict(report) | {"model": opened.name if opened else None})
    if report.has_errors:
        raise click.exceptions.Exit(1)


def show(report: CheckReport, model: str) -> None:
    """The findings for a person."""
    say(f"{visible(report.file)}: {report.rows:,} rows of {report.format}, fingerprint {report.fingerprint[:12]}")
    if report.tokens:
        say(f"with {model}: {report.tokens['tokens']:,} tokens, {report.tokens['supervised']:,} supervised")
    low, median, high = report.style.lengths
    opening, rows = next(iter(report.style.openings.items()), ("", 0))
    languages = ", ".join(f"{language or 'unclear'} {rows:,}" for language, rows in list(report.style.languages.items())[:4])
    say(
        f"answers: {median:,} characters ({low:,} to {high:,} for nine of ten), {report.style.markdown:.0%} with Markdown, "
        f"most frequent opening {visible(opening)!r} ({rows:,}), languages: {languages}"
    )
    if report.coverage:
        show_coverage(report.coverage, report.rows)
    for finding in report.findings:
        say(f"{finding.severity}: {finding.code}: {visible(finding.message)} ({finding.count:,}); {finding.remedy}")
        for line in finding.lines:
            say(f"    {visible(line)}")
        if finding.lines and finding.count > len(finding.lines):
            say(f"    and {finding.count - len(finding.lines):,} more")
    if not report.findings:
        say("nothing found")


def show_coverage(coverage: Coverage, rows: int) -> None:
    """Figures of holdout rows that nothing is near to, and of prompts that few others are like."""
    parts = []
    if coverage.holdout_rows is not None:
        parts.append(f"{coverage.holdout_alone:,} of {coverage.holdout_rows:,} holdout rows have no near training row")
    if coverage.small_groups is None:
        parts.append(f"compared with {coverage.rows:,} of {rows:,} training rows, so no groups were looked for")
    else:
        parts.append(
            f"{coverage.small_groups:,} groups of fewer than {coverage.few} like prompts, {coverage.alone:,} prompts like no other"
        )
    say(f"coverage (near: a cosine of {coverage.limit:.2f}): {'; '.join(parts)}")
