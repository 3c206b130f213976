"""Keeping panels costs memory that was allowed, and changes no bit of a run."""

from __future__ import annotations

import numpy as np
import pytest

from localsft import session
from localsft.config import resolve
from localsft.data.pack import pack_step
from localsft.engine.cpu import engine as cpu_engine
from localsft.engine.cpu import panels
from localsft.engine.cpu.ops import Ops, available_isas
from localsft.plan import count_work
from tests.engine.cpu.cases import Golden, load_golden

PLENTY = 1 << 34


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("tiny_tied")


@pytest.mark.parametrize("isa", available_isas())
def test_a_run_is_the_same(golden: Golden, isa: str) -> None:
    plain, kept = (golden.engine(Ops(isa, 2), "last2") for _ in range(2))
    assert panels.keep_panels(kept.model, PLENTY) > 0
    for _ in range(3):
        for batch in pack_step(golden.examples, 4096):
            assert plain.accumulate(batch) == kept.accumulate(batch)
            np.testing.assert_array_equal(plain.score(batch)[0], kept.score(batch)[0])
        assert plain.step(0.01) == kept.step(0.01)
    for name, values in plain.adapter().items():
        np.testing.assert_array_equal(values, kept.adapter()[name])


def kept_of(golden: Golden, room: int, case: str = "all") -> tuple[list[int], int]:
    """Uint32 of each weight that is kept, in their order, and the bytes of all."""
    engine = golden.engine(Ops("", 1), case)
    chosen, units = panels._choose(engine.model, room // 4)
    assert panels.keep_panels(engine.model, room) == 4 * units <= room
    return [weight.panel_units(engine.ops.context) for weight in chosen], 4 * units


def test_the_head_comes_first_and_what_fits_is_kept(golden: Golden) -> None:
    every, taken = kept_of(golden, PLENTY)
    assert len(every) == 1 + 7 * len(golden.engine(Ops("", 1)).model.layers)
    last2, _ = kept_of(golden, PLENTY, "last2")
    assert last2 == every[: 1 + 7 * 2]  # no frozen layer
    assert kept_of(golden, taken) == (every, taken)
    some, less = kept_of(golden, taken - 4)
    assert some[0] == every[0] and 0 < less < taken
    assert kept_of(golden, 4) == ([], 0)


@pytest.mark.parametrize("isa", available_isas())
def test_room(golden: Golden, isa: str) -> None:
    """Some of what is free, up to a bound; none for long batches, recomputed layers, or panels of floats."""
    model, recomputed = (golden.engine(Ops(isa, 1), checkpoint=checkpoint).model for checkpoint in (False, True))
    none = not model.ops.act_bf16
    assert panels.room_for_panels(model, panels.MOST_TOKENS, PLENTY) == (0 if none else panels.MOST_BYTES)
    assert panels.room_for_panels(model, panels.MOST_TOKENS + 1, PLENTY) == 0
    assert panels.room_for_panels(model, 1, -PLENTY) == panels.room_for_panels(recomputed, 1, PLENTY) == 0


@pytest.mark.parametrize("case", ["all", "last2"])
def test_a_part_is_worth_its_memory_for_shorter_batches(golden: Golden, case: str) -> None:
    model = golden.engine(Ops("", 1), case).model
    if not model.ops.act_bf16:
        pytest.skip("panels of floats are never worth it")
    _, every = kept_of(golden, PLENTY, case)
    _, some = kept_of(golden, every // 2, case)
    assert 0 < some < every
    free = int((every // 2) / panels.MOST_OF_FREE)
    most = panels.MOST_TOKENS * some // every
    assert panels.room_for_panels(model, most, free) == every // 2
    assert panels.room_for_panels(model, most + 1, free) == 0


def test_what_is_kept_is_in_the_plan(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve({"engine": "cpu", "batch_size": 2})
    model = session.LoadedModel("tiny", golden.base, None, None)  # type: ignore[arg-type]
    work = count_work(golden.examples, (), config)

    def planned(room: int) -> int:
        monkeypatch.setattr(cpu_engine, "room_for_panels", lambda model, tokens, free: room)
        return session.open_fitting(config, model, work, cache=None)[2].memory

    assert planned(PLENTY) - planned(0) == kept_of(golden, PLENTY)[1]
