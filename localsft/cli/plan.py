"""``localsft plan``: memory, tokens, steps and time of a run that is not started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from localsft.cli.command import ExampleCommand, given_settings, setting_options
from localsft.cli.output import megabytes, say, write, write_json
from localsft.errors import UsageError


@click.command(cls=ExampleCommand, name="plan", example="localsft plan tickets.jsonl\nlocalsft plan tickets.jsonl --layers 8 --json")
@click.argument("data", required=False)
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="F.toml", help="Settings from a file; flags override it.")
@click.option("--json", "as_json", is_flag=True, help="The plan as one JSON document on stdout.")
@setting_options
def command(data: str | None, config_file: Path | None, as_json: bool, **values: Any) -> None:
    """What training on DATA would take with these settings: memory, tokens, steps, time. Nothing is trained.

    The time comes from running one batch on this machine for two seconds.
    """
    from localsft.cli.train import open_model, report_examples
    from localsft.config import read_toml, resolve
    from localsft.session import examine, load_examples

    given = given_settings(values) | ({} if data is None else {"data.path": data})
    config = resolve(read_toml(config_file) if config_file else {}, given)
    if not config.data.path:
        raise UsageError("there is no DATA to plan for; give a .jsonl file or a folder: localsft plan FILE")
    model = open_model(config.model, config.quantize)
    examples = load_examples(config, model)
    report_examples(examples)
    say("running one batch to measure this machine ...")
    document = examine(config, model, examples)
    if as_json:
        write_json(document)
        return
    shared = 1 - document["tokens_computed"] / document["tokens"]
    write(f"steps:    {document['steps']} of {config.batch_size} examples, {document['epochs']:g} epochs\n")
    write(f"tokens:   {document['tokens']:,}, of which packing and sharing save {shared:.0%}\n")
    write(f"memory:   {megabytes(document['peak_memory_mb'] * 1e6)} of {megabytes(document['available_memory_mb'] * 1e6)} free")
    write(f", packs of {document['tokens_per_pack']} tokens{', layers recomputed' if document['recompute_layers'] else ''}\n")
    write(f"speed:    {document['tokens_per_second']:,.0f} tokens/s ({document['engine']}, {document['isa']})\n")
    write(f"time:     about {_duration(document['train_seconds'])}, and {_duration(document['valid_seconds'])} for each validation\n")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
