"""Going on with a run that was stopped: the same base, the same examples, the newest whole checkpoint."""

from __future__ import annotations

from pathlib import Path

from localsft.checkpoint import newest_checkpoint
from localsft.config import TrainConfig, resolve
from localsft.engine.distributed import ALONE, Team
from localsft.errors import InputError, Refused, UsageError
from localsft.plan import count_work
from localsft.runs import Run
from localsft.session import Examples, LoadedModel, check_team, fingerprint, open_fitting, order_hash
from localsft.train import Trainer


def recorded_config(run: Run) -> TrainConfig:
    """The configuration that the run was started with. Raises ``InputError`` for a run.json that has none."""
    config = run.info().get("config")
    if not isinstance(config, dict):
        raise InputError(f"{run.path / 'run.json'} has no config; the run can't be continued")
    return resolve(config, origin=str(run.path / "run.json"))


def resume_trainer(
    run: Run, config: TrainConfig, model: LoadedModel, examples: Examples, cache: Path | None, team: Team = ALONE
) -> tuple[Trainer, list[str]]:
    """A trainer that goes on where the newest valid checkpoint stands, and why newer ones were passed over.

    What the run wrote to metrics.jsonl after that checkpoint is taken back. Raises ``Refused`` when the base model or the examples
    are not those the run was started with, ``InputError`` without a checkpoint, ``UsageError`` when there is nothing left to do.
    """
    info = run.info()
    if info["base"]["hash"] != model.base.hash:
        raise Refused(f"{run.path} was started on another {model.name} ({model.base.path} has changed since); start a new run")
    for name, part in (("train", examples.train), ("valid", examples.valid)):
        if name in info["data"] and info["data"][name]["fingerprint"] != fingerprint(part):
            raise Refused(f"{run.path}: the {name} examples are not those the run was started with; restore them, or start a new run")
        if name in info["data"] and info["data"][name].get("order", order_hash(part)) != order_hash(part):
            raise Refused(
                f"{run.path}: the {name} rows are in another order than when the run was started, so that its batches would be others; "
                "restore the order, or start a new run"
            )
    checkpoint, skipped = newest_checkpoint(run.checkpoints)
    if checkpoint is None:
        raise InputError(f"{run.path} has no valid checkpoint to go on from; start a new run" + "".join(f" ({why})" for why in skipped))
    work = count_work(examples.train, examples.valid, config)
    engine, config, _ = open_fitting(config, model, work, cache, resumed_isa=info.get("engine", {}).get("isa", ""))
    trainer = Trainer(engine, config, examples.train, examples.valid, run, model.ref, team=team)
    trainer.resume(checkpoint)
    if trainer.totals.step >= trainer.plan.steps:
        raise UsageError(f"{run.path} is finished: all {trainer.plan.steps} steps are done")
    check_team(team, config, model, examples, trainer.totals.step)
    if team.rank == 0:
        run.keep_metrics(trainer.totals.step)
    return trainer, skipped
