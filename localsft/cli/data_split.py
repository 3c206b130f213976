"""``localsft data split``: one file as train, valid and test files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import say, visible, write_json
from localsft.errors import InputError, Refused, UsageError


@click.command(cls=ExampleCommand, name="split", example="localsft data split tickets.jsonl --out tickets --valid 0.1 --test 0.1")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for train.jsonl, valid.jsonl, test.jsonl."
)
@click.option("--valid", type=click.FloatRange(0, 1, max_open=True), default=0.1, help="Fraction for validation.  [default: 0.1]")
@click.option("--test", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Fraction for a test set.  [default: 0]")
@click.option("--seed", type=int, default=0, help="Another seed, another split.  [default: 0]")
@click.option(
    "--by", type=click.Choice(["auto", "tag", "label", "none"]), default="auto", help="What keeps its share in every part.  [default: auto]"
)
@click.option("--map", "mapping", metavar="KEY=COLUMN,...", help="Columns of FILE under the keys of a shape.")
@click.option("--skip-bad", is_flag=True, help="Leave out rows that can't be read, and count them.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@click.option("--json", "as_json", is_flag=True, help="The counts as one JSON document on stdout.")
def command(
    file: Path, out: Path, valid: float, test: float, seed: int, by: Any, mapping: str | None, skip_bad: bool, force: bool, as_json: bool
) -> None:
    """Split FILE so that near duplicates stay on one side; the order of its rows does not matter.

    The rows are written as OpenAI chat, in the order of FILE.
    """
    from localsft.data.convert import convert, find_target
    from localsft.data.formats import parse_mapping, read_conversations
    from localsft.data.split import split, strata_of

    fractions = {part: fraction for part, fraction in (("valid", valid), ("test", test)) if fraction > 0}
    if not fractions or sum(fractions.values()) >= 1:
        raise UsageError("--valid and --test must add up to more than 0 and less than 1")
    parts = ("train", *fractions)
    there = [out / f"{part}.jsonl" for part in ("train", "valid", "test") if (out / f"{part}.jsonl").exists()]
    if there and not force:
        raise Refused(f"{there[0]}: the file exists; name another --out, or pass --force to replace it")
    bad: list[InputError] = []
    columns = parse_mapping(mapping) if mapping else None
    conversations = list(read_conversations(file, bad.append if skip_bad else None, columns))
    chosen = split(conversations, fractions, seed=seed, by=by)
    if missing := [part for part in parts if part not in chosen]:
        raise InputError(f"{file}: too few different rows for a {missing[0]} part; near duplicates stay together, so add rows that differ")
    out.mkdir(parents=True, exist_ok=True)
    target = find_target("openai")
    for part in parts:
        convert([row for row, own in zip(conversations, chosen, strict=True) if own == part], target, out / f"{part}.jsonl")
    if force:
        for part in {"train", "valid", "test"} - set(parts):  # of an earlier split: its rows are now in other parts
            (out / f"{part}.jsonl").unlink(missing_ok=True)
    counts = Counter(chosen)
    strata: dict[str, Counter[str]] = {}
    for stratum, part in zip(strata_of(conversations, by), chosen, strict=True):
        strata.setdefault(stratum, Counter())[part] += 1
    for part in parts:
        say(f"{visible(str(out / f'{part}.jsonl'))}: {counts[part]:,} rows")
    if len(strata) > 1:
        width = min(40, max(map(len, strata)))
        for stratum in sorted(strata):
            say(f"  {visible(stratum)[:40] or '(none)':{width}}  " + "  ".join(f"{part} {strata[stratum][part]:,}" for part in parts))
    if bad:
        say(f"left out: {len(bad):,} rows (first: {visible(str(bad[0]))})")
    if as_json:
        write_json({"rows": dict(counts), "left_out": len(bad), "strata": {name: dict(count) for name, count in sorted(strata.items())}})
