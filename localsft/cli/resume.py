"""``localsft resume``: go on with a run that was stopped."""

from __future__ import annotations

import click

from localsft.cli.command import ExampleCommand
from localsft.cli.output import say
from localsft.cli.team import joined_team


@click.command(cls=ExampleCommand, name="resume", example="localsft resume runs/2026-11-22-tickets-1")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="The result as one JSON document on stdout.")
def command(run: str, as_json: bool) -> None:
    """Go on with RUN, a run folder or its name in runs/, from its newest checkpoint.

    The settings are those that the run was started with; it ends as if it had never stopped.
    """
    from localsft.cli.train import carry_out, frozen_cache, open_model, report_examples
    from localsft.resume import recorded_config, resume_trainer
    from localsft.runs import open_run
    from localsft.session import load_examples

    opened = open_run(run)
    config = recorded_config(opened)
    with joined_team() as team:
        model = open_model(config.model, config.quantize)
        examples = load_examples(config, model)
        report_examples(examples)
        trainer, skipped = resume_trainer(opened, config, model, examples, frozen_cache(), team)
        for why in skipped:
            say(f"passed over: {why}")
        carry_out(trainer, as_json)
