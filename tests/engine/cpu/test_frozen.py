"""Skipping the frozen layers changes nothing: however examples are packed, what comes from the cache is what would be computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.batch import LossSum
from localsft.data.pack import pack_step
from localsft.engine.cpu.engine import CpuEngine
from localsft.engine.cpu.frozen import path_keys
from localsft.engine.cpu.ops import Ops, available_isas
from localsft.engine.cpu.reference import ReferenceOps
from tests.engine.cpu.cases import Golden, alone, load_golden


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("tiny_tied")


def run(engine: CpuEngine, golden: Golden, layouts: list[dict[str, Any]]) -> list[float]:
    """The loss of one step a layout, and of scoring everything at the end."""
    losses = []
    for layout in layouts:
        total = LossSum()
        for batch in pack_step(golden.examples, **layout):
            total += engine.accumulate(batch)
        engine.step(0.01)
        losses.append(total.loss)
    for batch in pack_step(golden.examples[:3], 4096, pack=False):
        losses.append(float(engine.score(batch)[0].sum()))
    return losses


SAME = {"tokens_per_pack": 4096, "pack": True, "share_prefix": True}
OTHERS = [
    SAME,
    {"tokens_per_pack": 40, "pack": True, "share_prefix": False},
    {"tokens_per_pack": 4096, "pack": False, "share_prefix": False},
]


@pytest.mark.parametrize("isa", available_isas())
def test_the_same_layout_gives_the_same_bits(golden: Golden, tmp_path: Path, isa: str) -> None:
    plain, cached = (golden.engine(Ops(isa, 2), "last2") for _ in range(2))
    cached.keep_frozen(tmp_path)
    assert run(cached, golden, [SAME] * 4) == run(plain, golden, [SAME] * 4)
    store: Any = cached.model.frozen
    assert store.misses == 1 and store.hits >= 3


def test_another_layout_is_found_too(golden: Golden, tmp_path: Path) -> None:
    plain, cached = (golden.engine(ReferenceOps(), "last2") for _ in range(2))
    cached.keep_frozen(tmp_path)
    assert run(cached, golden, OTHERS) == pytest.approx(run(plain, golden, OTHERS), rel=1e-6)
    store: Any = cached.model.frozen
    assert store.misses == 1  # every later layout is made of tokens whose paths were seen


def test_a_second_run_starts_warm_and_deleting_is_safe(golden: Golden, tmp_path: Path) -> None:
    first = golden.engine(Ops("", 1), "last2")
    first.keep_frozen(tmp_path)
    expected = run(first, golden, [SAME])
    store: Any = first.model.frozen
    store.close()
    again = golden.engine(Ops("", 1), "last2")
    again.keep_frozen(tmp_path)
    assert run(again, golden, [SAME]) == expected
    warm: Any = again.model.frozen
    assert warm.misses == 0
    warm.close()
    for file in warm.folder.iterdir():
        file.unlink()
    cold = golden.engine(Ops("", 1), "last2")
    cold.keep_frozen(tmp_path)
    assert run(cold, golden, [SAME]) == expected


def test_no_cache_where_every_layer_is_adapted_or_the_base_differs(golden: Golden, tmp_path: Path) -> None:
    every = golden.engine(Ops("", 1), "all")
    every.keep_frozen(tmp_path)
    assert every.model.frozen is None
    one, other = golden.engine(Ops("", 1), "last2"), load_golden("tiny_untied").engine(Ops("", 1), "last2")
    one.keep_frozen(tmp_path)
    other.keep_frozen(tmp_path)
    stores: list[Any] = [one.model.frozen, other.model.frozen]
    assert stores[0].folder != stores[1].folder


def test_keys_are_of_the_whole_path(golden: Golden) -> None:
    shared, apart = (pack_step(golden.examples[3:], 4096, pack=True, share_prefix=share)[0] for share in (True, False))
    assert set(path_keys(shared)) == set(path_keys(apart))
    assert len(path_keys(shared)) < len(path_keys(apart))
    other = alone(golden.examples[3])
    changed = other.tokens.copy()
    changed[2] += 1
    keys, new = path_keys(other), path_keys(replace(other, tokens=changed))
    assert keys[:2] == new[:2] and not set(keys[2:]) & set(new[2:])
    assert np.unique(np.array(keys)).size == len(keys)
