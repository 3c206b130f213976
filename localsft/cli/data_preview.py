"""``localsft data preview``: rows as the model will see them."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleCommand, given_settings, some_settings
from localsft.cli.output import console, say, visible, write_json
from localsft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from localsft.data.conversation import Conversation
    from localsft.data.preview import Piece

FIRST = 3  # rows that are shown if none are named
SUPERVISED, CONTROL = "bold green", "dim"


@click.command(cls=ExampleCommand, name="preview", example="localsft data preview tickets.jsonl --row 3")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--row", type=click.IntRange(min=1), metavar="N", help="The row on this line of the file.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="So many rows, drawn at random.")
@click.option("--seed", type=int, default=0, help="Another seed, another sample.  [default: 0]")
@some_settings("model", "mask", "max_length")
@click.option("--map", "mapping", metavar="KEY=COLUMN,...", help="Columns of DATA under the keys of a shape.")
@click.option("--ids", is_flag=True, help="Show the token ids of each piece.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    data: Path,
    row: int | None,
    sample: int | None,
    seed: int,
    mapping: str | None,
    ids: bool,
    as_json: bool,
    **values: str | None,
) -> None:
    """Show rows of DATA exactly as the model will see them: «supervised» tokens are those whose loss counts.

    The text is that of the token ids, not of the row; ⏎ marks the token that ends a turn.
    """
    from localsft.cli.train import open_model
    from localsft.config import resolve
    from localsft.data.formats import parse_mapping, read_conversations
    from localsft.data.load import data_files
    from localsft.data.preview import bos_count, pieces_of
    from localsft.data.render import render

    if row and sample:
        raise UsageError("give either --row or --sample, not both")
    config = resolve(given_settings(values))
    rows = read_conversations(data_files(data)["train"], None, parse_mapping(mapping) if mapping else None)
    chosen = choose(rows, row, sample, seed)
    if not chosen:
        raise UsageError(f"{data}: no row starts on line {row}; leave --row away to see the first ones")
    opened = open_model(config.model)
    documents: list[dict[str, Any]] = []
    for conversation in chosen:
        rendered = render(conversation, opened.tokenizer, opened.template, mask=config.data.mask, max_length=config.data.max_length)
        examples = []
        for example in rendered.examples:
            pieces = pieces_of(example, opened.tokenizer)
            bos = bos_count(example, opened.tokenizer)
            supervised = int((example.target_weights > 0).sum())
            examples.append({"tokens": len(example.token_ids), "supervised": supervised, "bos": bos, "pieces": pieces})
            say(f"{visible(conversation.source)}: {len(example.token_ids):,} tokens, {supervised:,} supervised, {bos} BOS")
            if bos > 1:
                say("  warning: the chat template begins with a second BOS token")
            show(pieces, opened.tokenizer.stop_ids, ids)
        for what, reasons in (("left out", rendered.skipped), ("note", rendered.notes)):
            for reason in reasons:
                say(f"{visible(conversation.source)}: {what}: {reason}")
        documents.append({
            "source": conversation.source, "examples": examples, "skipped": list(rendered.skipped), "notes": list(rendered.notes)
        })  # fmt: skip
    if as_json:
        write_json([*map(as_document, documents)])


def choose(rows: Iterable[Conversation], row: int | None, sample: int | None, seed: int) -> list[Conversation]:
    """The row of a line, a random sample in the order of the file (one pass, reservoir), or the first rows."""
    if row:
        return list(islice((conversation for conversation in rows if conversation.line == row), 1))
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


def show(pieces: list[Piece], stop_ids: frozenset[int], ids: bool) -> None:
    """Print the pieces; off a terminal the signs « » stand for the colour of supervised ones."""
    from rich.text import Text

    screen = console()
    text = Text()
    open_sign = False
    for piece in pieces:
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


def as_document(document: dict[str, Any]) -> dict[str, Any]:
    """Pieces as JSON objects."""
    examples = [
        example | {"pieces": [{"text": piece.text, "ids": list(piece.ids), "weight": piece.weight} for piece in example["pieces"]]}
        for example in document["examples"]
    ]
    return document | {"examples": examples}
