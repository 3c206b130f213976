"""Exports in the programs that serve them: real mlx-lm, real transformers with PEFT, real llama.cpp.

mlx-lm: ``pip install 'localsft[mlx]'``. transformers and PEFT: LOCALSFT_PEFT_PYTHON names a Python that has them and torch. llama.cpp:
llama-server on PATH, and LOCALSFT_NODE_LLAMA_CPP, which names the folder in which ``npm install node-llama-cpp`` ran.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localsft.config import LoraConfig
from localsft.export.hf_files import write_gguf_tokenizer
from localsft.export.merge import export_merged
from localsft.export.runtimes import (
    ABSENT,
    adapter_runtime_checks,
    installed,
    merged_runtime_checks,
)
from localsft.export.source import Source, open_source
from localsft.export.verify import open_source_engine
from localsft.export.write import export_adapter
from localsft.session import load_model
from tests.export.tiny import gguf_base, hf_base, source_of, trained

RSLORA = LoraConfig(rank=4, alpha=6.0, layers=1, variant="rslora")
DORA = LoraConfig(rank=4, alpha=6.0, variant="dora")


def skip_without(target: str) -> None:
    if not installed(target):
        pytest.skip(ABSENT[target]())


def prove(tmp_path: Path, source: Source, target: Any) -> list[Any]:
    checks = adapter_runtime_checks(target, source, open_source_engine(source))
    proof = export_adapter(source, target, tmp_path / "out", runtime_checks=checks)
    mine = [check for check in proof.checks if ": " in check.name]
    kinds = ("effect", "logits", "text", "stop", "prompts")
    assert [check.name.partition(": ")[2] for check in mine] == [*kinds] * len(installed(target))
    for check in mine:
        if "stop_ids" in check.figures:  # the runtime's own word, and our reading of its files
            assert check.figures["stop_ids"] == check.figures["expected"]
    return mine


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, RSLORA, DORA], ids=["lora", "rslora, last layer", "dora"])
@pytest.mark.parametrize("target", ["mlx", "peft", "gguf-lora"])
def test_tiny_gguf_base_in_its_runtime(tmp_path: Path, target: Any, lora: LoraConfig | None) -> None:
    skip_without(target)
    if lora is DORA and target == "gguf-lora":
        pytest.skip("llama.cpp's adapters can't express DoRA, which test_dora.py holds them to")
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf", quantization="Q8_0"), lora)
    checks = prove(tmp_path, source, target)
    for effect, _, text, _, prompts in zip(*[iter(checks)] * 5, strict=True):
        assert effect.figures["share"] == pytest.approx(1, abs=0.03) and prompts.ok
        assert text.figures["same"] + len(text.figures["explained"]) == 10


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_tiny_gguf_base_of_another_family_in_llama_cpp(tmp_path: Path, family: str) -> None:
    skip_without("gguf-lora")
    skip_without("mlx")  # our engine for it
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf", family), engine="mlx")
    for effect, _, text, _, prompts in zip(*[iter(prove(tmp_path, source, "gguf-lora"))] * 5, strict=True):
        assert effect.figures["share"] == pytest.approx(1, abs=0.03) and text.ok and prompts.ok


@pytest.mark.slow
@pytest.mark.parametrize("target", ["mlx", "peft"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_tiny_folder_base_in_its_runtime(tmp_path: Path, target: Any, family: str) -> None:
    skip_without(target)
    if family.startswith("qwen"):
        skip_without("mlx")  # our engine for it
    source = source_of(tmp_path, hf_base(tmp_path / "base", family), engine="mlx" if family.startswith("qwen") else "cpu")
    write_gguf_tokenizer(tmp_path / "base", replace(source.model, base=gguf_base(tmp_path / "vocabulary.gguf")))
    effect, _, _, _, prompts = prove(tmp_path, source, target)
    assert effect.figures["share"] == pytest.approx(1, abs=0.01) and prompts.ok


@pytest.mark.slow
@pytest.mark.parametrize(("target", "kind"), [("merged-gguf", "F16"), ("merged-gguf", "Q8_0"), ("merged", "bf16"), ("merged", "mlx-8bit")])
def test_tiny_merged_model_in_its_runtime(tmp_path: Path, target: Any, kind: str) -> None:
    skip_without("gguf-lora" if target == "merged-gguf" else "mlx")
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf", quantization="Q8_0"))
    proof = export_merged(source, target, tmp_path / "out", kind, runtime_checks=merged_runtime_checks(target, source, kind))
    assert [check.name.partition(": ")[2] for check in proof.checks if ": " in check.name][:4] == ["logits", "text", "stop", "prompts"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_tiny_merged_folder_in_both_runtimes(tmp_path: Path, family: str) -> None:
    skip_without("mlx")
    skip_without("peft")
    source = source_of(tmp_path, hf_base(tmp_path / "base", family), engine="mlx" if family.startswith("qwen") else "cpu")
    write_gguf_tokenizer(tmp_path / "base", replace(source.model, base=gguf_base(tmp_path / "vocabulary.gguf")))
    proof = export_merged(source, "merged", tmp_path / "out", "f32", runtime_checks=merged_runtime_checks("merged", source, "f32"))
    texts = [check for check in proof.checks if check.name.endswith(": text")]
    assert [check.name.split()[0] for check in texts] == ["mlx-lm", "transformers"] and all(check.ok for check in texts)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["mlx", "peft", "gguf-lora"])
def test_smollm2_in_its_runtime(tmp_path: Path, target: Any, smollm2_path: Path) -> None:
    """The real model with an adapter of the size that training makes."""

    skip_without(target)
    model = load_model("smollm2-135m-instruct", smollm2_path)
    folder = trained(tmp_path / "adapter", model, LoraConfig(rank=8, alpha=16.0), size=0.02)
    source = open_source(folder, model, base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    for effect, _, text, _, prompts in zip(*[iter(prove(tmp_path, source, target))] * 5, strict=True):
        assert effect.figures["share"] == pytest.approx(1, abs=0.05) and prompts.ok
        assert text.figures["same"] >= 1
