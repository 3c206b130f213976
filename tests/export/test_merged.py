"""Merged models: what survives is measured, what would be lost is refused, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from localsft.errors import Refused, UsageError
from localsft.export import survival
from localsft.export.again import verify_folder
from localsft.export.gguf_copy import metadata_bytes
from localsft.export.merge import export_merged
from localsft.export.merged_gguf import MERGED_GGUF, TYPES
from localsft.export.source import Source
from localsft.export.survival import check_loss, check_survival, survival_of
from localsft.weights.load import load_base
from localsft.weights.quant import as_f32
from localsft.weights.tensor import AffineQuantized
from tests.export.tiny import gguf_base, hf_base, source_of


def scaled(source: Source, factor: float) -> Source:
    """The same adapter, stronger or weaker, in memory."""
    tensors = {name: x * np.float32(factor) if name.endswith("lora_b") else x for name, x in source.adapter.tensors.items()}
    updates = {name: replace(update, b=update.b * np.float32(factor)) for name, update in source.updates.items()}
    return replace(source, adapter=replace(source.adapter, tensors=tensors), updates=updates)


def whole(source: Source, module: str) -> Any:
    weight = as_f32(source.model.base.tensors[f"{module}.weight"])
    return weight + source.updates[module].delta(weight)


@pytest.mark.parametrize("kind", [*TYPES, "base"])
def test_merged_gguf_holds_the_sum(tmp_path: Path, kind: str) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf", quantization="Q4_1"))
    proof = export_merged(source, "merged-gguf", tmp_path / "out", kind)
    assert all(check.ok for check in proof.checks), [check for check in proof.checks if not check.ok]
    merged = load_base(tmp_path / "out" / MERGED_GGUF)
    unit = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254, "Q5_0": 1 / 30, "Q5_1": 1 / 60, "Q4_0": 1 / 14, "Q4_1": 1 / 28}
    step = unit.get(kind, 1 / 28)  # half a step, as a share of a block's largest value (half range for types with a minimum)
    for module in source.updates:
        expected = whole(source, module)
        apart = np.abs(as_f32(merged.tensors[f"{module}.weight"]) - expected).max()
        assert apart <= 2.2 * step * np.abs(expected).max() + 1e-6, module
    reader = gguf.GGUFReader(tmp_path / "out" / MERGED_GGUF)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == ("Q4_1" if kind == "base" else kind)
    assert types["token_embd.weight"] == "Q4_1" and types["blk.0.attn_norm.weight"] == "F32"


def test_metadata_are_the_bases_bytes(tmp_path: Path) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    export_merged(source, "merged-gguf", tmp_path / "out", "F16")
    old, new = metadata_bytes(tmp_path / "base.gguf"), metadata_bytes(tmp_path / "out" / MERGED_GGUF)
    assert {key for key in old if old[key] != new[key]} == {"general.file_type"}
    fields = gguf.GGUFReader(tmp_path / "out" / MERGED_GGUF).fields
    assert fields["general.file_type"].contents() == 1
    assert fields["localsft.base_hash"].contents() == source.model.base.hash
    assert fields["tokenizer.chat_template"].contents() == source.model.template.source


def test_an_update_below_the_steps_is_refused_and_a_wider_type_named(tmp_path: Path) -> None:
    source = scaled(source_of(tmp_path, gguf_base(tmp_path / "base.gguf", quantization="Q4_0")), 0.02)
    with pytest.raises(Refused, match=r"would lose what was trained.*use --type (Q8_0|BF16|F16)") as caught:
        export_merged(source, "merged-gguf", tmp_path / "out", "base")
    assert caught.value.exit_code == 3 and not (tmp_path / "out").exists()


def test_a_merge_that_costs_too_much_loss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    monkeypatch.setattr(survival, "LOSS_FLOOR", -1.0)
    monkeypatch.setattr(survival, "LOSS_SHARE", -1.0)
    with pytest.raises(Refused, match="loss"):
        export_merged(source, "merged-gguf", tmp_path / "out", "F16")


@pytest.mark.parametrize("kind", ["bf16", "f16", "f32", "mlx-6bit", "mlx-8bit"])
@pytest.mark.parametrize("base", ["gguf", "folder"])
def test_merged_folder_holds_the_sum(tmp_path: Path, kind: str, base: str) -> None:
    made = gguf_base(tmp_path / "base.gguf", quantization="Q8_0") if base == "gguf" else hf_base(tmp_path / "base")
    source = source_of(tmp_path, made)
    proof = export_merged(source, "merged", tmp_path / "out", kind)
    assert all(check.ok is not False for check in proof.checks)
    merged = load_base(tmp_path / "out")
    step = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "mlx-6bit": 2 / 63 + 2**-9, "mlx-8bit": 2 / 255 + 2**-9}[kind]
    # MLX moves the grid so that zero lies on it: up to a whole step is cut off at the other end; scale and bias are float16.
    for module in source.updates:
        expected = whole(source, module)
        tensor = merged.tensors[f"{module}.weight"]
        assert isinstance(tensor, AffineQuantized) == kind.startswith("mlx")
        assert np.abs(as_f32(tensor) - expected).max() <= 1.1 * step * np.abs(expected).max() + 1e-6
    assert verify_folder(tmp_path / "out", source).holds


def test_mlx_requantization_keeps_the_bases_own_settings(tmp_path: Path) -> None:
    first = source_of(tmp_path, hf_base(tmp_path / "base"))
    export_merged(first, "merged", tmp_path / "quantized", "mlx-8bit")
    (tmp_path / "quantized" / "localsft.json").unlink()
    second = source_of(tmp_path / "again", load_base(tmp_path / "quantized"))
    export_merged(second, "merged", tmp_path / "out", "base")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["bits"] == 8 and config["quantization"]["group_size"] == 64


def test_folder_of_a_gguf_base_tokenizes_and_stops_as_the_base(tmp_path: Path) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    proof = export_merged(source, "merged", tmp_path / "out", "bf16")
    assert {check.name: check.ok for check in proof.checks}["tokenizer"] is True
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted(source.model.tokenizer.stop_ids)


def test_what_can_not_be_written_is_refused_by_name(tmp_path: Path) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    with pytest.raises(UsageError, match="Q4_K"):
        export_merged(source, "merged-gguf", tmp_path / "out", "Q4_K")
    with pytest.raises(UsageError, match="base is a folder"):
        export_merged(source_of(tmp_path / "hf", hf_base(tmp_path / "base")), "merged-gguf", tmp_path / "out")


def test_survival_is_the_part_along_the_update() -> None:
    rng = np.random.default_rng(0)
    weight, delta = (rng.standard_normal((8, 32)).astype(np.float32) for _ in range(2))
    across = rng.standard_normal((8, 32)).astype(np.float32)
    across -= delta * np.vdot(across, delta) / np.vdot(delta, delta)
    for kept in (0.0, 0.5, 1.0):
        part = survival_of("model.layers.3.x", weight, delta, weight + np.float32(kept) * delta + across)
        assert part.share == pytest.approx(kept, abs=1e-5)
        assert check_survival([part], "Q4_0").ok is (kept == 1.0)
    lost = survival_of("model.layers.4.x", weight, delta, weight)  # one layer that lost everything is not averaged away
    check = check_survival([*(survival_of(f"model.layers.{i}.x", weight, delta, weight + delta) for i in range(40)), lost], "Q4_0")
    assert check.ok is False and "in layer 4" in check.detail and check.figures["share"] > 0.9


def test_loss_bound_is_a_share_of_what_was_gained() -> None:
    assert check_loss(3.0, 2.0, 2.09).ok and not check_loss(3.0, 2.0, 2.11).ok
    assert check_loss(3.0, 2.99, 2.999).ok and not check_loss(3.0, 2.99, 3.01).ok
    assert not check_loss(3.0, 2.0, float("nan")).ok
