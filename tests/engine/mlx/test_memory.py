"""The account of memory against what MLX says it took."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from localsft.config import LoraConfig
from localsft.engine.base import BatchSize
from localsft.engine.mlx.engine import MlxEngine
from localsft.weights.load import load_base
from tests.engine.mlx.families import config_of
from tests.engine.mlx.mlx_cases import OPTIM, random_tree
from tests.engine.mlx.test_families import write_model

SHAPES = {"narrow": (64, 160, 6, 4, 2, 500), "wide": (128, 320, 4, 8, 2, 2000)}


@pytest.mark.parametrize("shape", ["narrow", pytest.param("wide", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("length", "count"), [(128, 4), (512, 1), (128, 8)])
def test_a_passes_peak(shape: str, recompute: bool, length: int, count: int, tmp_path: Path) -> None:
    """Never less than it takes, and not twice as much."""
    hidden, ffn, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    config = config_of("qwen3") | {
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": hidden // heads, "vocab_size": vocabulary,
    }  # fmt: skip
    batch = random_tree(vocabulary, [-1] * count, [length] * count)
    engine = MlxEngine(load_base(write_model(tmp_path / "m", config)), LoraConfig(rank=8), OPTIM, checkpoint=recompute)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    engine.accumulate(batch)
    took = mx.get_peak_memory() - before
    size = BatchSize(batch.n_tokens, batch.n_targets, length)
    counted = engine.memory(size, BatchSize(0, 0), recompute) - engine.memory(BatchSize(0, 0), BatchSize(0, 0), recompute)
    assert took <= counted <= 2 * took, (took, counted)


def test_a_plan_binds_the_allocator(tmp_path: Path) -> None:
    """The limits follow from the plan, and a pass within it works; afterwards what is kept for reuse fits the plan too."""
    engine = MlxEngine(load_base(write_model(tmp_path / "m", config_of("qwen3"))), LoraConfig(rank=8), OPTIM)
    before = mx.get_memory_limit(), mx.set_cache_limit(0)
    batch = random_tree(101, [-1] * 8, [64] * 8)
    planned = engine.memory(BatchSize(batch.n_tokens, batch.n_targets, 64), BatchSize(0, 0), False)
    try:
        engine.hold_to(planned)
        assert mx.get_memory_limit() == planned
        assert engine.accumulate(batch).weight == pytest.approx(batch.weight)
        assert mx.get_cache_memory() <= planned - engine._sizes.weights
    finally:
        mx.set_memory_limit(before[0])
        assert mx.set_cache_limit(before[1]) == planned - engine._sizes.weights
