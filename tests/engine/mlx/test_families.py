"""Tiny random instances of mlx-lm's families, as folders on disk: packed = alone, shared = unshared, adapters load in mlx-lm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import _get_classes
from mlx_lm.utils import load_model as load_folder

from localsft.checkpoint import BaseRef, save_adapter
from localsft.config import LoraConfig
from localsft.engine.mlx.engine import MlxEngine
from localsft.engine.mlx.forward import Packing
from localsft.weights.load import load_base
from tests.engine.mlx.families import ALONE, PACKED, SINGLE, VOCABULARY, config_of
from tests.engine.mlx.mlx_cases import OPTIM, accumulate, expanded, packed, random_tree, relative

LORA = LoraConfig(rank=3, alpha=6.0)
# Longer than the windows of 7, two prompts with answers, one of them two deep.
TREE = random_tree(VOCABULARY, [-1, 0, 0, -1, 3, 4, 3], [12, 9, 5, 10, 4, 8, 13])
# Run every time; the others with the slow tests.
OFTEN = [
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "phi3",
    "smollm3",
    "granite",
    "olmo2",
    "cohere2",
    "glm4",
    "gpt_oss",
    "deepseek_v3",
    "ministral3",
    "lfm2",
]
FAMILIES = {**dict.fromkeys(PACKED, "packed"), **dict.fromkeys(SINGLE, "single"), **dict.fromkeys(ALONE, "alone")}


def write_model(folder: Path, config: dict[str, Any], bits: int = 0) -> Path:
    """A random model of this configuration, as mlx-lm writes it; norms and biases are random too."""
    model_class, args_class = _get_classes(config)
    mx.random.seed(0)
    model = model_class(args_class.from_dict(config))
    noisy = [
        (name, value + 0.05 * mx.random.normal(value.shape)) if mx.issubdtype(value.dtype, mx.floating) else (name, value)
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(noisy)
    if config["tie_word_embeddings"] and "lm_head" in model:  # gemma3_text has one until it has seen a file without
        del model["lm_head"]
    if bits:
        import mlx.nn as nn

        nn.quantize(model, group_size=32, bits=bits)
        config = config | {"quantization": {"group_size": 32, "bits": bits}}
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def start(engine: MlxEngine) -> dict[str, Any]:
    """An adapter whose B is not zero, so that the gradient of A is not zero either."""
    random = np.random.default_rng(1)
    tensors = {name: value if name.endswith("a") else 0.1 * random.standard_normal(value.shape) for name, value in engine.adapter().items()}
    engine.load_adapter(tensors)
    return tensors


@pytest.mark.parametrize("family", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_family(family: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", config_of(family))
    base = load_base(folder)
    engine = MlxEngine(base, LORA, OPTIM, checkpoint=True)
    assert engine.packing.rows == FAMILIES[family], engine.packing
    start(engine)
    loss = engine.accumulate(TREE)
    gradients = engine.gradients()
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())

    alone = MlxEngine(base, LORA, OPTIM)
    alone.packing = Packing("alone")
    alone.load_adapter(engine.adapter())
    expected = accumulate(alone, expanded(TREE))
    assert loss.loss == pytest.approx(expected.loss, rel=2e-6)
    for name, gradient in alone.gradients().items():
        assert relative(gradients[name], gradient) < 2e-5, name

    save_adapter(tmp_path / "adapter", engine.adapter(), LORA, BaseRef(family, "", 3))
    served, _ = load_folder(folder)
    load_adapters(served, str(tmp_path / "adapter"))
    ids = TREE.tokens[:12]
    theirs = np.array(served(mx.array(ids)[None])[0].astype(mx.float32))
    ours = engine.logits(packed([(np.append(ids, 0), np.ones(13))]))
    assert relative(ours, theirs) < 1e-5


DOCUMENTED = {
    "packed rows, shared prefixes": PACKED,
    "one segment a row, shared prefixes": SINGLE,
    "one example a row, nothing shared": ALONE,
}


@pytest.mark.parametrize("layout", DOCUMENTED)
def test_the_docs_list_what_is_proven_here(layout: str) -> None:
    """docs/mlx.md names exactly the families of each table above."""
    lines = (Path(__file__).parents[3] / "docs" / "mlx.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {layout} |")]
    assert sorted(row.split("|")[3].replace(" ", "").split(",")) == sorted(DOCUMENTED[layout])
