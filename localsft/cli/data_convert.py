"""``localsft data convert``: a data file in another shape."""

from __future__ import annotations

from pathlib import Path

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import say, visible
from localsft.errors import InputError, Refused, UsageError

SHOWN = 3  # skipped rows whose reason is said


@click.command(
    cls=ExampleCommand, name="convert", example="localsft data convert tickets.csv tickets.jsonl --map prompt=question,completion=answer"
)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--to", "shape", default="openai", help="openai, prompt-completion, alpaca, sharegpt, input-ideal or text.  [default: openai]"
)
@click.option("--map", "mapping", metavar="KEY=COLUMN,...", help="Columns of IN under the keys of a shape.")
@click.option("--skip-bad", is_flag=True, help="Leave out rows that can't be read or written, and count them.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def command(source: Path, out: Path, shape: str, mapping: str | None, skip_bad: bool, force: bool) -> None:
    """Write the rows of IN to OUT (.jsonl, .csv or .tsv, also .gz) in another shape.

    Each row is read back and compared; what has no place in the shape is an error, never lost.
    """
    from localsft.data.convert import convert, find_target
    from localsft.data.formats import open_data, parse_mapping, read_conversations

    columns = parse_mapping(mapping) if mapping else None
    target = find_target(shape)
    label = open_data(source, columns).label
    if out.exists() and source.samefile(out):
        raise UsageError(f"{out}: IN and OUT are the same file; name another OUT")
    if out.exists() and not force:
        raise Refused(f"{out}: the file exists; name another OUT, or pass --force to replace it")
    bad: list[InputError] = []
    count = convert(read_conversations(source, bad.append if skip_bad else None, columns), target, out, bad.append if skip_bad else None)
    say(f"{visible(str(source))}: {label}")
    for error in bad[:SHOWN]:
        say(f"  left out: {visible(str(error))}")
    if len(bad) > SHOWN:
        say(f"  left out: {len(bad) - SHOWN:,} more rows")
    say(f"{visible(str(out))}: {count:,} rows of {target.shape.name}")
