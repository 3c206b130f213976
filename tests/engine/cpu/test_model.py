"""The whole model against PyTorch + PEFT: losses, every LoRA gradient (B is not zero), ten AdamW steps; and its equalities."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from localsft.batch import Example, LossSum, PackedBatch
from localsft.config import LoraConfig
from localsft.data.pack import pack_step
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops, available_isas
from localsft.engine.cpu.reference import ReferenceOps
from tests.engine.cpu.cases import LORAS, OPTIM, Golden, alone, load_golden, relative
from tests.engine.cpu.reference_ops import LeakingOps, UnweightedOps


@pytest.fixture(params=["tiny_tied", "tiny_untied"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def tolerance(ops: Any, factor: float = 1.0) -> float:
    """float32 sums over at most a few hundred terms, through 3 layers; a loss over bfloat16 activations, each off by 2^-9."""
    return factor * (2**-9 if ops.act_bf16 else 2**-23 * 64)


@cache
def plain_error(model: str, case: str) -> dict[str, float]:
    """How far the gradients of a plain bfloat16 implementation are from the exact ones: the kernels may be off by twice that."""
    golden = load_golden(model)
    engine = golden.engine(ReferenceOps(bf16=True), case)
    weight = accumulate(engine, [alone(example) for example in golden.examples]).weight
    expected = golden.tensors(f"{case}/grad/")
    return {name: relative(gradient / weight, expected[name]) for name, gradient in engine.gradients().items()}


def gradient_tolerance(ops: Any, golden: Golden, case: str, name: str) -> float:
    return 2 * plain_error(golden.name, case)[name] if ops.act_bf16 else 2**-23 * 64


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
        assert relative(gradient / loss.weight, expected[name]) < gradient_tolerance(ops, golden, case, name), name


def score_errors(golden: Golden, ops: Any) -> tuple[float, float]:
    """Of example 0: the relative error of its logits, the largest absolute one of its log-probabilities."""
    engine = golden.engine(ops)
    example = golden.examples[0]
    n = len(example.token_ids)
    every = alone(Example(example.token_ids, np.array([0] + [1] * (n - 1), np.float32)))
    logits = engine.logits(every)
    logprobs, correct = engine.score(every)
    assert (correct == (logits.argmax(-1) == example.token_ids[1:])).all()
    expected = golden.values["all/logprobs"][1:n]
    return relative(logits, golden.values["all/logits"][: n - 1]), float(np.abs(logprobs - expected).max())


@cache
def plain_score_errors(model: str) -> tuple[float, float]:
    return score_errors(load_golden(model), ReferenceOps(bf16=True))


def test_logits_and_scores_equal_peft(golden: Golden, ops: Any) -> None:
    limits = plain_score_errors(golden.name) if ops.act_bf16 else (2**-23 * 32, 2**-23 * 128)
    for error, limit in zip(score_errors(golden, ops), limits, strict=True):
        assert error < 2 * limit


def step_errors(golden: Golden, ops: Any, nudge: int = 0) -> tuple[float, float, float]:
    """Over ten AdamW steps: the largest relative error of a loss and of a norm; that of all parameters' total change.

    Norms of the first five steps only: towards the end they are a difference of nearly cancelling terms on this tiny set, and
    two equally good bfloat16 trajectories stray by several times as much as each errs.
    """
    engine = golden.engine(ops)
    if nudge:
        random = np.random.default_rng(nudge)
        start = engine.adapter()
        engine.load_adapter({name: x * (1 + 2**-9 * random.uniform(-1, 1, x.shape).astype(np.float32)) for name, x in start.items()})
    losses, norms = [], []
    for _ in range(10):
        losses.append(accumulate(engine, [alone(example) for example in golden.examples]).mean)
        norms.append(engine.step(float(golden.values["lr"])))
    init, final = golden.tensors("init/"), golden.tensors("all/final/")
    adapter = engine.adapter()
    found = np.concatenate([(adapter[name] - init[name]).ravel() for name in init])
    expected = np.concatenate([(final[name] - init[name]).ravel() for name in init])
    loss_errors = np.abs(losses / golden.values["all/step_losses"] - 1)
    return float(loss_errors.max()), float(np.abs(norms / golden.values["all/step_norms"] - 1)[:5].max()), relative(found, expected)


@cache
def plain_step_errors(model: str) -> tuple[float, float, float]:
    """The largest of five plain runs, four of them from a start that is nudged by bfloat16's own rounding.

    Rounding errors grow from step to step, so one run says little about how far an equally good one may stray.
    """
    runs = [step_errors(load_golden(model), ReferenceOps(bf16=True), nudge) for nudge in range(5)]
    return max(r[0] for r in runs), max(r[1] for r in runs), max(r[2] for r in runs)


def test_ten_steps_equal_peft(golden: Golden, ops: Any) -> None:
    # In float32: PyTorch's own strays by 4e-7, 2.3e-6 and, in single parameters, 5e-6 of a change of 0.1 (goldens/README.md).
    limits = plain_step_errors(golden.name) if ops.act_bf16 else (1e-6, 5e-6, 5e-5)
    for error, limit in zip(step_errors(golden, ops), limits, strict=True):
        assert error < 2 * limit


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
        assert relative(gradient, expected[name]) < gradient_tolerance(ops, golden, "all", name), name


@pytest.mark.parametrize("case", LORAS)
def test_blocks_of_rows_equal_peft(golden: Golden, ops: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies between two products of the MLP exists for a block of rows: here of a few, the last one smaller."""
    monkeypatch.setattr("localsft.engine.cpu.model.BLOCK_ROWS", 7)
    engine = golden.engine(ops, case)
    loss = accumulate(engine, pack_step(golden.examples, 4096, pack=True, share_prefix=False))
    assert loss.loss == pytest.approx(float(golden.values[f"{case}/loss"]), rel=tolerance(ops))
    expected = golden.tensors(f"{case}/grad/")
    for name, gradient in engine.gradients().items():
        assert relative(gradient / loss.weight, expected[name]) < gradient_tolerance(ops, golden, case, name), name


def test_sharing_computes_fewer_tokens(golden: Golden) -> None:
    def computed(share: bool) -> int:
        return sum(batch.n_tokens for batch in pack_step(golden.examples[3:], 4096, pack=True, share_prefix=share))

    assert computed(True) == computed(False) - 11  # the common prefix of the last two examples, once


@pytest.mark.parametrize("broken_ops", [LeakingOps, UnweightedOps])
def test_a_broken_rule_shows(golden: Golden, broken_ops: Any) -> None:
    """The equalities above do catch a leak between segments and a dropped weight."""
    broken = golden.engine(broken_ops())
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
