"""``localsft data stats``: lengths, supervised share, turns, and what packing and sharing save."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleCommand, given_settings, some_settings
from localsft.cli.output import say, visible, write, write_json

if TYPE_CHECKING:
    from localsft.data.stats import Lengths, Packing, Turns

WIDTH = 40  # characters of the longest bar


@click.command(cls=ExampleCommand, name="stats", example="localsft data stats tickets.jsonl")
@click.argument("data", type=click.Path(path_type=Path))
@some_settings("model", "mask", "max_length", "tokens_per_pack", "batch_size")
@click.option("--map", "mapping", metavar="KEY=COLUMN,...", help="Columns of DATA under the keys of a shape.")
@click.option("--skip-bad", is_flag=True, help="Leave out rows that can't be read, and count them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    data: Path,
    mapping: str | None,
    skip_bad: bool,
    as_json: bool,
    **values: str | None,
) -> None:
    """How long the rows of DATA are, how much of them is learned, and what packing and sharing save.

    Of a folder, its training file is looked at.
    """
    import numpy as np

    from localsft.cli.train import open_model
    from localsft.config import resolve
    from localsft.data.formats import parse_mapping, read_conversations
    from localsft.data.load import data_files, load_file
    from localsft.data.stats import Lengths, packing_of, turns_of

    file = data_files(data)["train"]
    columns = parse_mapping(mapping) if mapping else None
    config = resolve(given_settings(values))
    mask, max_length, tokens_per_pack = config.data.mask, config.data.max_length, config.data.tokens_per_pack
    opened = open_model(config.model)
    part = load_file(file, opened.tokenizer, opened.template, mask=mask, max_length=max_length, skip_bad=skip_bad, mapping=columns)
    turns = turns_of(read_conversations(file, (lambda error: None) if skip_bad else None, columns))
    lengths = Lengths.of(np.array([len(example.token_ids) for example in part.examples]))
    supervised = Lengths.of(np.array([int((example.target_weights > 0).sum()) for example in part.examples]))
    packing = packing_of(part.examples, tokens_per_pack, config.batch_size)
    report = part.report
    if as_json:
        write_json({
            "file": str(file),
            "format": report.format,
            "model": opened.name,
            "examples": report.examples,
            "skipped": report.skipped,
            "notes": report.notes,
            "tokens": asdict(lengths),
            "supervised": asdict(supervised),
            "supervised_share": supervised.total / lengths.total,
            "turns": with_text_keys(asdict(turns)),
            "packing": asdict(packing),
        })  # fmt: skip
        return
    say(f"{visible(str(file))}: {report.format}, with the tokenizer of {opened.name}")
    for what, reasons in (("left out", report.skipped), ("note", report.notes)):
        for reason, count in reasons.items():
            say(f"{what}: {count:,} rows: {reason} (first: {visible(report.first.get(reason, ''))})")
    show_turns(turns)
    write(f"\n{'tokens of an example':22}{row(lengths)}\n{'supervised ones':22}{row(supervised)}\n")
    write(f"{supervised.total:,} of {lengths.total:,} tokens are supervised ({supervised.total / lengths.total:.0%})\n\n")
    show_histogram(lengths)
    show_packing(packing, tokens_per_pack, config.batch_size)


def with_text_keys(document: dict[str, Any]) -> dict[str, Any]:
    """JSON objects have no numbers for keys."""
    return document | {"answers": {str(count): rows for count, rows in document["answers"].items()}}


def row(lengths: Lengths) -> str:
    """``min 12  p5 20  ...  mean 80.1``."""
    return "  ".join(f"{name} {value:,}" for name, value in lengths.percentiles.items()) + f"  mean {lengths.mean:,.1f}"


def show_turns(turns: Turns) -> None:
    """Rows by their answers, messages by role, system prompts, tools and tags."""
    answers = ", ".join(f"{count}: {rows:,}" for count, rows in list(turns.answers.items())[:12])
    more = sum(list(turns.answers.values())[12:])
    write(f"{'rows':22}{turns.rows:,}\n{'by number of answers':22}{answers}{f', more: {more:,}' if more else ''}\n")
    write(f"{'messages by role':22}{', '.join(f'{visible(role)} {count:,}' for role, count in turns.roles.items())}\n")
    if turns.rows_with_system:
        write(f"{'system prompts':22}{turns.system_prompts:,}, in {turns.rows_with_system:,} rows\n")
    if turns.rows_with_tools or turns.rows_with_calls:
        write(f"{'tools':22}offered in {turns.rows_with_tools:,} rows, called in {turns.rows_with_calls:,}\n")
    if turns.tags:
        write(f"{'tags':22}{', '.join(f'{visible(tag)} {count:,}' for tag, count in turns.tags.items())}\n")


def show_histogram(lengths: Lengths) -> None:
    """One bar a range of lengths."""
    most = max(count for _, _, count in lengths.histogram)
    width = max(len(f"{below - 1:,}") for _, below, _ in lengths.histogram)
    for first, below, count in lengths.histogram:
        bar = "█" * round(WIDTH * count / most) or ("▏" if count else "")
        write(f"  {first:>{width},} - {below - 1:>{width},}  {bar:{WIDTH}}  {count:,}\n")


def show_packing(packing: Packing, tokens_per_pack: int, batch_size: int) -> None:
    """Tokens that an epoch computes without and with packing and sharing."""
    write(f"\ntokens that an epoch of {packing.examples:,} examples computes, in steps of {batch_size}:\n")
    for name, count in (
        ("padded to the longest of a step", packing.padded),
        ("packed, without padding", packing.packed),
        ("packed, shared prefixes once", packing.shared),
    ):
        write(f"  {name:36}{count:>14,}  {count / packing.padded:4.0%}\n")
    mean = packing.shared / max(packing.packs, 1)
    write(f"  {packing.packs:,} packs of {mean:,.0f} tokens on average, the largest of {packing.largest:,} (limit {tokens_per_pack:,})\n")
