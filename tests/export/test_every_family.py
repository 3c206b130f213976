"""Every family that the mlx engine trains, as tiny random models: exported and proven, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.export.tiny import V, loaded

pytest.importorskip("mlx_lm", reason="the mlx engine, which runs these families, needs mlx-lm")

from localsft.checkpoint import BaseRef, save_adapter
from localsft.config import LoraConfig, OptimConfig
from localsft.engine.mlx.engine import MlxEngine
from localsft.errors import UsageError
from localsft.export.families import FAMILIES, import_gguf
from localsft.export.merge import export_merged
from localsft.export.source import Source, open_source
from localsft.export.verify import check_adapter
from localsft.export.write import WRITERS
from localsft.weights.load import load_base
from tests.engine.mlx.families import ALONE, PACKED, SINGLE, config_of
from tests.engine.mlx.test_families import write_model
from tests.export.test_export_table import table

# Run every time: permuted or not, fused, experts, norms of queries and keys, and one that only mlx can express.
OFTEN = ("mixtral", "gemma3_text", "phi3", "smollm3", "granite", "deepseek_v3")
ALL = tuple(dict.fromkeys([*PACKED, *SINGLE, *ALONE]))
LORA = LoraConfig(rank=3, alpha=6.0)
DORA = replace(LORA, variant="dora")


def family_source(tmp_path: Path, family: str, lora: LoraConfig = LORA, **changes: object) -> tuple[Source, MlxEngine]:
    config = config_of(family) | {"eos_token_id": 2}
    config |= {key: V for key in ("vocab_size", "vocab_size_per_layer_input") if key in config}  # MLX reads beyond a table unasked
    base = load_base(write_model(tmp_path / "base", config | changes))
    engine = MlxEngine(base, lora, OptimConfig())
    rng = np.random.default_rng(0)
    tensors = {name: (0.2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in engine.shapes.items()}
    for name in [name for name in tensors if name.endswith(".m")]:
        tensors[name] = engine.adapter()[name] * rng.uniform(0.8, 1.2, tensors[name].shape).astype(np.float32)
    save_adapter(tmp_path / "adapter", tensors, lora, BaseRef("tiny", base.hash, base.config.n_layers))
    source = open_source(tmp_path / "adapter", loaded(base), base_model="someone/tiny", engine="mlx")
    return replace(source, probes=source.probes[:4]), engine


@pytest.mark.parametrize("family", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in ALL])
def test_family(tmp_path: Path, family: str) -> None:
    # llama.cpp's qwen3moe has experts in every layer, as every model of that family that was published.
    source, engine = family_source(tmp_path, family, **({"mlp_only_layers": []} if family == "qwen3_moe" else {}))
    stacked = any(len(update.shape) > 2 for update in source.updates.values())
    for target, write in WRITERS.items():
        folder = tmp_path / target
        folder.mkdir()
        expressible = target == "mlx" or (family in FAMILIES and not (target == "peft" and stacked))
        if not expressible:
            with pytest.raises(UsageError, match="stacked experts" if family in FAMILIES else family):
                write(folder, source)
            continue
        write(folder, source)
        wrong = [check for check in check_adapter(folder, target, source, engine) if check.name != "template" and not check.ok]
        assert not wrong, (target, wrong)  # the tiny folders have no template


@pytest.mark.parametrize("family", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in ALL])
def test_merged_family(tmp_path: Path, family: str) -> None:
    """A merged folder of the family, its loss beside the adapter's included; or refused by name, as the table says."""
    source, _ = family_source(tmp_path, family, **({"mlp_only_layers": []} if family == "qwen3_moe" else {}))
    cells = table()
    cell = cells.get(family, cells["all others that mlx-lm trains"])["merged"]
    try:
        proof = export_merged(source, "merged", tmp_path / "out", "f32")
    except UsageError as refusal:
        assert "keep" in str(refusal) and "in another form; export it --to mlx" in str(refusal)
        assert cell.startswith(("refused", "where")), (family, str(refusal))
    else:
        assert cell.startswith(("yes", "run", "where")), family
        failed = [check for check in proof.checks if check.ok is False]
        assert not failed and {check.name: check.ok for check in proof.checks}["loss"], failed


@pytest.mark.parametrize("family", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in ALL])
def test_dora_family(tmp_path: Path, family: str) -> None:
    """DoRA on each family that has no stacked experts: in mlx-lm's and PEFT's form, and merged."""
    try:
        source, engine = family_source(tmp_path, family, DORA)
    except UsageError as refusal:
        assert "stacked experts" in str(refusal)
        assert any(key in config_of(family) for key in ("num_experts", "num_local_experts", "n_routed_experts")), family
        return
    for target in ("mlx", "peft") if family in FAMILIES else ("mlx",):
        folder = tmp_path / target
        folder.mkdir()
        WRITERS[target](folder, source)
        wrong = [check for check in check_adapter(folder, target, source, engine) if check.name != "template" and not check.ok]
        assert not wrong, (target, wrong)
    if table().get(family, {}).get("merged") == "yes":
        proof = export_merged(source, "merged", tmp_path / "out", "f32")
        assert not [check for check in proof.checks if check.ok is False]


@pytest.mark.slow
def test_a_linear_that_the_architecture_lacks_is_refused_by_name(tmp_path: Path) -> None:
    source, _ = family_source(tmp_path, "qwen3_moe")
    with pytest.raises(UsageError, match=r"qwen3moe has no counterpart of model\.layers\.0\.mlp\.down_proj"):
        WRITERS["gguf-lora"](tmp_path, source)


def test_every_architecture_is_known_to_the_gguf_package() -> None:
    gguf = import_gguf()
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    for family, entry in FAMILIES.items():
        table = gguf.get_tensor_name_map(numbers[entry.gguf], 2)
        assert table.get_name("model.layers.1.self_attn.o_proj") == "blk.1.attn_output", family
