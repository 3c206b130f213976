"""The whole model against PyTorch + PEFT: losses, every LoRA gradient (B is not zero), ten AdamW steps; and its equalities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import LORAS, OPTIM, Golden, alone, load_golden, relative
from reference_ops import ReferenceOps

from localsft.batch import Example, LossSum, PackedBatch
from localsft.config import LoraConfig
from localsft.data.pack import pack_step
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops, available_isas


@pytest.fixture(params=["tiny_tied", "tiny_untied"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def tolerance(ops: Any, factor: float = 1.0) -> float:
    """float32 sums over at most a few hundred terms, through 3 layers; bfloat16 rounds each stored value by 2^-9."""
    return factor * (2**-9 * 4 if ops.act_bf16 else 2**-23 * 64)


def accumulate(engine: CpuEngine, batches: list[PackedBatch]) -> LossSum:
    total = LossSum()
    for batch in batches:
        total += engine.accumulate(batch)
    return total


@pytest.mark.parametrize("case", LORAS)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_loss_and_every_gradient_equal_peft(golden: Golden, ops: Any, case: str, checkpoint: bool) -> None:
    engine = golden.engine(ops, case, checkpoint=checkpoint)
    loss = accumulate(engine, [alone(example) for example in golden.examples])
    assert loss.weight == pytest.approx(float(golden.values["weight"]))
    assert loss.loss == pytest.approx(float(golden.values[f"{case}/loss"]), rel=tolerance(ops))
    expected = golden.tensors(f"{case}/grad/")
    gradients = engine.gradients()
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert relative(gradient / loss.weight, expected[name]) < tolerance(ops, 4), name


def test_logits_and_scores_equal_peft(golden: Golden, ops: Any) -> None:
    engine = golden.engine(ops)
    example = golden.examples[0]
    n = len(example.token_ids)
    every = Example(example.token_ids, np.array([0] + [1] * (n - 1), np.float32))
    logits = engine.logits(alone(every))
    assert relative(logits, golden.values["all/logits"][: n - 1]) < tolerance(ops, 2)
    logprobs, correct = engine.score(alone(every))
    assert np.abs(logprobs - golden.values["all/logprobs"][1:n]).max() < tolerance(ops, 16)
    assert (correct == (logits.argmax(-1) == example.token_ids[1:])).all()


def test_ten_steps_equal_peft(golden: Golden, ops: Any) -> None:
    engine = golden.engine(ops)
    for step in range(10):
        loss = accumulate(engine, [alone(example) for example in golden.examples])
        norm = engine.step(float(golden.values["lr"]))
        assert loss.mean == pytest.approx(golden.values["all/step_losses"][step], rel=tolerance(ops, 2)), step
        assert norm == pytest.approx(golden.values["all/step_norms"][step], rel=tolerance(ops, 16)), step
    if ops.act_bf16:
        return  # Adam divides by the root of a near-zero moment: rounding to bfloat16 decides the sign of such a step
    final = golden.tensors("all/final/")
    for name, value in engine.adapter().items():
        assert np.abs(value - final[name]).max() < 2e-5, name  # PyTorch's own float32 strays by 5e-6; lr is 1e-2


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("tokens", [40, 4096])
def test_packed_and_shared_equal_alone(golden: Golden, ops: Any, share: bool, tokens: int) -> None:
    engine, packed = golden.engine(ops), golden.engine(ops)
    alone_loss = accumulate(engine, [alone(example) for example in golden.examples])
    batches = pack_step(golden.examples, tokens, pack=True, share_prefix=share)
    packed_loss = accumulate(packed, batches)
    assert packed_loss.weight == pytest.approx(alone_loss.weight)
    assert packed_loss.loss == pytest.approx(alone_loss.loss, rel=tolerance(ops))
    expected = engine.gradients()
    for name, gradient in packed.gradients().items():
        assert relative(gradient, expected[name]) < tolerance(ops, 4), name


def test_sharing_computes_fewer_tokens(golden: Golden) -> None:
    def computed(share: bool) -> int:
        return sum(batch.n_tokens for batch in pack_step(golden.examples[3:], 4096, pack=True, share_prefix=share))

    assert computed(True) == computed(False) - 11  # the common prefix of the last two examples, once


@pytest.mark.parametrize("mutation", ["mask", "weights"])
def test_a_broken_rule_shows(golden: Golden, mutation: str) -> None:
    """The equalities above do catch a leak between segments and a dropped weight."""
    broken = golden.engine(ReferenceOps(mutation))
    batches = pack_step(golden.examples, 4096, pack=True, share_prefix=False)
    loss = accumulate(broken, batches)
    assert abs(loss.loss / float(golden.values["all/loss"]) - 1) > 1e-3


@pytest.mark.parametrize("isa", available_isas())
def test_threads_and_checkpointing_do_not_change_a_bit(golden: Golden, isa: str) -> None:
    def run(threads: int, checkpoint: bool) -> tuple[list[float], dict[str, Any]]:
        engine = golden.engine(Ops(isa, threads), checkpoint=checkpoint)
        losses = []
        for _ in range(3):
            losses.append(accumulate(engine, pack_step(golden.examples, 40, pack=True, share_prefix=True)).loss)
            losses.append(engine.step(0.01))
        return losses, engine.adapter()

    losses, adapter = run(1, False)
    for threads, checkpoint in [(2, False), (3, False), (2, True)]:
        other_losses, other = run(threads, checkpoint)
        assert other_losses == losses
        assert all(np.array_equal(adapter[name], other[name]) for name in adapter)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resume_is_bitwise(golden: Golden, dropout: float) -> None:
    def fresh() -> CpuEngine:
        return CpuEngine(golden.base, replace(LORAS["all"], dropout=dropout), OPTIM, Ops("", 2), seed=3)

    def steps(engine: CpuEngine, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            losses.append(accumulate(engine, pack_step(golden.examples, 40, pack=True, share_prefix=True)).loss)
            engine.step(0.01)
        return losses

    whole, first, second = fresh(), fresh(), fresh()
    expected = steps(whole, 10)
    found = steps(first, 5)
    second.load_adapter(first.adapter())
    second.load_optimizer_state(first.optimizer_state())
    found += steps(second, 5)
    assert found == expected
    assert all(np.array_equal(x, whole.adapter()[name]) for name, x in second.adapter().items())


def test_dropout_gradient_is_the_masked_models(golden: Golden) -> None:
    """Central differences of the loss under one fixed mask (the step has not moved, so the same mask is drawn again)."""
    lora = LoraConfig(rank=4, alpha=8.0, dropout=0.25)

    def loss_at(values: dict[str, Any]) -> tuple[float, CpuEngine]:
        engine = CpuEngine(golden.base, lora, OPTIM, Ops("baseline", 1), seed=1)
        engine.load_adapter(values)
        return accumulate(engine, pack_step(golden.examples, 4096, pack=True, share_prefix=False)).loss, engine

    init = golden.tensors("init/")
    _, engine = loss_at(init)
    gradients = engine.gradients()
    random = np.random.default_rng(0)
    for name in random.choice(sorted(init), 8, replace=False):
        direction = random.standard_normal(init[name].shape).astype(np.float32)
        eps = 2e-3
        up, _ = loss_at(init | {name: init[name] + eps * direction})
        down, _ = loss_at(init | {name: init[name] - eps * direction})
        slope = (up - down) / (2 * eps)
        assert float((gradients[name] * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=2e-2), name


def test_a_bad_step_is_not_applied(golden: Golden) -> None:
    engine = golden.engine(Ops("", 1))
    before, state = engine.adapter(), engine.optimizer_state()
    accumulate(engine, [alone(golden.examples[0])])
    engine.parameters.gradient[7] = np.nan
    assert not np.isfinite(engine.step(0.01))
    assert all(np.array_equal(x, before[name]) for name, x in engine.adapter().items())
    assert all(np.array_equal(x, state[name]) for name, x in engine.optimizer_state().items())
    accumulate(engine, [alone(golden.examples[0])])
    assert np.isfinite(engine.step(0.01))  # the bad gradient is gone
