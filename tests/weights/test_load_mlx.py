"""MLX folders: quantized weights with per-layer settings, as mlx-lm writes them, and folders that contradict themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("gguf", reason="model_maker writes GGUF files too")
from localsft.errors import InputError
from localsft.weights.load import load_base
from localsft.weights.quant import as_f32, quantize_affine
from localsft.weights.tensor import AffineQuantized, Dense
from tests.weights.model_maker import LLAMA, V, edit_config, llama_weights, write_folder


def _mlx_tensors(weights: Mapping[str, NDArray[np.float32]], settings: Mapping[str, tuple[int, int] | None]) -> dict[str, Any]:
    """Quantized as mlx-lm stores it; ``settings`` module -> (bits, group size) or None for dense, default (4, 32)."""
    tensors: dict[str, Any] = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        chosen = settings.get(module, (4, 32)) if weight.ndim == 2 else None
        if chosen is None:
            tensors[name] = weight.astype(np.float16)
        else:
            quantized = quantize_affine(weight.astype(np.float16), *chosen)
            tensors |= {name: quantized.packed, f"{module}.scales": quantized.scales, f"{module}.biases": quantized.biases}
    return tensors


_WIDE, _DENSE, _ODD = "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj", "lm_head"
_MLX_CONFIG = {
    **LLAMA,
    "quantization": {"bits": 4, "group_size": 32, _WIDE: {"bits": 8, "group_size": 32}, _DENSE: False, _ODD: {"bits": 3, "group_size": 64}},
}
_MLX_SETTINGS = {_WIDE: (8, 32), _DENSE: None, _ODD: (3, 64)}


def test_an_mlx_folder_with_overrides(tmp_path: Path) -> None:
    weights = llama_weights()
    base = load_base(write_folder(tmp_path / "m", _MLX_CONFIG, _mlx_tensors(weights, _MLX_SETTINGS)))
    assert base.config.source == "mlx"
    assert base.config.quantization is not None
    assert (base.config.quantization.bits, base.config.quantization.group_size) == (4, 32)
    assert set(base.tensors) == set(weights)
    for name, weight in weights.items():
        chosen = _MLX_SETTINGS.get(name.removesuffix(".weight"), (4, 32)) if weight.ndim == 2 else None
        tensor = base.tensors[name]
        if chosen is None:
            assert isinstance(tensor, Dense)
        else:
            assert isinstance(tensor, AffineQuantized)
            assert (tensor.bits, tensor.group_size, tensor.shape) == (*chosen, weight.shape)
            assert np.array_equal(as_f32(tensor), as_f32(quantize_affine(weight.astype(np.float16), *chosen)))


def test_a_folder_that_mlx_lm_itself_quantized(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    mlx_utils = pytest.importorskip("mlx_lm.utils")
    source = write_folder(tmp_path / "m", LLAMA, llama_weights())
    model, config = mlx_utils.load_model(source)
    model, config = mlx_utils.quantize_model(model, config, group_size=32, bits=6)
    target = tmp_path / "q"
    target.mkdir()
    mlx_utils.save_model(target, model)
    mlx_utils.save_config(config, target / "config.json")
    base = load_base(target)
    assert (target / "model.safetensors.index.json").exists()
    for name in ("lm_head", "model.layers.1.mlp.gate_proj", "model.embed_tokens"):
        module = model
        for part in name.split("."):
            module = module[int(part)] if part.isdigit() else module[part]
        tensor = base.tensors[f"{name}.weight"]
        assert isinstance(tensor, AffineQuantized)
        expected = mx.dequantize(module.weight, module.scales, module.biases, group_size=32, bits=6)
        np.testing.assert_allclose(as_f32(tensor), np.array(expected.astype(mx.float32)), rtol=1e-6, atol=1e-6)


_DAMAGE: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "mode": ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, {}, "mode 'mxfp4'"),
    "bits": ({"quantization": {"bits": 7, "group_size": 32}}, {}, "7 bits"),
    "bits as float": ({"quantization": {"bits": 4.0, "group_size": 32}}, {}, "4.0 bits"),
    "group size": ({"quantization": {"bits": 4, "group_size": 16}}, {}, "groups of 16"),
    "no object": ({"quantization": "4bit"}, {}, "'quantization' is not an object"),
    "other quantizer": ({"quantization": "absent", "quantization_config": {"quant_method": "gptq"}}, {}, "quantized by 'gptq'"),
    "nothing said": ({"quantization": "absent"}, {}, "does not say how 'lm_head' is quantized"),
    "override denies it": ({"quantization": {**_MLX_CONFIG["quantization"], _ODD: False}}, {}, "does not say how 'lm_head'"),
    "override of other bits": (
        {"quantization": {**_MLX_CONFIG["quantization"], _ODD: {"bits": 4, "group_size": 64}}},
        {},
        "do not fit 4 bits",
    ),
    "biases missing": ({}, {"lm_head.biases": None}, "'lm_head.biases' is missing"),
    "scales of another shape": ({}, {"lm_head.scales": np.ones((V, 3), np.float16)}, "do not fit"),
    "scales of another dtype": ({}, {"lm_head.scales": np.ones((V, 1), np.float32)}, "do not fit"),
    "weight of another dtype": ({}, {"lm_head.weight": np.ones((V, 6), np.int32)}, "do not fit"),
    "three dimensions": ({}, {"lm_head.weight": np.ones((V, 2, 3), np.uint32)}, r"has shape \(70, 2, 32\)"),
}


@pytest.mark.parametrize("case", _DAMAGE)
def test_mlx_folders_that_do_not_fit_their_config(case: str, tmp_path: Path) -> None:
    change, replaced, problem = _DAMAGE[case]
    tensors = {**_mlx_tensors(llama_weights(), _MLX_SETTINGS), **replaced}
    folder = write_folder(tmp_path / "m", _MLX_CONFIG, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    edit_config(folder / "config.json", change)
    with pytest.raises(InputError, match=problem):
        load_base(folder)


def test_nan_and_infinity_are_found_on_access(tmp_path: Path) -> None:
    tensors = _mlx_tensors(llama_weights(), _MLX_SETTINGS)
    tensors["lm_head.scales"][3, 0] = np.inf
    tensors["model.norm.weight"][5] = np.nan
    base = load_base(write_folder(tmp_path / "m", _MLX_CONFIG, tensors))
    for name in ("lm_head.weight", "model.norm.weight"):
        with pytest.raises(InputError, match=f"'{name}' holds NaN or infinity"):
            base.tensors[name]
    assert isinstance(base.tensors["model.embed_tokens.weight"], AffineQuantized)
