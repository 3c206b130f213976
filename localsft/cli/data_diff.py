"""``localsft data diff``: what changed between two versions of a dataset."""

from __future__ import annotations

from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import visible, write, write_json

if TYPE_CHECKING:
    from localsft.data.conversation import Conversation

SHOWN = 70  # characters of a row


@click.command(cls=ExampleCommand, name="diff", example="localsft data diff tickets-1.jsonl tickets-2.jsonl")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--limit", type=click.IntRange(min=0), default=20, help="Rows shown of each kind.  [default: 20]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(a: Path, b: Path, limit: int, as_json: bool) -> None:
    """Rows that were added, removed or edited from A to B. The order of rows does not count.

    Of a folder, its training file is compared.
    """
    from localsft.data.diff import compare, what_changed
    from localsft.data.formats import read_conversations
    from localsft.data.load import data_files
    from localsft.data.texts import answer_text

    diff = compare(*(read_conversations(data_files(path)["train"]) for path in (a, b)))
    if as_json:
        write_json({
            "fingerprints": list(diff.fingerprints),
            "unchanged": diff.unchanged,
            "added": [row.source for row in diff.added],
            "removed": [row.source for row in diff.removed],
            "edited": [{"before": e.before.source, "after": e.after.source, "changed": what_changed(e)} for e in diff.edited],
        })  # fmt: skip
        return
    counts = f"{len(diff.added):,} added, {len(diff.removed):,} removed, {len(diff.edited):,} edited, {diff.unchanged:,} unchanged"
    write(f"{counts}; fingerprints {diff.fingerprints[0][:12]} -> {diff.fingerprints[1][:12]}\n")
    for sign, rows in (("+", diff.added), ("-", diff.removed)):
        for row in rows[:limit]:
            write(f"{sign} {visible(row.source)}: {shown(row)}\n")
        if len(rows) > limit:
            write(f"{sign} and {len(rows) - limit:,} more\n")
    for edit in diff.edited[:limit]:
        write(f"~ {visible(edit.before.source)} -> {visible(edit.after.source)}: {what_changed(edit)}\n")
        if answer_text(edit.before) != answer_text(edit.after):
            write(f"    {visible(words_changed(answer_text(edit.before), answer_text(edit.after)))}\n")
    if len(diff.edited) > limit:
        write(f"~ and {len(diff.edited) - limit:,} more\n")


def shown(row: Conversation) -> str:
    """The beginning of a row's text, on one line."""
    from localsft.data.texts import whole_text

    text = " ".join(whole_text(row).split())
    return visible(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def words_changed(before: str, after: str) -> str:
    """``the [-old-]{+new+} words``, with a few words around each change."""
    old, new = before.split(), after.split()
    out: list[str] = []
    for kind, i, i2, j, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            same = old[i:i2]
            out.append(" ".join(same if len(same) <= 8 else [*same[:3], "…", *same[-3:]]))
            continue
        removed, added = " ".join(old[i:i2]), " ".join(new[j:j2])
        out.append((f"[-{removed}-]" if removed else "") + (f"{{+{added}+}}" if added else ""))
    return " ".join(out)
