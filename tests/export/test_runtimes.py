"""Exports in the programs that serve them: real mlx-lm, real transformers with PEFT, real llama.cpp.

mlx-lm: ``pip install 'localsft[mlx]'``. transformers and PEFT: LOCALSFT_PEFT_PYTHON names a Python that has them and torch. llama.cpp:
LOCALSFT_NODE_LLAMA_CPP names the folder in which ``npm install node-llama-cpp`` ran.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import gguf_base, hf_base, source_of, trained

from localsft.config import LoraConfig, OptimConfig
from localsft.engine import open_engine
from localsft.export import runtimes
from localsft.export.hf_files import write_gguf_tokenizer
from localsft.export.merge import export_merged
from localsft.export.runtimes import (
    adapter_runtime_checks,
    compare_effects,
    compare_logits,
    compare_texts,
    last_logits,
    llama_runtime,
    merged_runtime_checks,
    mlx_runtime,
    peft_runtime,
)
from localsft.export.source import Source, open_source
from localsft.export.verify import open_source_engine
from localsft.export.write import export_adapter
from localsft.session import load_model

RSLORA = LoraConfig(rank=4, alpha=6.0, layers=1, variant="rslora")


def skip_without(target: str) -> None:
    found = {"mlx": mlx_runtime, "peft": peft_runtime, "gguf-lora": llama_runtime}[target]()
    if found is None:
        names = {
            "mlx": "mlx-lm is not installed",
            "peft": "torch, transformers and peft are not here and LOCALSFT_PEFT_PYTHON does not name a Python that has them",
            "gguf-lora": "LOCALSFT_NODE_LLAMA_CPP does not name a folder with node_modules/node-llama-cpp",
        }
        pytest.skip(names[target])


def prove(tmp_path: Path, source: Source, target: Any) -> list[Any]:
    engine = open_engine(source.engine, source.model.base, source.adapter.lora, OptimConfig(), threads=1)
    checks = adapter_runtime_checks(target, source, engine)
    proof = export_adapter(source, target, tmp_path / "out", runtime_checks=checks)
    mine = [check for check in proof.checks if ": " in check.name]
    assert {check.name.partition(": ")[2] for check in mine} == {"effect", "logits", "text", "prompts"}
    return mine


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, RSLORA], ids=["lora", "rslora, last layer"])
@pytest.mark.parametrize("target", ["mlx", "peft", "gguf-lora"])
def test_tiny_gguf_base_in_its_runtime(tmp_path: Path, target: Any, lora: LoraConfig | None) -> None:
    skip_without(target)
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf", quantization="Q8_0"), lora)
    effect, _, text, _ = prove(tmp_path, source, target)
    assert effect.figures["share"] == pytest.approx(1, abs=0.03)
    assert text.figures["same"] + len(text.figures["explained"]) == 10


@pytest.mark.slow
@pytest.mark.parametrize("target", ["mlx", "peft"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_tiny_folder_base_in_its_runtime(tmp_path: Path, target: Any, family: str) -> None:
    skip_without(target)
    if family.startswith("qwen"):
        skip_without("mlx")  # our engine for it
    source = source_of(tmp_path, hf_base(tmp_path / "base", family), engine="mlx" if family.startswith("qwen") else "cpu")
    write_gguf_tokenizer(tmp_path / "base", replace(source.model, base=gguf_base(tmp_path / "vocabulary.gguf")))
    effect, _, _, prompts = prove(tmp_path, source, target)
    assert effect.figures["share"] == pytest.approx(1, abs=0.01) and prompts.ok


@pytest.mark.slow
@pytest.mark.parametrize(("target", "kind"), [("merged-gguf", "F16"), ("merged-gguf", "Q8_0"), ("merged", "bf16"), ("merged", "mlx-8bit")])
def test_tiny_merged_model_in_its_runtime(tmp_path: Path, target: Any, kind: str) -> None:
    skip_without("gguf-lora" if target == "merged-gguf" else "mlx")
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf", quantization="Q8_0"))
    proof = export_merged(source, target, tmp_path / "out", kind, runtime_checks=merged_runtime_checks(target, source, kind))
    assert [check.name.partition(": ")[2] for check in proof.checks if ": " in check.name][:3] == ["logits", "text", "prompts"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("target", ["mlx", "peft", "gguf-lora"])
def test_smollm2_in_its_runtime(tmp_path: Path, target: Any, smollm2_path: Path) -> None:
    """The real model with an adapter of the size that training makes."""

    skip_without(target)
    model = load_model("smollm2-135m-instruct", smollm2_path)
    folder = trained(tmp_path / "adapter", model, LoraConfig(rank=8, alpha=16.0), size=0.02)
    source = open_source(folder, model, base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    effect, _, text, _ = prove(tmp_path, source, target)
    assert effect.figures["share"] == pytest.approx(1, abs=0.05)
    assert text.figures["same"] >= 1


# ---- what the comparison itself can see ----


def test_half_of_the_effect_is_seen_through_noise() -> None:
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((10, 500)).astype(np.float32)
    noise = 0.3 * rng.standard_normal((10, 500)).astype(np.float32)
    assert compare_effects("x", ours, ours + noise).ok
    assert compare_effects("x", ours + 5, ours + noise - 5).ok  # softmax does not see what moves all logits alike
    assert not compare_effects("x", ours, ours / 2 + noise).ok
    assert not compare_effects("x", ours, noise).ok
    assert not compare_effects("x", ours, np.full_like(ours, np.nan)).ok


def test_other_logits_are_no_rounding() -> None:
    rng = np.random.default_rng(1)
    ours = rng.normal(size=(5, 300)).astype(np.float32)
    noise = 0.05 * rng.normal(size=ours.shape).astype(np.float32)
    assert compare_logits("x", ours, ours + noise + 3).ok  # softmax does not see the 3
    for wrong in (ours[:, ::-1], 0.7 * ours, ours + 0.4 * rng.normal(size=ours.shape), np.full_like(ours, np.nan), np.zeros_like(ours)):
        assert not compare_logits("x", ours, wrong).ok
    assert not compare_logits("x", np.zeros_like(ours), ours).ok


def test_a_text_that_parts_without_a_reason_fails(tmp_path: Path) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    engine = open_source_engine(source)
    engine.load_adapter(source.adapter.tensors)
    prompts = runtimes.runtime_prompts(source)[:2]
    logits = last_logits(engine, prompts)
    first = [int(row.argmax()) for row in logits]
    worst = [int(row.argmin()) for row in logits]
    stop = source.model.tokenizer.stop_ids
    assert not stop.intersection([*first, *worst])

    def check(theirs: list[list[int]]) -> Any:
        return compare_texts("x", engine, prompts, theirs, logits, logits + 1e-4, source.model)

    assert not check([[worst[0]], [worst[1]]]).ok  # another first token, by the whole span of the logits
    assert not check([[first[0]], [first[1]]]).ok  # stops where our engine goes on
