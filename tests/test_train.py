"""The training loop: steps, validation, the best adapter, checkpoints, a resume that goes on bit by bit, bad steps."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.batch import Example, LossSum
from localsft.checkpoint import BaseRef, load_adapter, newest_checkpoint
from localsft.config import OptimConfig, TrainConfig, resolve
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.reference import ReferenceOps
from localsft.errors import InputError, LocalsftError
from localsft.runs import Run, create
from localsft.schedule import learning_rate
from localsft.train import Checkpointed, Finished, Step, Trainer, Validated
from tests.engine.cpu.cases import Golden, load_golden

SETTINGS = {"lora.rank": 4, "batch_size": 2, "optim.learning_rate": 0.02, "optim.warmup": 0}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("tiny_tied")


def trainer(golden: Golden, path: Path, valid: bool = True, **settings: Any) -> Trainer:
    config = resolve(SETTINGS | settings)
    engine = CpuEngine(golden.base, config.lora, config.optim, ReferenceOps(), seed=config.seed)
    examples = golden.examples
    run = create(str(path), "data")
    return Trainer(engine, config, examples, examples[:2] if valid else [], run, BaseRef("tiny", golden.base.hash, 3))


def test_a_run_from_start_to_end(golden: Golden, tmp_path: Path) -> None:
    t = trainer(golden, tmp_path / "run", epochs=4)
    events = list(t.events())
    steps = [event for event in events if isinstance(event, Step)]
    validations = [event for event in events if isinstance(event, Validated)]
    assert [step.step for step in steps] == list(range(1, 13))  # 5 examples by 2: the tail is a step of its own
    assert sum(step.tokens for step in steps[:3]) == 82
    assert [validation.step for validation in validations] == [0, 3, 6, 9, 12]
    assert isinstance(events[-1], Finished) and events[-1].reason == "done"
    assert validations[-1].score.loss < validations[0].score.loss
    records = t.run.metrics()
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert {"step", "epoch", "loss", "weight", "lr", "grad_norm", "tokens", "tokens_computed", "seconds"} <= records[1].keys()
    assert [r["step"] for r in records if "valid_loss" in r] == [0, 3, 6, 9, 12]
    best = min(validations, key=lambda validation: validation.score.loss)
    saved = load_adapter(t.run.adapter)
    assert t.totals.best_step == best.step and saved.base_hash == golden.base.hash
    assert saved.lora == t.config.lora


def test_the_first_validation_is_the_base_model(golden: Golden, tmp_path: Path) -> None:
    t = trainer(golden, tmp_path / "run", epochs=1)
    first = next(iter(t.events()))
    assert isinstance(first, Validated) and first.step == 0
    values = golden.values
    end = int(values["starts"][2])
    weights, logprobs = values["weights"][:end].astype(float), values["base/logprobs"][:end]
    assert first.score.loss == pytest.approx(-(weights @ logprobs) / weights.sum(), rel=1e-5)


def test_the_best_adapter_is_kept_not_the_last(golden: Golden, tmp_path: Path) -> None:
    t = trainer(golden, tmp_path / "run", epochs=6, **{"optim.learning_rate": 0.08, "optim.schedule": "constant"})
    t = dataclasses.replace(t, train=t.train[:3], valid=t.train[3:4])  # it learns its examples by heart
    kept: dict[int, Any] = {0: t.engine.adapter()}
    for event in t.events():
        if isinstance(event, Validated):
            kept[event.step] = t.engine.adapter()
    assert t.totals.best_step < t.totals.step  # at this rate the loss goes up again
    saved = load_adapter(t.run.adapter).tensors
    assert all(np.array_equal(saved[name], value) for name, value in kept[t.totals.best_step].items())


def test_patience_stops_early(golden: Golden, tmp_path: Path) -> None:
    t = trainer(golden, tmp_path / "run", epochs=50, patience=2, **{"optim.learning_rate": 0.3, "optim.schedule": "constant"})
    *_, last = t.events()
    assert isinstance(last, Finished) and last.reason == "patience"
    assert t.totals.step == t.totals.best_step + 2 * 3


def test_resume_equals_never_stopped(golden: Golden, tmp_path: Path) -> None:
    whole = trainer(golden, tmp_path / "whole", epochs=4)
    losses = [event.loss for event in whole.events() if isinstance(event, Step)]

    stopped = trainer(golden, tmp_path / "stopped", epochs=4)
    found: list[float] = []
    for event in stopped.events(stop=lambda: len(found) >= 5):
        if isinstance(event, Step):
            found.append(event.loss)
    assert isinstance(event, Finished) and event.reason == "interrupted" and len(found) == 5
    checkpoint, skipped = newest_checkpoint(stopped.run.checkpoints)
    assert checkpoint is not None and not skipped
    again = dataclasses.replace(trainer(golden, tmp_path / "other", epochs=4), run=Run(tmp_path / "stopped"))
    again.resume(checkpoint)
    found += [event.loss for event in again.events() if isinstance(event, Step)]
    assert found == losses
    one, other = load_adapter(whole.run.adapter).tensors, load_adapter(again.run.adapter).tensors
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert again.totals.best_valid_loss == whole.totals.best_valid_loss
    assert [r["step"] for r in again.run.metrics() if "loss" in r] == list(range(1, 13))


def test_a_damaged_checkpoint_is_passed_over_and_said(golden: Golden, tmp_path: Path) -> None:
    t = trainer(golden, tmp_path / "run", epochs=2)
    paths = [Path(event.path) for event in t.events() if isinstance(event, Checkpointed)]
    newest = paths[-1] / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(bytes(content))
    checkpoint, skipped = newest_checkpoint(t.run.checkpoints)
    assert checkpoint is not None and checkpoint.path == paths[-2]
    assert len(skipped) == 1 and "optimizer.safetensors" in skipped[0]


def test_bad_steps_are_not_applied_and_end_the_run(golden: Golden, tmp_path: Path) -> None:
    t = trainer(golden, tmp_path / "run", epochs=9)

    class Broken:
        """The engine, but every loss from the third step on is not a number."""

        def __init__(self, inner: CpuEngine) -> None:
            self.inner, self.calls = inner, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def step(self, lr: float) -> float:
            self.calls += 1
            if self.calls > 2:
                self.inner.parameters.gradient[0] = math.inf
            return self.inner.step(lr)

    t.engine = Broken(t.engine)  # type: ignore[arg-type]
    with pytest.raises(LocalsftError, match="learning-rate"):
        for event in t.events():
            if isinstance(event, Step) and event.step == 2:
                before = t.engine.adapter()
    assert t.totals.skipped_steps == 5
    assert all(np.array_equal(before[name], value) for name, value in t.engine.adapter().items())


def test_without_validation_data_the_last_adapter_is_kept(golden: Golden, tmp_path: Path) -> None:
    t = trainer(golden, tmp_path / "run", valid=False, steps=3)
    list(t.events())
    saved = load_adapter(t.run.adapter).tensors
    assert all(np.array_equal(saved[name], value) for name, value in t.engine.adapter().items())


def test_no_examples_is_an_error(golden: Golden, tmp_path: Path) -> None:
    t = dataclasses.replace(trainer(golden, tmp_path / "run"), train=[])
    with pytest.raises(InputError, match="no training example"):
        next(iter(t.events()))


def test_packing_never_changes_what_is_learned(golden: Golden, tmp_path: Path) -> None:
    def losses(name: str, **settings: Any) -> list[float]:
        t = trainer(golden, tmp_path / name, epochs=2, **settings)
        return [event.loss for event in t.events() if isinstance(event, Step)]

    expected = losses("alone", **{"data.pack": False})
    for i, settings in enumerate([{}, {"data.share_prefix": False}, {"data.tokens_per_pack": 40}]):
        assert losses(str(i), **settings) == pytest.approx(expected, rel=1e-6)


def test_a_step_weighs_tokens_not_batches(golden: Golden) -> None:
    """Σ w·CE / Σ w, not the mean of the batches' means."""
    parts = [LossSum(6.0, 1.0), LossSum(2.0, 3.0)]
    assert (parts[0] + parts[1]).mean == 2.0
    assert math.isnan(LossSum().mean)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules(schedule: Any) -> None:
    optim = OptimConfig(learning_rate=1.0, schedule=schedule, warmup=4)
    rates = [learning_rate(optim, step, 20) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a >= b for a, b in pairwise(rates[4:]))
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(learning_rate(optim, 20, 20)))
    assert all(rate > 0 for rate in rates)


def test_example_weights_are_counted_as_supervised_tokens(golden: Golden, tmp_path: Path) -> None:
    t = trainer(golden, tmp_path / "run", epochs=1)
    list(t.events())
    assert t.totals.tokens_supervised == sum(int((e.target_weights > 0).sum()) for e in golden.examples)
    assert isinstance(golden.examples[0], Example) and isinstance(t.config, TrainConfig)
