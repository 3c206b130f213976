"""``localsft verify``: whether an exported folder still is the trained model."""

from __future__ import annotations

from pathlib import Path

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.export import open_export_source, show
from localsft.cli.output import say


@click.command(cls=ExampleCommand, name="verify", example="localsft verify tickets-gguf\nlocalsft verify tickets-gguf --run runs/tickets")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--run", metavar="RUN", help="What it was exported from. Default: what its localsft.json names.")
@click.option("--model", metavar="M", help="Base model. Default: the one the run was trained on.")
@click.option("--engine", type=click.Choice(["auto", "cpu", "mlx"]), default="auto", help="What computes. Default: the run's.")
@click.option("--json", "as_json", is_flag=True, help="The proof as one JSON document on stdout.")
def command(folder: Path, run: str | None, model: str | None, engine: str, as_json: bool) -> None:
    """Check the export in DIR again: files, updates, logits, prompts. Exit code 1 if it is not the trained model."""
    from localsft.export.again import verify_folder
    from localsft.export.proof import read_proof
    from localsft.export.runtimes import runtime_checks_of

    document = read_proof(folder)
    source = open_export_source(trained_from(document) if run is None else run, model, engine=engine)
    runtime = runtime_checks_of(str(document.get("target")), source, str(document.get("type", "")))
    proof = verify_folder(folder, source, runtime)
    show(proof, as_json)
    say(f"{folder} is the trained model" if proof.holds else f"{folder} is NOT the trained model")
    if not proof.holds:
        raise click.exceptions.Exit(1)


def trained_from(document: dict[str, object]) -> str:
    """The run, or else the adapter folder, that a proof names."""
    adapter = Path(str(document.get("adapter", "")))
    return str(adapter.parent) if (adapter.parent / "run.json").is_file() else str(adapter)
