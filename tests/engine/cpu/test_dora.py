"""DoRA in the whole model: against PEFT (loss, logits, every gradient, ten steps), against finite differences, and its equalities."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from localsft.batch import LossSum, PackedBatch
from localsft.config import LINEARS, LoraConfig
from localsft.data.pack import pack_step
from localsft.engine.adapter import adapter_shapes
from localsft.engine.base import Sampling
from localsft.engine.cpu.dora import Magnitude
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.ops import Ops, available_isas
from localsft.engine.cpu.reference import ReferenceOps
from localsft.errors import UsageError
from localsft.weights.quant import as_f32, quantize_affine, row_squares
from tests.engine.cpu.cases import GOLDENS, OPTIM, Golden, alone, load_golden, relative

DORA = LoraConfig(rank=4, alpha=8.0, variant="dora")


@pytest.fixture(params=["tiny_tied", "tiny_untied"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@cache
def dora_values(name: str) -> dict[str, Any]:
    with np.load(GOLDENS / f"{name}_dora.npz", allow_pickle=False) as file:
        return dict(file)


def start(golden: Golden) -> dict[str, Any]:
    """The goldens' A, B and m: B is not zero, m not the norm of W."""
    magnitudes = {key[len("init/") :]: value for key, value in dora_values(golden.name).items() if key.startswith("init/")}
    return golden.tensors("init/") | magnitudes


def open_dora(golden: Golden, ops: Any, lora: LoraConfig = DORA, **options: Any) -> CpuEngine:
    engine = CpuEngine(golden.base, lora, OPTIM, ops, **options)
    values = start(golden)
    engine.load_adapter({name: values[name] for name in engine.adapter()})
    return engine


def accumulate(engine: CpuEngine, batches: list[PackedBatch]) -> LossSum:
    total = LossSum()
    for batch in batches:
        total += engine.accumulate(batch)
    return total


def every_example(golden: Golden) -> list[PackedBatch]:
    return [alone(example) for example in golden.examples]


def expected_gradients(golden: Golden) -> dict[str, Any]:
    return {key[len("grad/") :]: value for key, value in dora_values(golden.name).items() if key.startswith("grad/")}


def gradient_errors(golden: Golden, engine: CpuEngine) -> dict[str, float]:
    loss = accumulate(engine, every_example(golden))
    expected = expected_gradients(golden)
    gradients = engine.gradients()
    assert gradients.keys() == expected.keys()
    return {name: relative(gradient / loss.weight, expected[name]) for name, gradient in gradients.items()}


@cache
def plain_errors(name: str) -> dict[str, float]:
    """Of a plain bfloat16 implementation: the kernels may be off by twice that."""
    golden = load_golden(name)
    return gradient_errors(golden, open_dora(golden, ReferenceOps(bf16=True)))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_every_gradient_equals_peft(golden: Golden, ops: Any, checkpoint: bool) -> None:
    engine = open_dora(golden, ops, checkpoint=checkpoint)
    expected = float(dora_values(golden.name)["loss"])
    limit = 2**-9 if ops.act_bf16 else 2**-23 * 64
    assert accumulate(engine, every_example(golden)).loss == pytest.approx(expected, rel=limit)
    for name, error in gradient_errors(golden, open_dora(golden, ops, checkpoint=checkpoint)).items():
        assert error < (2 * plain_errors(golden.name)[name] if ops.act_bf16 else 2**-23 * 64), name


def test_logits_equal_peft(golden: Golden, ops: Any) -> None:
    example = golden.examples[0]
    n = len(example.token_ids)
    every = alone(replace(example, target_weights=np.array([0] + [1] * (n - 1), np.float32)))
    error = relative(open_dora(golden, ops).logits(every), dora_values(golden.name)["logits"][: n - 1])
    plain = relative(open_dora(golden, ReferenceOps(bf16=True)).logits(every), dora_values(golden.name)["logits"][: n - 1])
    assert error < (2 * plain if ops.act_bf16 else 2**-23 * 32)


def test_ten_steps_equal_peft(golden: Golden) -> None:
    """Factors follow the adapter from step to step."""
    values = dora_values(golden.name)
    engine = open_dora(golden, ReferenceOps())
    losses, norms = [], []
    for _ in range(10):
        losses.append(accumulate(engine, every_example(golden)).mean)
        norms.append(engine.step(float(golden.values["lr"])))
    np.testing.assert_allclose(losses, values["step_losses"], rtol=2e-6)
    np.testing.assert_allclose(norms, values["step_norms"], rtol=1e-5)
    for name, final in engine.adapter().items():
        # Adam turns the rounding of a gradient that is nearly zero into a visible step (goldens/README.md).
        np.testing.assert_allclose(final, values[f"final/{name}"], atol=1e-4, err_msg=name)


def test_gradients_are_finite_differences(golden: Golden) -> None:
    """In float64, the factors' norms held fixed: they count as constants."""
    engine = open_dora(golden, ReferenceOps())
    weight = accumulate(engine, every_example(golden)).weight
    gradients = {name: gradient / weight for name, gradient in engine.gradients().items()}
    batches, rng, step = every_example(golden), np.random.default_rng(0), 2.0**-9
    for name in [n for n in gradients if ".layers.1." in n]:
        at = tuple(int(rng.integers(size)) for size in gradients[name].shape)
        losses = []
        for sign in (1, -1):
            nudged = open_dora(golden, ReferenceOps())
            parameters = nudged.parameters
            view = parameters.view(parameters.values, name)
            view[at[::-1] if name.endswith("lora_a") else at] += sign * step
            for linear, magnitude in nudged.model.magnitudes:
                if f"{linear.name}.m" == name:  # the factor is m / norm, the norm as it was
                    magnitude.factors[...] = magnitude.m * magnitude.inverse_norms
            losses.append(sum(nudged.accumulate(batch).loss for batch in batches))
        difference = (losses[0] - losses[1]) / (2 * step) / weight
        assert difference == pytest.approx(float(gradients[name][at]), rel=2e-3, abs=2e-5), name


def test_it_starts_as_the_base(golden: Golden, ops: Any) -> None:
    example = golden.examples[0]
    n = len(example.token_ids)
    every = alone(replace(example, target_weights=np.array([0] + [1] * (n - 1), np.float32)))
    base = golden.values["base/logits"][: n - 1]
    dora = CpuEngine(golden.base, DORA, OPTIM, ops, seed=1)
    plain = CpuEngine(golden.base, replace(DORA, variant="lora"), OPTIM, ReferenceOps(bf16=True), seed=1)
    assert all((magnitude.factors == 1).all() for _, magnitude in dora.model.magnitudes)
    assert relative(dora.logits(every), base) < (2 * relative(plain.logits(every), base) if ops.act_bf16 else 2**-23 * 32)


@pytest.mark.parametrize("lora", [replace(DORA, layers=2), replace(DORA, targets=("q_proj", "o_proj", "down_proj"))])
@pytest.mark.parametrize("share", [False, True])
def test_packed_and_shared_equal_alone(golden: Golden, lora: LoraConfig, share: bool) -> None:
    engine, packed = (open_dora(golden, ReferenceOps(), lora) for _ in range(2))
    loss = accumulate(engine, every_example(golden))
    batches = pack_step(golden.examples, 40, pack=True, share_prefix=share)
    assert accumulate(packed, batches).loss == pytest.approx(loss.loss, rel=1e-6)
    expected = engine.gradients()
    for name, gradient in packed.gradients().items():
        assert relative(gradient, expected[name]) < 1e-5, name


@pytest.mark.parametrize("isa", available_isas())
def test_threads_and_checkpointing_do_not_change_a_bit(golden: Golden, isa: str) -> None:
    def run(threads: int, checkpoint: bool) -> tuple[list[float], dict[str, Any]]:
        engine = open_dora(golden, Ops(isa, threads), checkpoint=checkpoint)
        losses = []
        for _ in range(3):
            losses.append(accumulate(engine, pack_step(golden.examples, 40, pack=True, share_prefix=True)).loss)
            losses.append(engine.step(0.01))
        return losses, engine.adapter()

    losses, adapter = run(1, False)
    for threads, checkpoint in [(2, False), (2, True)]:
        other_losses, other = run(threads, checkpoint)
        assert other_losses == losses
        assert all(np.array_equal(adapter[name], other[name]) for name in adapter)


def test_resume_is_bitwise(golden: Golden) -> None:
    def steps(engine: CpuEngine, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            losses.append(accumulate(engine, pack_step(golden.examples, 40, pack=True, share_prefix=True)).loss)
            engine.step(0.01)
        return losses

    lora = replace(DORA, dropout=0.3)
    whole, first, second = (CpuEngine(golden.base, lora, OPTIM, Ops("", 2), seed=3) for _ in range(3))
    expected = steps(whole, 6)
    found = steps(first, 3)
    second.load_adapter(first.adapter())
    second.load_optimizer_state(first.optimizer_state())
    assert found + steps(second, 3) == expected
    assert all(np.array_equal(x, whole.adapter()[name]) for name, x in second.adapter().items())


def test_decoding_uses_the_factors(golden: Golden, ops: Any) -> None:
    """What is generated token by token is what the whole text's logits say."""
    if isinstance(ops, ReferenceOps):
        pytest.skip("decoding is compiled")
    engine = open_dora(golden, ops)
    prompt = golden.examples[0].token_ids[:6]
    tokens = [step.token_id for step in engine.generate([prompt], Sampling(max_tokens=8, stop_ids=frozenset()))]
    text = np.concatenate([prompt, tokens]).astype(np.int32)
    weights = np.zeros(len(text), np.float32)
    weights[len(prompt) :] = 1
    logits = engine.logits(alone(replace(golden.examples[0], token_ids=text, target_weights=weights)))
    chosen = logits[np.arange(len(tokens)), tokens]
    limit = 2**-5 * np.abs(logits).max() if ops.act_bf16 else 1e-4
    assert (logits.max(-1) - chosen <= limit).all()
    plain = CpuEngine(golden.base, replace(DORA, variant="lora"), OPTIM, ops)
    plain.load_adapter(golden.tensors("init/"))
    other = [step.token_id for step in plain.generate([prompt], Sampling(max_tokens=8, stop_ids=frozenset()))]
    assert other != tokens


def test_stacked_experts_are_refused() -> None:
    with pytest.raises(UsageError, match="stacked experts"):
        adapter_shapes({"model.layers.0.mlp.switch_mlp.up_proj": (4, 8, 8)}, replace(DORA, targets=LINEARS))


@pytest.mark.parametrize("rank", [1, 16, 20])
def test_factors_are_those_of_the_dense_sum(ops: Any, rank: int) -> None:
    rng = np.random.default_rng(rank)
    weight = rng.standard_normal((40, 64)).astype(np.float32)
    weight[7] = 0
    tensor = quantize_affine(weight, 4, 32)
    a, b = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((rank, 64), (rank, 40)))
    b[:, 7] = 0
    m = rng.standard_normal(40).astype(np.float32)
    m[9] = 0
    magnitude = Magnitude.of(m, np.zeros_like(m), row_squares(tensor))
    magnitude.update(ops, ops.weight(tensor), a, b, 0.7)
    dense = as_f32(tensor).astype(np.float64)
    assert not dense[7].any()
    norms = np.linalg.norm(dense + 0.7 * b.T.astype(np.float64) @ a, axis=1)
    expected = m / np.where(norms > 0, norms, 1)
    expected[7] = 1
    # Where A is rounded to bfloat16, a row's product with it is off by 2^-9 of their sizes at most; its share of the square counts.
    crossed = 0.7 * np.abs(b).T @ np.linalg.norm(a, axis=1) * np.linalg.norm(dense, axis=1)
    limit = 1e-5 + (2**-9 * (crossed / np.where(norms > 0, norms, 1) ** 2).max() if ops.act_bf16 else 0)
    np.testing.assert_allclose(magnitude.factors, expected, rtol=limit)
    np.testing.assert_allclose(magnitude.inverse_norms[norms > 0], 1 / norms[norms > 0], rtol=limit)
    assert magnitude.inverse_norms[7] == 0 and magnitude.inverse_m[9] == 0
    assert np.isfinite(magnitude.inverse_m).all()
