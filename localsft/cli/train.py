"""``localsft train``: from conversations to an adapter."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localsft.cli.command import ExampleCommand, given_settings, setting_options
from localsft.cli.models import download_bar
from localsft.cli.output import megabytes, say, write_json
from localsft.cli.team import joined_team
from localsft.errors import UsageError

if TYPE_CHECKING:
    from localsft.config import TrainConfig
    from localsft.session import Examples, LoadedModel
    from localsft.train import Trainer


@click.command(
    cls=ExampleCommand,
    name="train",
    example="localsft train tickets.jsonl\nlocalsft train examples/billing-support --epochs 2 --rank 16 --out runs/billing",
)
@click.argument("data", required=False)
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="F.toml", help="Settings from a file; flags override it.")
@click.option("--dry-run", is_flag=True, help="Read and pack the data, say what would be done, and train nothing.")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON document on stdout.")
@setting_options
def command(data: str | None, config_file: Path | None, dry_run: bool, as_json: bool, **values: Any) -> None:
    """Train a LoRA adapter on DATA, a .jsonl file of conversations or a folder with train.jsonl and valid.jsonl.

    The run folder gets run.json, metrics.jsonl, checkpoints and the best adapter.
    """
    from localsft.config import read_toml, resolve
    from localsft.runs import create
    from localsft.session import load_examples, make_trainer

    given = given_settings(values) | ({} if data is None else {"data.path": data})
    config = resolve(read_toml(config_file) if config_file else {}, given)
    if not config.data.path:
        raise UsageError("there is no DATA to train on; give a .jsonl file or a folder: localsft train FILE")
    with joined_team() as team:
        model = open_model(config.model, config.quantize)
        examples = load_examples(config, model)
        report_examples(examples)
        report_leakage(config)
        if dry_run:
            dry_run_report(config, examples, as_json)
            return
        make_run = partial(create, config.out, config.data.path)
        carry_out(make_trainer(config, model, examples, make_run, cache=frozen_cache(), team=team), as_json)


def carry_out(trainer: Trainer, as_json: bool) -> None:
    """Train to the end or to an interruption, and say and record what came of it."""
    from dataclasses import asdict

    from localsft.session import result

    run, info = trainer.run, trainer.engine.info
    say(f"run {run.path}: steps {trainer.totals.step + 1} to {trainer.plan.steps} on the {info.name} engine ({info.isa})")
    if trainer.team.size > 1:
        say(f"  {trainer.team.size} ranks train together, each on its share of every step")
    if packing := info.details.get("packing"):
        say(f"  {packing}")
    reason = follow(trainer)
    document, info = result(trainer), trainer.engine.info
    if trainer.team.rank == 0:
        run.write_info(run.info() | {"engine": asdict(info), "result": document | {"reason": reason}})
    say(summary(document))
    if shapes := info.details.get("compiled_shapes"):
        say(f"  mx.compile traced the model {shapes} times in {document['steps']} steps, once for each shape of a batch")
    if as_json:
        write_json(document)
    if reason == "interrupted":
        say(f"to go on: localsft resume {run.path}")
        raise click.exceptions.Exit(130)


def follow(trainer: Trainer) -> str:
    """Train with the display and the signals' handlers; returns why it ended."""
    from localsft.cli.interrupts import stop_request
    from localsft.cli.progress import TrainingDisplay
    from localsft.train import Finished

    with stop_request() as stop, TrainingDisplay(trainer.plan.steps, trainer.totals.step) as display:
        for event in trainer.events(stop):
            display.show(event)
            if isinstance(event, Finished):
                return event.reason
    raise AssertionError("the training loop ends with Finished")


def open_model(name: str, quantize: int | None = None) -> LoadedModel:
    """A base model by catalogue name, path or hub id, fetched with a bar if it is not here; ``quantize``: its copy in so many bits."""
    from localsft.models.cache import locate
    from localsft.session import load_model

    with download_bar(name) as progress:
        located = locate(name, progress, say)
    if quantize is None:
        return load_model(located.name, located.path)
    from localsft.quantized import quantized_copy

    return load_model(located.name, quantized_copy(located.path, quantize, say))


def frozen_cache() -> Path:
    from localsft.models.cache import home

    return home() / "frozen"


def report_examples(examples: Examples) -> None:
    """How many examples there are, and what was left out or changed, with the first place of each."""
    for part, report in examples.reports.items():
        tokens = f"{report.tokens:,} tokens, {report.supervised_tokens:,} supervised"
        say(f"{part}: {report.examples:,} examples of {report.rows:,} rows, {tokens}")
        for what, counter in (("left out", report.skipped), ("note", report.notes)):
            for reason, count in counter.items():
                say(f"  {what}: {reason}: {count:,} (first at {report.first[reason]})")
    if examples.valid and "valid" not in examples.reports:
        say(f"valid: {len(examples.valid):,} of them held out")


def report_leakage(config: TrainConfig) -> None:
    """Refuse validation rows that stand in the training data too; with --allow-leakage, say how many there are."""
    from localsft.session import refuse_leakage

    if leaks := refuse_leakage(config):
        say(f"  warning: {len(leaks):,} validation rows are in the training data, exactly or nearly (first: {leaks[0]})")


def dry_run_report(config: TrainConfig, examples: Examples, as_json: bool) -> None:
    """What a run would do, counted on the first epoch's real batches."""
    from localsft.plan import count_work

    work = count_work(examples.train, examples.valid, config)
    say(f"{work.plan.steps} steps of {config.batch_size} examples, {work.plan.epochs:g} epochs")
    say(f"{work.tokens:,} tokens, of which {work.tokens_computed:,} are computed after packing and sharing; see also: localsft plan")
    if as_json:
        write_json(
            {
                "examples": len(examples.train),
                "valid_examples": len(examples.valid),
                "steps": work.plan.steps,
                "epochs": work.plan.epochs,
                "tokens": work.tokens,
                "tokens_computed": work.tokens_computed,
                "largest_batch_tokens": work.largest.tokens,
                "batches_per_step": work.batches_per_step,
            }
        )


def summary(document: dict[str, Any]) -> str:
    """The result in two lines."""
    lines = [
        f"{document['steps']} steps, {document['tokens']:,} tokens in {document['train_seconds']:.0f} s: "
        f"{document['tokens_per_second']:,.0f} tokens/s, peak memory {megabytes(document['peak_memory_mb'] * 1e6)}"
    ]
    if document["best_valid_loss"] is not None:
        base, best = document["base_valid_loss"], document["best_valid_loss"]
        lines.append(f"valid loss {base:.3f} -> {best:.3f} at step {document['best_step']}; adapter in {document['adapter']}")
    else:
        lines.append(f"adapter in {document['adapter']}; there was no validation data to judge it by")
    return "\n".join(lines)
