"""The mlx engine on the golden llamas: PyTorch + PEFT's numbers, and the equalities that must hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from localsft.batch import LossSum, PackedBatch
from localsft.config import LoraConfig
from localsft.engine import open_engine
from localsft.engine.base import Sampling
from localsft.engine.mlx.engine import MlxEngine
from localsft.engine.mlx.forward import Packing, to_arrays
from localsft.engine.mlx.packed_cache import Attending
from localsft.errors import InputError
from tests.engine.mlx.mlx_cases import LORAS, OPTIM, Golden, accumulate, expanded, load_golden, packed, random_tree, relative

# float32 sums over at most a few hundred terms, through 3 layers; gradients are relative to the largest entry.
LOSS, GRADIENT = 2**-23 * 64, 2**-23 * 256
TREE = random_tree(211, [-1, 0, 0, 2, -1, 4, 2], [13, 4, 6, 5, 9, 3, 8])


@pytest.fixture(params=["tiny_tied", "tiny_untied"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture
def tied() -> Golden:
    return load_golden("tiny_tied")


def batches(golden: Golden) -> list[PackedBatch]:
    """The examples in two packed batches."""
    examples = golden.examples()
    return [packed(examples[:3]), packed(examples[3:])]


@pytest.mark.parametrize("case", LORAS)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_loss_and_every_gradient_equal_peft(golden: Golden, case: str, checkpoint: bool) -> None:
    engine = golden.engine(case, checkpoint=checkpoint)
    loss = accumulate(engine, batches(golden))
    assert loss.weight == pytest.approx(float(golden.values["weight"]))
    assert loss.loss == pytest.approx(float(golden.values[f"{case}/loss"]), rel=LOSS)
    expected = golden.tensors(f"{case}/grad/")
    gradients = engine.gradients()
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert relative(gradient / loss.weight, expected[name]) < GRADIENT, name


def test_logits_and_scores_equal_peft(golden: Golden) -> None:
    engine = golden.engine()
    ids, _ = golden.examples()[0]
    every = packed([(ids, np.ones(len(ids)))])
    logits = engine.logits(every)
    assert relative(logits, golden.values["all/logits"][:-1]) < LOSS
    logprobs, correct = engine.score(every)
    assert np.abs(logprobs - golden.values["all/logprobs"][1 : len(ids)]).max() < 16 * LOSS
    assert (correct == (logits.argmax(-1) == ids[1:])).all()


def test_ten_steps_equal_peft(golden: Golden) -> None:
    engine = golden.engine()
    for step in range(10):
        loss = accumulate(engine, batches(golden))
        norm = engine.step(float(golden.values["lr"]))
        assert loss.mean == pytest.approx(golden.values["all/step_losses"][step], rel=2 * LOSS), step
        assert norm == pytest.approx(golden.values["all/step_norms"][step], rel=16 * LOSS), step
    final = golden.tensors("all/final/")
    for name, value in engine.adapter().items():
        assert np.abs(value - final[name]).max() < 2e-5, name  # PyTorch's own float32 strays by 5e-6; lr is 1e-2


def gradients_of(engine: MlxEngine, batches: list[PackedBatch]) -> tuple[LossSum, dict[str, Any]]:
    loss = accumulate(engine, batches)
    gradients = engine.gradients()
    engine.step(0.0)  # drops the gradient; AdamW's moments do not matter here
    return loss, gradients


@pytest.mark.parametrize("rows", ["packed", "single", "alone"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_tree_equals_its_examples_alone(tied: Golden, rows: Any, checkpoint: bool) -> None:
    """Shared prefixes three deep, supervised tokens in them, rows that predict several ids; every layout."""
    engine, alone = tied.engine(checkpoint=checkpoint), tied.engine()
    engine.packing = replace(engine.packing, rows=rows)
    loss, gradients = gradients_of(engine, [TREE])
    expected_loss, expected = gradients_of(alone, expanded(TREE))
    assert loss.weight == pytest.approx(expected_loss.weight)
    assert loss.loss == pytest.approx(expected_loss.loss, rel=LOSS)
    for name, gradient in gradients.items():
        assert relative(gradient, expected[name]) < GRADIENT, name
    logprobs, _ = engine.score(TREE)
    weighted = float((logprobs.astype(np.float64) * TREE.target_weights).sum())
    assert -weighted == pytest.approx(expected_loss.loss, rel=LOSS)


def test_checkpointing_changes_nothing(tied: Golden) -> None:
    loss, gradients = gradients_of(tied.engine(), [TREE])
    again, recomputed = gradients_of(tied.engine(checkpoint=True), [TREE])
    assert again == loss
    assert all(np.array_equal(gradients[name], recomputed[name]) for name in gradients)


def test_a_leak_between_segments_shows(tied: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """The equality above does catch a mask that forgets the segments."""
    engine = tied.engine()

    def leaky(self: Attending, window: int | None) -> mx.array:
        length = self.order.shape[1]
        own = mx.tril(mx.ones((length, length), mx.bool_))
        return mx.concatenate([mx.ones((length, self.prefix_slots.shape[1]), mx.bool_), own], axis=1)

    monkeypatch.setattr(Attending, "mask", leaky)
    assert abs(accumulate(engine, batches(tied)).loss / float(tied.values["all/loss"]) - 1) > 1e-3


def test_the_loss_never_holds_all_logits(tied: Golden) -> None:
    engine, whole = tied.engine(), tied.engine()
    engine._head.rows = 8  # the chunks of the score
    small, _ = engine.score(TREE)
    assert np.allclose(small, whole.score(TREE)[0], atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resume_is_bitwise(tied: Golden, dropout: float) -> None:
    def fresh() -> MlxEngine:
        return MlxEngine(tied.base, replace(LORAS["all"], dropout=dropout), OPTIM, seed=3, checkpoint=True)

    def steps(engine: MlxEngine, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            losses.append(accumulate(engine, batches(tied)).loss)
            losses.append(engine.step(0.01))
        return losses

    whole, first, second = fresh(), fresh(), fresh()
    expected = steps(whole, 6)
    found = steps(first, 3)
    second.load_adapter(first.adapter())
    second.load_optimizer_state(first.optimizer_state())
    found += steps(second, 3)
    assert found == expected
    assert all(np.array_equal(value, whole.adapter()[name]) for name, value in second.adapter().items())


def test_dropout_gradient_is_the_masked_models(tied: Golden) -> None:
    """Central differences of the loss under one fixed mask (the step has not moved, so the same mask is drawn again)."""
    lora = LoraConfig(rank=4, alpha=8.0, dropout=0.25)

    def loss_at(values: dict[str, Any]) -> tuple[float, MlxEngine]:
        engine = MlxEngine(tied.base, lora, OPTIM, seed=1, checkpoint=True)
        engine.load_adapter(values)
        return accumulate(engine, batches(tied)).loss, engine

    init = tied.tensors("init/")
    plain = accumulate(tied.engine(), batches(tied)).loss
    loss, engine = loss_at(init)
    assert abs(loss / plain - 1) > 1e-4  # dropout does something
    gradients = engine.gradients()
    random = np.random.default_rng(0)
    for name in random.choice(sorted(init), 4, replace=False):
        direction = random.standard_normal(init[name].shape).astype(np.float32)
        eps = 2e-3
        slope = (loss_at(init | {name: init[name] + eps * direction})[0] - loss_at(init | {name: init[name] - eps * direction})[0]) / (
            2 * eps
        )
        assert float((gradients[name] * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=2e-2), name


def test_a_bad_step_is_not_applied(tied: Golden) -> None:
    engine = tied.engine()
    before, state = engine.adapter(), engine.optimizer_state()
    bad = {**before, "model.layers.0.mlp.up_proj.lora_a": np.full_like(before["model.layers.0.mlp.up_proj.lora_a"], 3e38)}
    engine.load_adapter(bad)
    accumulate(engine, batches(tied)[:1])
    assert not np.isfinite(engine.step(0.01))
    assert all(np.array_equal(value, bad[name]) for name, value in engine.adapter().items())
    assert all(np.array_equal(value, state[name]) for name, value in engine.optimizer_state().items())
    engine.load_adapter(before)
    accumulate(engine, batches(tied)[:1])
    assert np.isfinite(engine.step(0.01))  # the bad gradient is gone


def test_a_step_without_targets_is_not_applied(tied: Golden) -> None:
    engine = tied.engine()
    assert not np.isfinite(engine.step(0.01))
    assert engine.optimizer_state()["step"] == 0


@pytest.mark.parametrize("rows", ["packed", "single"])
def test_decoding_together_equals_decoding_alone(tied: Golden, rows: Any) -> None:
    """Also past the growth of the cache, with prompts that stop early."""
    engine, alone = tied.engine(), tied.engine()
    engine.packing = replace(engine.packing, rows=rows)
    alone.packing = Packing("alone")  # mlx-lm's own cache, a prompt at a time
    prompts = [np.arange(3, 3 + n, dtype=np.int32) for n in (5, 9, 2, 70)]
    for sampling in (Sampling(max_tokens=80, stop_ids=(11,)), Sampling(max_tokens=20, temperature=0.8, top_p=0.9, seed=5)):
        together = list(engine.generate(prompts, sampling))
        expected = list(alone.generate(prompts, sampling))
        assert sorted(together, key=lambda t: t.prompt) == expected
        assert {token.finish for token in expected} >= {"length"}


def test_misfits_are_named(tied: Golden, tmp_path: Path) -> None:
    engine = tied.engine("qv")
    with pytest.raises(InputError, match="is not a part of it"):
        engine.load_adapter(tied.tensors("init/"))
    with pytest.raises(InputError, match=r"the optimizer state does not fit.*is missing"):
        engine.load_optimizer_state({})


def test_the_engine_says_what_it_is(tied: Golden) -> None:
    engine = open_engine("mlx", tied.base, LORAS["all"], OPTIM, seed=7)
    assert engine.info.name == "mlx"
    assert engine.info.details["precision"] == "float32"
    assert engine.info.details["packing"] == "packed rows, shared prefixes"
    other = open_engine("cpu", tied.base, LORAS["all"], OPTIM, seed=7, threads=1)
    assert all(np.array_equal(value, other.adapter()[name]) for name, value in engine.adapter().items())


def test_a_run_traces_a_handful_of_shapes(tied: Golden) -> None:
    """Python runs through a compiled pass once for each new shape of a batch. Nothing is evaluated: MLX's CPU kernels would have to be
    compiled. Lengths as of chat data, two in three batches with a shared prompt."""
    mx.enable_compile()
    engine, random = tied.engine(compiled=True), np.random.default_rng(5)
    shapes, steps = set(), 60
    for step in range(steps):
        lengths = np.clip(random.lognormal(3.5, 0.4, 8), 8, 120).astype(int).tolist()
        shared = step % 3 > 0
        batch = random_tree(211, [-1, *[0] * 8] if shared else [-1] * 8, [40, *lengths] if shared else lengths, step)
        layout = engine._layout(batch)
        shapes.add(layout.shapes)
        engine._gradient_pass(engine._values, engine._gradient, mx.random.key(step), to_arrays(layout))
    assert engine.traces == len(shapes) == engine.info.details["compiled_shapes"]
    assert engine.traces <= steps / 2
    engine._gradient_pass(engine._values, engine._gradient, mx.random.key(0), to_arrays(layout))
    assert engine.traces == len(shapes)
