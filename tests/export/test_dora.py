"""DoRA out and in: what can express it holds the magnitudes, what can't refuses it by name, mistakes are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.checkpoint import ADAPTER_CONFIG, load_adapter
from localsft.config import LoraConfig
from localsft.errors import InputError, UsageError
from localsft.export.again import verify_folder
from localsft.export.importing import import_adapter
from localsft.export.lowrank import adapter_updates, difference
from localsft.export.merge import export_merged
from localsft.export.merged_gguf import MERGED_GGUF
from localsft.export.source import Source, open_source
from localsft.export.write import export_adapter
from localsft.weights.load import load_base
from localsft.weights.quant import as_f32
from tests.export.test_targets import drop, edit_mlx, edit_peft
from tests.export.tiny import gguf_base, hf_base, loaded, source_of, trained

DORA = LoraConfig(rank=4, alpha=10.0, variant="dora")
Q = "model.layers.1.self_attn.q_proj"
PEFT_M = f"base_model.model.{Q}.lora_magnitude_vector"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return source_of(tmp_path, gguf_base(tmp_path / "base.gguf", quantization="Q8_0"), DORA)


@pytest.mark.parametrize("target", ["mlx", "peft"])
@pytest.mark.parametrize("engine", ["cpu", "mlx"])
def test_it_is_written_proven_and_read_back(tmp_path: Path, target: Any, engine: str) -> None:
    if engine == "mlx":
        pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install 'localsft[mlx]'")
    source = source_of(tmp_path, hf_base(tmp_path / "base"), DORA, engine)
    proof = export_adapter(source, target, tmp_path / "out")
    assert [check.ok for check in proof.checks[:5]] == [True] * 5
    import_adapter(tmp_path / "out", source.model, tmp_path / "back")
    back = load_adapter(tmp_path / "back")
    assert back.lora.variant == "dora" and back.lora.scale == pytest.approx(DORA.scale)
    for module, update in adapter_updates(back).items():
        assert difference(update, source.updates[module]) <= 1e-6 * source.updates[module].norm


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "F32"])
def test_merged_gguf_holds_rows_of_the_trained_norms(tmp_path: Path, source: Source, kind: str) -> None:
    proof = export_merged(source, "merged-gguf", tmp_path / "out", kind)
    assert all(check.ok for check in proof.checks), [check for check in proof.checks if not check.ok]
    merged = load_base(tmp_path / "out" / MERGED_GGUF)
    for module, update in source.updates.items():
        rows = as_f32(merged.tensors[f"{module}.weight"]).astype(np.float64)
        assert update.magnitude is not None
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), update.magnitude, rtol=2**-7 if kind == "Q8_0" else 2**-10)
        weight = as_f32(source.model.base.tensors[f"{module}.weight"]).astype(np.float64)
        direction = weight + update.scale * (update.a.astype(np.float64) @ update.b).T
        cosine = (rows * direction).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(direction, axis=1)
        assert cosine.min() > 1 - 1e-3


def test_merged_folder_has_the_trained_loss(tmp_path: Path, source: Source) -> None:
    proof = export_merged(source, "merged", tmp_path / "out", "f32")
    figures = next(check.figures for check in proof.checks if check.name == "loss")
    assert figures["merged"] == pytest.approx(figures["trained"], rel=1e-3)
    assert abs(figures["base"] - figures["trained"]) > 0.01


EXPORTS: dict[str, Callable[[Source, Path], Any]] = {
    "gguf-lora": lambda source, out: export_adapter(source, "gguf-lora", out),
    "ollama": lambda source, out: export_merged(source, "ollama", out, "adapter"),
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_llama_cpps_adapter_is_refused_by_name(tmp_path: Path, source: Source, export: Callable[[Source, Path], Any]) -> None:
    with pytest.raises(UsageError, match=r"can't express DoRA.*merged-gguf"):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


MUTATIONS: dict[str, tuple[Any, Callable[[Path], None], str]] = {
    "mlx: another magnitude": ("mlx", edit_mlx(lambda _, t: t.update({f"{Q}.m": t[f"{Q}.m"] * 1.01})), "update"),
    "mlx: no magnitudes": ("mlx", edit_mlx(lambda _, t: drop(t, f"{Q}.m")), "read back"),
    "mlx: said to be LoRA": ("mlx", edit_mlx(lambda c, _: c.update(fine_tune_type="lora")), "read back"),
    "mlx: squared norms": ("mlx", edit_mlx(lambda _, t: t.update({n: t[n] ** 2 for n in t if n.endswith(".m")})), "update"),
    "peft: another magnitude": ("peft", edit_peft(lambda _, t: t.update({PEFT_M: t[PEFT_M] * 1.01})), "update"),
    "peft: no magnitudes": ("peft", edit_peft(lambda _, t: drop(t, PEFT_M)), "read back"),
    "peft: said to be LoRA": ("peft", edit_peft(lambda c, _: c.update(use_dora=False)), "read back"),
    "peft: magnitudes of another size": ("peft", edit_peft(lambda _, t: t.update({PEFT_M: t[PEFT_M][:-1]})), "read back"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_caught(tmp_path: Path, source: Source, mutation: str) -> None:
    target, edit, check = MUTATIONS[mutation]
    export_adapter(source, target, tmp_path / "out")
    edit(tmp_path / "out")
    proof = verify_folder(tmp_path / "out", source)
    assert not proof.holds and check in [failed.name for failed in proof.failures]


def test_magnitudes_on_some_linears_only_do_not_fit(tmp_path: Path) -> None:
    model = loaded(gguf_base(tmp_path / "base.gguf"))
    folder = trained(tmp_path / "adapter", model, DORA)
    edit_mlx(lambda _, tensors: drop(tensors, f"{Q}.m"))(folder)
    assert (folder / ADAPTER_CONFIG).is_file()
    with pytest.raises(InputError, match="some linears have magnitudes"):
        open_source(folder, model)
