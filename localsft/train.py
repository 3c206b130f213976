"""The training loop. It names no engine and prints nothing: it steps, measures, saves, and yields what happened.

Loss of a step = Σ w·CE / Σ w over all of its examples, however they were packed; the tail of an epoch is a step like any other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from localsft.batch import Example, LossSum, PackedBatch
from localsft.checkpoint import BaseRef, Checkpoint, save_adapter, save_checkpoint
from localsft.config import TrainConfig
from localsft.data.pack import epoch_order, pack_eval, pack_step
from localsft.engine.base import Engine
from localsft.engine.distributed import ALONE, Team, TeamLost
from localsft.errors import InputError, LocalsftError
from localsft.evaluate import Score, evaluate
from localsft.runs import Run
from localsft.schedule import learning_rate

BAD_STEPS_IN_A_ROW = 5  # steps whose loss or gradient was not finite before the run is given up
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. ``tokens`` as an unpacked, unshared run would process; ``computed`` after packing and sharing."""

    step: int
    steps: int
    epoch: float
    loss: float
    weight: float
    lr: float
    grad_norm: float
    tokens: int
    computed: int
    seconds: float
    applied: bool


@dataclass(frozen=True, slots=True)
class Validated:
    """A complete pass over the validation set, after ``step`` (0: the base, before any step)."""

    step: int
    score: Score
    best: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """``path`` holds everything that the step after ``step`` depends on."""

    step: int
    path: str
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the run: ``reason`` is 'done', 'patience' or 'interrupted'."""

    reason: str
    totals: Totals


Event = Step | Validated | Checkpointed | Finished


@dataclass(slots=True)
class Totals:
    """What a run adds up to; the loop's own state in a checkpoint."""

    step: int = 0
    examples: int = 0
    tokens: int = 0
    tokens_computed: int = 0
    tokens_supervised: int = 0
    train_seconds: float = 0.0
    first_loss: float | None = None
    final_loss: float | None = None
    base_valid_loss: float | None = None
    base_valid_accuracy: float | None = None
    best_valid_loss: float | None = None
    best_valid_accuracy: float | None = None
    best_step: int = 0
    since_best: int = 0
    skipped_steps: int = 0
    bad_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How many steps a run takes, known before the first one."""

    examples: int
    batch_size: int
    per_epoch: int
    steps: int
    epochs: float

    @classmethod
    def of(cls, examples: int, config: TrainConfig) -> Plan:
        per_epoch = math.ceil(examples / config.batch_size)
        steps = config.steps if config.steps is not None else per_epoch * config.epochs
        return cls(examples, config.batch_size, per_epoch, steps, steps / per_epoch)


@dataclass(slots=True)
class Trainer:
    """One run: the engine it drives, the examples, where it is written, how far it is, and who else works on it.

    Every rank of a team goes through the same steps; rank 0 writes.
    """

    engine: Engine
    config: TrainConfig
    train: Sequence[Example]
    valid: Sequence[Example]
    run: Run
    base: BaseRef
    totals: Totals = field(default_factory=Totals)
    team: Team = ALONE

    @property
    def plan(self) -> Plan:
        return Plan.of(len(self.train), self.config)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run, bit by bit as if it had never stopped."""
        if missing := [name for name in Totals.__slots__ if name not in checkpoint.loop]:
            raise InputError(f"{checkpoint.path}: the checkpoint misses {', '.join(missing)}; it was written by another version")
        self.engine.load_adapter(checkpoint.adapter)
        self.engine.load_optimizer_state(checkpoint.optimizer)
        self.totals = Totals(**{name: checkpoint.loop[name] for name in Totals.__slots__})

    def events(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Train to the end, or until ``stop()`` says so between two steps; then a checkpoint is written first.

        In a team all ranks go through the same events; that any is asked to stop stops all. Raises TeamLost, with a checkpoint
        written, when a rank has gone.
        """
        if not self.train:
            raise InputError("there is no training example with a supervised token; see what was left out and why")
        try:
            yield from self._events(stop)
        except TeamLost as error:
            saved = self._checkpoint(interrupted=True)
            raise TeamLost(f"{error}; step {saved.step} is saved in {saved.path}: see to that machine and run localsft resume") from error

    def _events(self, stop: Callable[[], bool]) -> Iterator[Event]:
        self.team.follow_rank_0(self.engine)
        valid = self._pack_valid()
        judged = self.team.any(bool(valid))
        plan, totals = self.plan, self.totals
        if totals.step == 0 and judged:
            yield self._validate(valid)
        while totals.step < plan.steps:
            if self.team.any(stop()):
                yield self._checkpoint(interrupted=True)
                yield Finished("interrupted", totals)
                return
            yield self._step(plan)
            last, epoch_end = totals.step == plan.steps, totals.step % plan.per_epoch == 0
            if judged and (last or (totals.step % self.config.eval_every == 0 if self.config.eval_every else epoch_end)):
                yield self._validate(valid)
            if last or (totals.step % self.config.save_every == 0 if self.config.save_every else epoch_end):
                yield self._checkpoint(interrupted=False)
            if self.config.patience is not None and totals.since_best >= self.config.patience:
                yield Finished("patience", totals)
                return
        if not judged:
            self._save_adapter()
        yield Finished("done", totals)

    def _pack_valid(self) -> list[PackedBatch]:
        data = self.config.data
        return pack_eval(self.team.share(self.valid), data.tokens_per_pack, pack=data.pack, share_prefix=data.share_prefix)

    def _step(self, plan: Plan) -> Step:
        started = time.perf_counter()
        config, totals = self.config, self.totals
        epoch, index = divmod(totals.step, plan.per_epoch)
        order = epoch_order(len(self.train), config.seed, epoch)
        chosen = [self.train[i] for i in order[index * config.batch_size : (index + 1) * config.batch_size]]
        loss = LossSum()
        computed = 0
        mine = self.team.share(chosen)
        for batch in pack_step(mine, config.data.tokens_per_pack, pack=config.data.pack, share_prefix=config.data.share_prefix):
            loss += self.engine.accumulate(batch)
            computed += batch.n_tokens
        if self.team.size > 1:
            self.engine.pool(self.team.sum)
            total, weight, tokens_computed = self.team.total(loss.loss, loss.weight, computed)
            loss, computed = LossSum(total, weight), int(tokens_computed)
        lr = learning_rate(config.optim, totals.step + 1, plan.steps)
        norm = self.engine.step(lr)
        seconds = time.perf_counter() - started

        applied = math.isfinite(norm)
        totals.step += 1
        totals.examples += len(chosen)
        totals.tokens += (tokens := sum(len(example.token_ids) for example in chosen))
        totals.tokens_computed += computed
        totals.tokens_supervised += sum(int((example.target_weights > 0).sum()) for example in chosen)
        totals.train_seconds += seconds
        totals.bad_in_a_row = 0 if applied else totals.bad_in_a_row + 1
        totals.skipped_steps += not applied
        if totals.first_loss is None:
            totals.first_loss = loss.mean
        totals.final_loss = loss.mean
        event = Step(
            totals.step, plan.steps, totals.step / plan.per_epoch, loss.mean, loss.weight, lr, norm, tokens, computed, seconds, applied
        )
        record = {key: value for key, value in asdict(event).items() if key not in ("steps", "computed", "applied")}
        self._record(record | {"tokens_computed": computed} | ({} if applied else {"skipped": True}))
        if totals.bad_in_a_row >= BAD_STEPS_IN_A_ROW:
            raise LocalsftError(
                f"step {totals.step}: the loss or its gradient was not finite {BAD_STEPS_IN_A_ROW} steps in a row, and none of them was "
                f"applied; try a lower --learning-rate (now {config.optim.learning_rate:g}); checkpoints are in {self.run.checkpoints}"
            )
        return event

    def _validate(self, batches: Sequence[PackedBatch]) -> Validated:
        started = time.perf_counter()
        totals = self.totals
        score = evaluate(self.engine, batches, self.team)
        best = totals.best_valid_loss is None or score.loss < totals.best_valid_loss
        if totals.step == 0:
            totals.base_valid_loss, totals.base_valid_accuracy = score.loss, score.accuracy
        if best:
            totals.best_valid_loss, totals.best_valid_accuracy = score.loss, score.accuracy
            totals.best_step, totals.since_best = totals.step, 0
            self._save_adapter()
        else:
            totals.since_best += 1
        record: dict[str, Any] = {"step": totals.step, "epoch": totals.step / self.plan.per_epoch}
        self._record(record | {"valid_loss": score.loss, "valid_token_accuracy": score.accuracy})
        return Validated(totals.step, score, best, time.perf_counter() - started)

    def _checkpoint(self, *, interrupted: bool) -> Checkpointed:
        path = self.run.checkpoints / f"step-{self.totals.step:07d}"
        engine = self.engine
        if self.team.rank == 0:
            save_checkpoint(path, engine.adapter(), engine.optimizer_state(), asdict(self.totals), self.config.lora, self.base)
            self._drop_old_checkpoints()
        return Checkpointed(self.totals.step, str(path), interrupted)

    def _save_adapter(self) -> None:
        if self.team.rank == 0:
            save_adapter(self.run.adapter, self.engine.adapter(), self.config.lora, self.base)

    def _record(self, record: Mapping[str, Any]) -> None:
        if self.team.rank == 0:
            self.run.append_metrics(record)

    def _drop_old_checkpoints(self) -> None:
        import shutil

        for old in sorted(self.run.checkpoints.glob("step-*"))[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
