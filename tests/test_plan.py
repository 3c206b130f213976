"""Plans: the work counted is the work done; memory that does not fit changes the packs, never the result; or is refused."""

from __future__ import annotations

import numpy as np
import pytest

from localsft.config import resolve
from localsft.engine.base import BatchSize
from localsft.engine.cpu.memory import activation_bytes, kernel_bytes
from localsft.engine.cpu.ops import Ops
from localsft.engine.cpu.reference import ReferenceOps
from localsft.errors import Refused
from localsft.plan import SMALLEST_PACK, count_work, fit_memory, measure_speed
from tests.engine.cpu.cases import Golden, alone, load_golden


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("tiny_tied")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("example", [0, 3])
def test_the_memory_account_is_what_a_pass_holds(golden: Golden, recompute: bool, example: int) -> None:
    engine = golden.engine(ReferenceOps(), checkpoint=recompute)
    batch = alone(golden.examples[example])
    engine.accumulate(batch)
    rows = np.unique(batch.target_rows).size
    counted = activation_bytes(engine.model, BatchSize(batch.n_tokens, batch.n_targets), BatchSize(0, 0), recompute)
    held = engine.model.buffers.nbytes
    assert rows == batch.n_targets
    assert held == counted


@pytest.mark.parametrize("threads", [1, 2])
def test_the_account_covers_what_the_kernels_hold(golden: Golden, threads: int) -> None:
    ops = Ops("", threads)
    engine = golden.engine(ops)
    batch = alone(golden.examples[3])
    engine.accumulate(batch)
    held = ops.context.scratch_bytes
    assert 0 < held <= kernel_bytes(engine.model, batch.n_tokens, batch.n_targets, threads)


def test_recomputing_takes_less(golden: Golden) -> None:
    engine = golden.engine(Ops("", 1))
    none, small, large = BatchSize(0, 0), BatchSize(512, 100), BatchSize(1024, 100)
    assert engine.memory(small, none, True) < engine.memory(small, none, False) < engine.memory(large, none, False)
    assert engine.memory(small, none, False) < engine.memory(small, large, False) < engine.memory(large, large, False)


def test_work_is_counted_on_the_real_batches(golden: Golden) -> None:
    config = resolve({"batch_size": 2, "epochs": 3})
    work = count_work(golden.examples, golden.examples[:2], config)
    assert work.tokens == 3 * 82 and work.plan.steps == 9
    assert work.tokens_computed <= work.tokens
    assert work.largest.tokens <= 23 + 31 and work.largest_scored.targets > 0


def test_packs_shrink_until_they_fit_then_it_is_refused(golden: Golden) -> None:
    work = count_work(golden.examples * 40, [], resolve({"batch_size": 200, "data.share_prefix": False, "data.tokens_per_pack": 1024}))
    assert work.largest.tokens > 512

    def memory(train: BatchSize, score: BatchSize, recompute: bool) -> int:
        return 1000 + train.tokens * (1 if recompute else 10)

    assert fit_memory(memory, work, 1024, 1 << 20).recompute is False
    once = fit_memory(memory, work, 1024, 1000 + 1024)
    assert once.recompute and once.tokens_per_pack == 1024
    smaller = fit_memory(memory, work, 1024, 1000 + 300)
    assert smaller.recompute and smaller.tokens_per_pack == 256
    with pytest.raises(Refused, match="smaller --model"):
        fit_memory(memory, work, 1024, 1000 + SMALLEST_PACK - 1)


def test_measuring_leaves_the_engine_as_it_was(golden: Golden) -> None:
    engine = golden.engine(Ops("", 2))
    before = engine.adapter()
    assert measure_speed(engine, alone(golden.examples[0]), seconds=0.0) > 0
    assert not engine.parameters.gradient.any()
    assert all(np.array_equal(before[name], value) for name, value in engine.adapter().items())
