"""``localsft data preview``: rows as the model will see them."""

from __future__ import annotations

import random
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleCommand, given_settings, some_settings
from localsft.cli.output import console, say, visible, write_json
from localsft.cli.pack_tree import pack_lines
from localsft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from localsft.config import TrainConfig
    from localsft.data.conversation import Conversation
    from localsft.data.layout import Pack, Place
    from localsft.data.preview import Piece

FIRST = 3  # rows that are shown if none are named
SUPERVISED, CONTROL, CUT = "bold green", "dim", "bold magenta"


@click.command(cls=ExampleCommand, name="preview", example="localsft data preview tickets.jsonl --row 3")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--row", "lines", type=click.IntRange(min=1), metavar="N", multiple=True, help="The row on this line; give it again for more."
)
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="So many rows, drawn at random.")
@click.option("--seed", type=int, default=0, help="Another seed, another sample.  [default: 0]")
@some_settings("model", "mask", "max_length", "batch_size", "tokens_per_pack", "pack", "share_prefix")
@click.option("--map", "mapping", metavar="KEY=COLUMN,...", help="Columns of DATA under the keys of a shape.")
@click.option("--ids", is_flag=True, help="Show the token ids of each piece.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    data: Path,
    lines: tuple[int, ...],
    sample: int | None,
    seed: int,
    mapping: str | None,
    ids: bool,
    as_json: bool,
    **values: str | None,
) -> None:
    """Show rows of DATA exactly as the model will see them: «supervised» tokens are those whose loss counts.

    The text is that of the token ids, not of the row; ⏎ marks the token that ends a turn, and ✂3→1 where a beginning ends that 3
    of the rows share, after which 1 goes on. Below stand the packs, as a run would lay these rows if it took them in this order.
    """
    from localsft.cli.train import open_model
    from localsft.config import resolve
    from localsft.data.formats import parse_mapping, read_conversations
    from localsft.data.layout import lay_out
    from localsft.data.load import data_files
    from localsft.data.preview import bos_count, pieces_of
    from localsft.data.render import render

    if lines and sample:
        raise UsageError("give either --row or --sample, not both")
    config = resolve(given_settings(values))
    options = config.data
    rows = read_conversations(data_files(data)["train"], None, parse_mapping(mapping) if mapping else None)
    chosen = choose(rows, lines, sample, seed)
    if missing := sorted(set(lines) - {conversation.line for conversation in chosen}):
        raise UsageError(f"{data}: no row starts on line {missing[0]}; leave --row away to see the first ones")
    opened = open_model(config.model)
    rendered = [render(row, opened.tokenizer, opened.template, mask=options.mask, max_length=options.max_length) for row in chosen]
    examples = [example for row in rendered for example in row.examples]
    packs = lay_out(
        examples,
        batch_size=config.batch_size,
        tokens_per_pack=options.tokens_per_pack,
        pack=options.pack,
        share_prefix=options.share_prefix,
    )
    places = {place.example: (pack, place) for pack in packs for place in pack.places}
    names: list[str] = []
    documents: list[dict[str, Any]] = []
    for conversation, result in zip(chosen, rendered, strict=True):
        source = visible(conversation.source)
        shown = []
        for number, example in enumerate(result.examples, 1):
            pack, place = places[len(names)]
            names.append(source if len(result.examples) == 1 else f"{source} ({number} of {len(result.examples)})")
            pieces = pieces_of(example, opened.tokenizer, place.cuts)
            bos = bos_count(example, opened.tokenizer)
            supervised = int((example.target_weights > 0).sum())
            say(f"{names[-1]}: {len(example.token_ids):,} tokens, {supervised:,} supervised, {bos} BOS")
            if bos > 1:
                say("  warning: the chat template begins with a second BOS token")
            show(pieces, place, opened.tokenizer.stop_ids, ids)
            shown.append({
                "tokens": len(example.token_ids), "supervised": supervised, "bos": bos, "step": pack.step, "pack": pack.number,
                "shared": place.shared, "parts": [asdict(part) for part in place.parts],
                "pieces": [{"text": piece.text, "ids": list(piece.ids), "weight": piece.weight} for piece in pieces],
            })  # fmt: skip
        for what, reasons in (("left out", result.skipped), ("note", result.notes)):
            for reason in reasons:
                say(f"{source}: {what}: {reason}")
        documents.append({
            "source": conversation.source, "examples": shown, "skipped": list(result.skipped), "notes": list(result.notes)
        })  # fmt: skip
    show_packs(packs, names, config)
    if as_json:
        write_json({
            "rows": documents,
            "packs": [
                {"step": pack.step, "pack": pack.number, "tokens": pack.tokens, "alone": pack.alone, "parents": pack.parents}
                for pack in packs
            ],
            "batch_size": config.batch_size,
            "tokens_per_pack": options.tokens_per_pack,
            "packing": options.pack,
            "sharing": options.pack and options.share_prefix,
        })  # fmt: skip


def choose(rows: Iterable[Conversation], lines: Iterable[int], sample: int | None, seed: int) -> list[Conversation]:
    """The rows of some lines, a random sample in the order of the file (one pass, reservoir), or the first rows."""
    if lines:
        return list(rows_on(rows, set(lines)))
    if not sample:
        return list(islice(rows, FIRST))
    source = random.Random(seed)
    kept: list[Conversation] = []
    for i, conversation in enumerate(rows):
        if i < sample:
            kept.append(conversation)
        elif (place := source.randrange(i + 1)) < sample:
            kept[place] = conversation
    return sorted(kept, key=lambda conversation: conversation.line)


def rows_on(rows: Iterable[Conversation], wanted: set[int]) -> Iterator[Conversation]:
    """The first row on each of the lines; behind the last of them nothing is read."""
    for conversation in rows:
        if conversation.line in wanted:
            yield conversation
            wanted.remove(conversation.line)
            if not wanted:
                return


def show(pieces: list[Piece], place: Place, stop_ids: frozenset[int], ids: bool) -> None:
    """Print the pieces; off a terminal the signs « » stand for the colour of supervised ones."""
    from rich.text import Text

    screen = console()
    text = Text()
    open_sign = False
    marks = [(one.end, f"✂{one.examples}→{other.examples} ") for one, other in pairwise(place.parts) if one.end in place.cuts]
    for piece in pieces:
        while marks and marks[0][0] <= piece.start:
            text.append(marks.pop(0)[1], CUT)
        if piece.is_supervised != open_sign:
            text.append("«" if piece.is_supervised else "»", SUPERVISED)
            open_sign = piece.is_supervised
        style = SUPERVISED if piece.is_supervised else CONTROL if piece.is_control else ""
        text.append(visible(piece.text), style)
        if piece.is_supervised and piece.ids[-1] in stop_ids:
            text.append("⏎", SUPERVISED)
        if piece.is_supervised and piece.weight != 1:
            text.append(f"(weight {piece.weight:g})", CONTROL)
        if ids:
            text.append(f"[{' '.join(map(str, piece.ids))}]", "cyan")
    if open_sign:
        text.append("»", SUPERVISED)
    screen.print(text)


def show_packs(packs: list[Pack], names: list[str], config: TrainConfig) -> None:
    """Print the trees of the packs, and under which options they came to be."""
    options = config.data
    how = (
        "each example alone"
        if not options.pack
        else f"at most {options.tokens_per_pack:,} tokens a pack{'' if options.share_prefix else ', nothing shared'}"
    )
    say(f"\npacks of these {len(names)} examples in this order (a run shuffles the rows), {config.batch_size} a step, {how}:")
    for line in pack_lines(packs, names, options.tokens_per_pack):
        say(line)
