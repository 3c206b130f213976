"""``localsft export``: a trained adapter in the form that other programs load, proven before it is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import say, write_json

if TYPE_CHECKING:
    from localsft.export.proof import Check, Proof
    from localsft.export.source import Source

TARGETS = ("mlx", "peft", "gguf-lora")


@click.command(
    cls=ExampleCommand,
    name="export",
    example=("localsft export runs/tickets --to gguf-lora --out tickets-gguf\nlocalsft export runs/tickets --to peft --out tickets-peft"),
)
@click.argument("run", metavar="RUN")
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="What will load it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new folder.")
@click.option("--model", metavar="M", help="Base model. Default: the one the run was trained on.")
@click.option("--base-model", metavar="ORG/NAME", default="", help="Hugging Face id of the base's original weights, for the model card.")
@click.option("--push", metavar="ORG/NAME", help="Lay the folder out as a hub repository, and say how to upload it; nothing is sent.")
@click.option("--engine", type=click.Choice(["auto", "cpu", "mlx"]), default="auto", help="What computes the proof. Default: the run's.")
@click.option("--json", "as_json", is_flag=True, help="The proof as one JSON document on stdout.")
def command(run: str, target: str, out: Path, model: str | None, base_model: str, push: str | None, engine: str, as_json: bool) -> None:
    """Write the adapter of RUN (a run or an adapter folder) for another program.

    The written file is read back and compared with what was trained; where it is not the same model nothing is left behind and
    the exit code is 1. localsft.json in DIR holds the proof.
    """
    from localsft.export.write import export_adapter

    source = open_export_source(run, model, base_model, engine)
    proof = export_adapter(source, target, out, hub_layout=push is not None)  # type: ignore[arg-type]  # click has checked it
    show(proof, as_json)
    say(f"exported to {out}")
    if push:
        say(f"to upload it: hf upload {push} {out} .")


def open_export_source(run: str, model: str | None, base_model: str = "", engine: str = "auto") -> Source:
    """The adapter that RUN names, on its base."""
    from localsft.answer import find_adapter
    from localsft.cli.train import open_model
    from localsft.export.source import open_source
    from localsft.models.cards import catalogue
    from localsft.runs import open_run

    adapter, trained_on = find_adapter(run)
    opened = open_run(run) if trained_on else None
    name = model or trained_on or base_of(adapter)
    card = catalogue().get(name)
    loaded = open_model(name)
    return open_source(
        adapter,
        loaded,
        opened,
        base_model=base_model or (card.base_model if card else ""),
        licence=card.licence if card else "",
        engine=engine,
    )


def base_of(adapter: Path) -> str:
    """The base that an adapter folder names."""
    from localsft.checkpoint import load_adapter
    from localsft.errors import UsageError

    name = load_adapter(adapter).base_name
    if not name:
        raise UsageError(f"{adapter} does not say what it was trained on; give the base with --model")
    return name


def show(proof: Proof, as_json: bool) -> None:
    """Every check, for a person or as JSON."""
    from dataclasses import asdict

    for check in proof.checks:
        say(f"  {mark(check)} {check.name}: {check.detail}")
    if as_json:
        write_json(
            {
                "target": proof.target,
                "holds": proof.holds,
                "provenance": asdict(proof.provenance),
                "checks": list(map(asdict, proof.checks)),
            }
        )


def mark(check: Check) -> str:
    return {True: "ok  ", False: "FAIL", None: "  - "}[check.ok]
