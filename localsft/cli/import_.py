"""``localsft import``: adapters of other programs."""

from __future__ import annotations

from pathlib import Path

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import say, write_json


@click.command(cls=ExampleCommand, name="import", example="localsft import ./peft-adapter --model smollm2-135m-instruct --out imported")
@click.argument("adapter", metavar="ADAPTER", type=click.Path(path_type=Path, exists=True))
@click.option("--model", metavar="M", required=True, help="The base model that it was trained on.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new adapter folder.")
@click.option("--json", "as_json", is_flag=True, help="What was read as one JSON document on stdout.")
def command(adapter: Path, model: str, out: Path, as_json: bool) -> None:
    """Read ADAPTER, a PEFT or mlx-lm folder or a GGUF adapter, and write it as an adapter folder of localsft.

    generate --adapter DIR answers with it; train --init DIR goes on from it.
    """
    from dataclasses import asdict

    from localsft.cli.train import open_model
    from localsft.export.importing import import_adapter

    found = import_adapter(adapter, open_model(model), out)
    lora = found.lora
    say(f"{found.format} adapter of {found.linears} linears: rank {lora.rank}, alpha {lora.alpha:g}, {lora.variant}; written to {out}")
    if not found.base_name:
        say("it does not say what it was trained on; on another base than its own it is noise")
    if as_json:
        write_json(asdict(found))
