"""``localsft bench``: this machine's own figures in a minute."""

from __future__ import annotations

from dataclasses import asdict

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import say, write, write_json


@click.command(cls=ExampleCommand, name="bench", example="localsft bench\nlocalsft bench --model my-model.gguf --threads 4 --json")
@click.option("--model", default="smollm2-135m-instruct", show_default=True, metavar="M", help="Base model: a name, a folder, a GGUF file.")
@click.option("--engine", type=click.Choice(["auto", "cpu", "mlx"]), default="auto", show_default=True, help="What computes.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the cpu engine. Default: one for each physical core.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(model: str, engine: str, threads: int | None, as_json: bool) -> None:
    """Measure matrix products, training and generation on this machine, and say what that means for a dataset."""
    from localsft.benchmark import epoch_seconds, measure
    from localsft.cli.train import open_model

    loaded = open_model(model)
    say(f"measuring with {loaded.name}; other programs that run meanwhile make the figures worse")
    figures = []
    for figure in measure(loaded, engine, threads):
        figures.append(figure)
        if not as_json:
            share = f"  {figure.of_peak:.0%} of the peak" if figure.of_peak else ""
            write(f"{figure.name:<62}{figure.value:>9,.0f} {figure.unit}{share}\n")
    step = next(figure for figure in figures if figure.name.startswith("training"))
    minutes = epoch_seconds(step.value) / 60
    if as_json:
        write_json({"model": loaded.name, "figures": [asdict(figure) for figure in figures], "minutes_per_1000_examples_of_400": minutes})
    else:
        write(f"1,000 examples of 400 tokens: {minutes:.0f} minutes an epoch, less what packing and shared prefixes save\n")
