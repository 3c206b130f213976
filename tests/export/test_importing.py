"""What was exported comes back: import is the reverse of export, and says at once what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from localsft.checkpoint import load_adapter
from localsft.config import LoraConfig, TrainConfig
from localsft.engine import open_engine
from localsft.errors import InputError, Refused, UsageError
from localsft.export.importing import import_adapter
from localsft.export.lowrank import adapter_updates, difference
from localsft.export.peft import PEFT_CONFIG, PEFT_FILE
from localsft.export.source import Source
from localsft.export.write import ADAPTER_TARGETS, export_adapter
from localsft.session import load_initial
from tests.export.tiny import gguf_base, loaded, source_of

LORAS = {
    "lora": LoraConfig(rank=4, alpha=10.0),
    "rslora": LoraConfig(rank=4, alpha=6.0, variant="rslora"),
    "last layer": LoraConfig(rank=2, alpha=3.0, layers=1, targets=("q_proj", "v_proj")),
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("target", ADAPTER_TARGETS)
def test_import_reverses_export(tmp_path: Path, target: Any, lora: LoraConfig) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"), lora)
    export_adapter(source, target, tmp_path / "out")
    found = import_adapter(tmp_path / "out", source.model, tmp_path / "back")
    assert found.format == target and found.linears == len(source.updates)
    back = load_adapter(tmp_path / "back")
    assert back.base_hash == source.model.base.hash
    assert (back.lora.rank, back.lora.layers, back.lora.targets) == (lora.rank, lora.layers, lora.targets)
    assert back.lora.scale == pytest.approx(lora.scale, rel=1e-7)
    for module, update in adapter_updates(back).items():
        assert difference(update, source.updates[module]) <= 1e-6 * source.updates[module].norm


def edit(folder: Path, config: dict[str, Any] | None = None, drop: str = "", **tensors: Any) -> None:
    values = json.loads((folder / PEFT_CONFIG).read_text()) | (config or {})
    (folder / PEFT_CONFIG).write_text(json.dumps(values))
    old = {name: x for name, x in load_file(folder / PEFT_FILE).items() if not drop or drop not in name}
    save_file(old | tensors, folder / PEFT_FILE)


def test_alpha_pattern_and_rank_pattern_are_obeyed(tmp_path: Path, source: Source) -> None:
    export_adapter(source, "peft", tmp_path / "out")
    edit(tmp_path / "out", {"alpha_pattern": {"q_proj": 20}})
    import_adapter(tmp_path / "out", source.model, tmp_path / "back")
    back = adapter_updates(load_adapter(tmp_path / "back"))
    q, v = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
    twice = replace(source.updates[q], scale=2 * source.updates[q].scale)
    assert difference(back[q], twice) <= 1e-6 * twice.norm and difference(back[v], source.updates[v]) <= 1e-6 * source.updates[v].norm


def test_unlike_lora_is_refused_by_name(tmp_path: Path, source: Source) -> None:
    export_adapter(source, "peft", tmp_path / "out")
    edit(tmp_path / "out", {"bias": "all", "modules_to_save": ["lm_head"]})
    with pytest.raises(InputError, match=r"bias 'all', modules_to_save"):
        import_adapter(tmp_path / "out", source.model, tmp_path / "back")


def test_unknown_keys_and_halves_are_collected(tmp_path: Path, source: Source) -> None:
    export_adapter(source, "peft", tmp_path / "out")
    edit(tmp_path / "out", drop="layers.1.self_attn.q_proj.lora_B", **{"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(InputError) as caught:
        import_adapter(tmp_path / "out", source.model, tmp_path / "back")
    assert "lm_head.weight is no LoRA matrix" in str(caught.value) and "q_proj.lora_B is missing" in str(caught.value)
    assert not (tmp_path / "back").exists()


def test_a_partial_adapter_is_refused_with_what_it_lacks(tmp_path: Path, source: Source) -> None:
    export_adapter(source, "peft", tmp_path / "out")
    edit(tmp_path / "out", drop="layers.1.self_attn.q_proj")
    with pytest.raises(InputError, match=r"lacks model\.layers\.1\.self_attn\.q_proj"):
        import_adapter(tmp_path / "out", source.model, tmp_path / "back")


@pytest.mark.parametrize("target", ADAPTER_TARGETS)
def test_an_export_for_another_base_is_refused_by_hash(tmp_path: Path, source: Source, target: Any) -> None:
    export_adapter(source, target, tmp_path / "out")
    other = replace(loaded(gguf_base(tmp_path / "other.gguf", quantization="Q8_0")), name="other-model")
    with pytest.raises(Refused, match="not on other-model"):
        import_adapter(tmp_path / "out", other, tmp_path / "back")


def test_a_run_starts_from_an_imported_adapter(tmp_path: Path, source: Source) -> None:
    export_adapter(source, "peft", tmp_path / "out")
    import_adapter(tmp_path / "out", source.model, tmp_path / "back")
    config = TrainConfig(engine="cpu", init=str(tmp_path / "back"), lora=source.adapter.lora)
    engine = open_engine("cpu", source.model.base, config.lora, config.optim)
    load_initial(engine, config, source.model)
    for name, values in engine.adapter().items():
        np.testing.assert_array_equal(values, source.adapter.tensors[name])
    with pytest.raises(UsageError, match=r"give --rank 4 --alpha 10 --layers all --variant lora --targets q_proj,"):
        load_initial(engine, replace(config, lora=LoraConfig(rank=8)), source.model)
    other = replace(loaded(gguf_base(tmp_path / "other.gguf", quantization="Q8_0")), name="other-model")
    with pytest.raises(Refused, match="not on other-model"):
        load_initial(engine, config, other)
