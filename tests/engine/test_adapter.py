from __future__ import annotations

import numpy as np
import pytest

from localsft.config import LoraConfig
from localsft.engine.adapter import adapter_shapes, fitting, initial_adapter, optimizer_shapes
from localsft.errors import InputError, UsageError

LINEARS = {
    "lm_head": (50, 8),
    **{f"model.layers.{n}.self_attn.{m}_proj": (8, 8) for n in range(11) for m in "qkvo"},
    **{f"model.layers.{n}.mlp.{m}_proj": (20, 8) for n in range(11) for m in ("gate", "up")},
    **{f"model.layers.{n}.mlp.down_proj": (8, 20) for n in range(11)},
}


def test_every_linear_of_every_layer_by_default() -> None:
    shapes = adapter_shapes(LINEARS, LoraConfig(rank=3))
    assert len(shapes) == 11 * 7 * 2
    assert not any("lm_head" in name for name in shapes)
    assert shapes["model.layers.0.mlp.down_proj.lora_a"] == (20, 3)
    assert shapes["model.layers.0.mlp.down_proj.lora_b"] == (3, 8)


def test_the_last_layers_are_counted_as_numbers() -> None:
    shapes = adapter_shapes(LINEARS, LoraConfig(layers=2, targets=("q_proj", "v_proj")))
    assert {name.split(".")[2] for name in shapes} == {"9", "10"}
    assert {name.split(".")[4] for name in shapes} == {"q_proj", "v_proj"}


def test_fused_linears_and_experts() -> None:
    linears = {"model.layers.0.self_attn.qkv_proj": (24, 8), "model.layers.0.mlp.switch_mlp.up_proj": (4, 20, 8)}
    shapes = adapter_shapes(linears, LoraConfig(rank=3))
    assert shapes["model.layers.0.mlp.switch_mlp.up_proj.lora_a"] == (4, 3, 8)
    assert shapes["model.layers.0.mlp.switch_mlp.up_proj.lora_b"] == (4, 20, 3)
    assert list(adapter_shapes(linears, LoraConfig(targets=("q_proj", "k_proj", "v_proj")))) == [
        "model.layers.0.self_attn.qkv_proj.lora_a",
        "model.layers.0.self_attn.qkv_proj.lora_b",
    ]
    with pytest.raises(UsageError, match="no linear layer q_proj"):
        adapter_shapes(linears, LoraConfig(targets=("q_proj",)))


def test_settings_that_do_not_fit_the_model() -> None:
    with pytest.raises(UsageError, match="has 11 layers"):
        adapter_shapes(LINEARS, LoraConfig(layers=12))


def test_start_is_the_same_whatever_the_order_of_the_names() -> None:
    shapes = adapter_shapes(LINEARS, LoraConfig(rank=3))
    first = initial_adapter(shapes, seed=5)
    again = initial_adapter(dict(reversed(shapes.items())), seed=5)
    assert all(np.array_equal(first[name], again[name]) for name in shapes)
    assert not np.array_equal(first["model.layers.0.mlp.up_proj.lora_a"], initial_adapter(shapes, 6)["model.layers.0.mlp.up_proj.lora_a"])
    down = first["model.layers.0.mlp.down_proj.lora_a"]
    assert down.dtype == np.float32
    assert 0.7 / np.sqrt(20) < np.abs(down).max() <= 1 / np.sqrt(20)
    assert not first["model.layers.0.mlp.down_proj.lora_b"].any()


def test_start_is_pinned() -> None:
    """A run made by another version, engine or machine must be able to start from the same numbers."""
    start = initial_adapter({"model.layers.0.mlp.up_proj.lora_a": (4, 2)}, seed=0)["model.layers.0.mlp.up_proj.lora_a"]
    np.testing.assert_allclose(start.ravel()[:3], PINNED, rtol=1e-7)


PINNED = [-0.48593297600746155, -0.24223275482654572, -0.028434619307518005]


def test_misfits_are_named() -> None:
    shapes = {"a.lora_a": (4, 2), "a.lora_b": (2, 4)}
    good = initial_adapter(shapes, 0)
    assert list(fitting(good, shapes)) == ["a.lora_a", "a.lora_b"]
    with pytest.raises(InputError, match=r"a\.lora_b is missing.*b\.lora_b is not a part"):
        fitting({"a.lora_a": good["a.lora_a"], "b.lora_b": good["a.lora_b"]}, shapes)
    with pytest.raises(InputError, match=r"is \(4, 2\), not \(2, 4\)"):
        fitting({"a.lora_a": good["a.lora_a"], "a.lora_b": good["a.lora_a"]}, shapes)
    with pytest.raises(InputError, match="not finite"):
        fitting({"a.lora_a": good["a.lora_a"], "a.lora_b": np.full((2, 4), np.nan)}, shapes)


def test_the_optimizer_has_two_moments_of_each_tensor() -> None:
    assert optimizer_shapes({"a.lora_a": (4, 2)}) == {"step": (), "m.a.lora_a": (4, 2), "v.a.lora_a": (4, 2)}
