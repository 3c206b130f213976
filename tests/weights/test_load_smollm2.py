"""The default base model, whole: what every other room builds on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from localsft.weights.load import load_base
from localsft.weights.names import gguf_name, gguf_row_order
from localsft.weights.quant import as_f32
from localsft.weights.tensor import AffineQuantized, Dense


def test_config_and_table(smollm2_path: Path) -> None:
    base = load_base(smollm2_path)
    config = base.config
    assert (config.model_type, config.source, config.tied_head) == ("llama", "gguf", True)
    assert (config.hidden_size, config.n_layers, config.n_heads, config.n_kv_heads, config.head_size) == (576, 30, 9, 3, 64)
    assert (config.ffn_size, config.vocab_size, config.max_positions, config.rope_theta) == (1536, 49152, 8192, 100000.0)
    assert config.rms_eps == pytest.approx(1e-5)
    assert len(base.tensors) == 272
    assert base.tensors.shape("model.layers.29.self_attn.k_proj.weight") == (192, 576)
    assert len(base.metadata["tokenizer.ggml.tokens"]) == 49152  # type: ignore[arg-type]
    assert base.hash == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # sha256sum


def test_values_and_row_order_against_the_gguf_package(smollm2_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    base = load_base(smollm2_path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_path).tensors}
    heads = {"q_proj": 9, "k_proj": 3}
    for name in ["model.norm.weight", *(n for n in base.tensors if n.startswith("model.layers.7."))]:
        source = stored[gguf_name(name)]
        ours = as_f32(base.tensors[name])
        for module, count in heads.items():
            if module in name:
                ours = ours[gguf_row_order(len(ours), count)]
        assert np.array_equal(ours, gguf.dequantize(source.data, source.tensor_type)), name


def test_memory_holds_the_quantized_model_once(smollm2_path: Path) -> None:
    base = load_base(smollm2_path)
    process = psutil.Process()
    before = process.memory_info().rss
    tensors = dict(base.tensors)
    grown = process.memory_info().rss - before
    held = 0
    for tensor in tensors.values():
        if isinstance(tensor, AffineQuantized):
            held += tensor.packed.nbytes + tensor.scales.nbytes + tensor.biases.nbytes
        else:
            assert isinstance(tensor, Dense)
            assert tensor.data.ndim == 1  # only norms are dense, as views of the file
            held += tensor.data.nbytes
    size = smollm2_path.stat().st_size
    assert held < size * 1.02  # as exact as the file, and no larger (Q8_0 gains a bias per 32 values)
    assert grown < held + (16 << 20)  # neither a float copy (538 MB) nor the file's pages (98 MB) beside it
