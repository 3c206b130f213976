"""load_base over every source: the same model as folder, shards, MLX folder and GGUF, and folders that can't be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("gguf", reason="the gguf package writes the GGUF files that are read here")
from localsft.errors import InputError
from localsft.weights.load import BaseModel, load_base
from localsft.weights.quant import as_f32, f32_to_bf16
from localsft.weights.safetensors import write_safetensors
from localsft.weights.tensor import Dense
from tests.weights.model_maker import LLAMA, D, E, H, L, V, edit_config, llama_weights, write_folder, write_gguf

GOLDENS = Path(__file__).parents[1] / "goldens"


def _values(base: BaseModel) -> dict[str, NDArray[np.float32]]:
    return {name: as_f32(tensor) for name, tensor in base.tensors.items()}


def _same(base: BaseModel, weights: Mapping[str, NDArray[np.float32]]) -> None:
    values = _values(base)
    assert set(values) == set(weights)
    for name, weight in weights.items():
        assert values[name].shape == base.tensors.shape(name) == weight.shape
        assert np.array_equal(values[name], weight), name


def test_a_dense_folder(tmp_path: Path) -> None:
    weights = llama_weights()
    base = load_base(write_folder(tmp_path / "m", LLAMA, weights))
    assert base.config.source == "safetensors"
    assert base.metadata == {}
    assert base.config.quantization is None
    _same(base, weights)
    assert isinstance(base.tensors["model.norm.weight"], Dense)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_folders_stay_half_precision(dtype: str, tmp_path: Path) -> None:
    tensors: dict[str, Any] = {
        name: weight.astype(np.float16) if dtype == "float16" else Dense(f32_to_bf16(weight), bf16=True)
        for name, weight in llama_weights().items()
    }
    base = load_base(write_folder(tmp_path / "m", LLAMA, tensors))
    tensor = base.tensors["model.layers.1.mlp.up_proj.weight"]
    assert isinstance(tensor, Dense)
    assert tensor.data.itemsize == 2
    assert tensor.bf16 == (dtype == "bfloat16")
    assert not tensor.data.flags.owndata  # a view of the file


def test_the_folders_of_the_goldens() -> None:
    for name, tied in (("tiny_tied", True), ("tiny_untied", False)):
        base = load_base(GOLDENS / name)
        assert base.config.tied_head == tied
        assert ("lm_head.weight" in base.tensors) != tied
        dict(base.tensors)


def test_a_tied_head_may_be_kept_as_a_copy_but_not_as_another_matrix(tmp_path: Path) -> None:
    tied, weights = {**LLAMA, "tie_word_embeddings": True}, llama_weights()
    copy = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    assert "lm_head.weight" not in load_base(write_folder(tmp_path / "copy", tied, copy)).tensors
    other = weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + np.float32(1e-3)}
    with pytest.raises(InputError, match=r"lm_head\.weight is another matrix.*set tie_word_embeddings"):
        load_base(write_folder(tmp_path / "other", tied, other))


@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a_gguf_is_the_same_model_in_hugging_face_names_and_row_order(quantization: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    weights = llama_weights()
    base = load_base(write_gguf(tmp_path / "m.gguf", "llama", weights, quantization))
    kind = gguf.GGMLQuantizationType[quantization]
    expected = {  # blocks lie along the inputs, so quantizing before or after moving rows is the same
        name: gguf.dequantize(gguf.quantize(weight, kind), kind) if weight.ndim == 2 else weight for name, weight in weights.items()
    }
    _same(base, expected)
    folder = load_base(write_folder(tmp_path / "m", LLAMA, weights))
    for field in ("model_type", "hidden_size", "n_layers", "n_heads", "n_kv_heads", "head_size", "ffn_size", "vocab_size", "tied_head"):
        assert getattr(base.config, field) == getattr(folder.config, field)
    assert base.metadata["tokenizer.ggml.tokens"] == [f"<{i}>" for i in range(V)]
    scores = base.metadata["tokenizer.ggml.scores"]
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen_ggufs_are_not_permuted(architecture: str, tmp_path: Path) -> None:
    weights = llama_weights(tied=True, qkv_bias=architecture == "qwen2", qk_norm=architecture == "qwen3")
    base = load_base(write_gguf(tmp_path / "m.gguf", architecture, weights))
    assert base.config.model_type == architecture
    assert base.config.tied_head
    assert base.config.qkv_bias == (architecture == "qwen2")
    assert base.config.qk_norm == (architecture == "qwen3")
    _same(base, weights)


def test_a_llama_gguf_with_biases_permutes_them_too(tmp_path: Path) -> None:
    weights = llama_weights(qkv_bias=True)
    _same(load_base(write_gguf(tmp_path / "m.gguf", "llama", weights)), weights)


def test_rope_factors_of_a_gguf_reach_the_config(tmp_path: Path) -> None:
    weights = llama_weights()
    factors = np.linspace(1, 32, E // 2).astype(np.float32)
    base = load_base(write_gguf(tmp_path / "m.gguf", "llama", {**weights, "rope_freqs.weight": factors}))
    assert base.config.rope_scaling == {"rope_type": "factors", "factors": factors.tolist()}
    _same(base, weights)


def _shards(folder: Path, weights: Mapping[str, NDArray[np.float32]], names: tuple[str, str] = ("model-1-of-2", "model-2-of-2")) -> Path:
    write_folder(folder, LLAMA, {})
    (folder / "model.safetensors").unlink()
    placed = {name: f"{names[i % 2]}.safetensors" for i, name in enumerate(weights)}
    for shard in set(placed.values()):
        write_safetensors(folder / shard, {name: weights[name] for name in weights if placed[name] == shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def test_shards_by_index_and_without_one(tmp_path: Path) -> None:
    weights = llama_weights()
    folder = _shards(tmp_path / "m", weights)
    _same(load_base(folder), weights)
    with_index = load_base(folder).hash
    (folder / "model.safetensors.index.json").unlink()
    _same(load_base(folder), weights)
    assert load_base(folder).hash == with_index


def test_the_layout_of_a_hub_cache(tmp_path: Path) -> None:
    weights = llama_weights()
    plain = _shards(tmp_path / "plain", weights)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in plain.iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    _same(load_base(snapshot), weights)
    outside = tmp_path / "secret.safetensors"
    write_safetensors(outside, weights)
    shard = snapshot / "model-1-of-2.safetensors"
    shard.unlink()
    shard.symlink_to(outside)
    with pytest.raises(InputError, match=r"is a link to .*secret.*outside of the model folder"):
        load_base(snapshot)


def test_a_blobs_folder_counts_only_beside_snapshots(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "revisions" / "m", LLAMA, llama_weights())
    (tmp_path / "blobs").mkdir()
    (folder / "model.safetensors").rename(tmp_path / "blobs" / "0123")
    (folder / "model.safetensors").symlink_to(tmp_path / "blobs" / "0123")
    with pytest.raises(InputError, match="outside of the model folder"):
        load_base(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_links_out_of_a_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", LLAMA, llama_weights())
    outside = tmp_path / name
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("{}")
    (folder / name).symlink_to(outside)
    with pytest.raises(InputError, match="outside of the model folder"):
        load_base(folder)
    (folder / name).unlink()
    (folder / "inner").mkdir()
    outside.rename(folder / "inner" / name)
    (folder / name).symlink_to(Path("inner") / name)
    if name != "model.safetensors.index.json":
        load_base(folder)


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/etc/passwd", "a/b.safetensors", ".hidden.safetensors", "model.bin", "a\x1b.safetensors", ""]
)
def test_shard_names_that_are_not_plain_are_refused(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", LLAMA, llama_weights())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(InputError, match=r"not a plain \.safetensors name") as caught:
        load_base(folder)
    assert "\x1b" not in str(caught.value)


def test_everything_that_is_wrong_with_the_tensors_is_in_one_error(tmp_path: Path) -> None:
    weights = llama_weights()
    del weights["model.layers.0.mlp.up_proj.weight"]
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1]
    weights["model.layers.1.self_attn.q_proj.bias"] = np.zeros(H * E, np.float32)
    with pytest.raises(InputError) as caught:
        load_base(write_folder(tmp_path / "m", LLAMA, weights))
    message = str(caught.value)
    assert "model.layers.0.mlp.up_proj.weight is missing" in message
    assert f"model.norm.weight has shape ({D - 1},), not ({D},)" in message
    assert "model.layers.1.self_attn.q_proj.bias is unexpected" in message


def test_what_a_model_does_not_need_is_left_out(tmp_path: Path) -> None:
    weights = llama_weights()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    extra = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(E // 2, np.float32)}
    tied = write_folder(tmp_path / "m", {**LLAMA, "tie_word_embeddings": True}, extra)
    del weights["lm_head.weight"]
    _same(load_base(tied), weights)


def test_an_unknown_model_type_loads_by_name(tmp_path: Path) -> None:
    tensors = {"model.layers.0.router.weight": np.ones((3, 4), np.float32)}
    base = load_base(write_folder(tmp_path / "m", {**LLAMA, "model_type": "newest"}, tensors))
    _same(base, tensors)


def test_float64_weights_are_refused_by_name(tmp_path: Path) -> None:
    weights: dict[str, Any] = {**llama_weights(), "model.norm.weight": np.ones(D, np.float64)}
    base = load_base(write_folder(tmp_path / "m", LLAMA, weights))
    with pytest.raises(InputError, match=r"'model\.norm\.weight' is F64"):
        base.tensors["model.norm.weight"]


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    def problem(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            load_base(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist" in problem(tmp_path / "absent")
    assert "has no config.json" in problem(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not valid JSON" in problem(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "config.json is not valid JSON" in problem(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "does not hold a JSON object" in problem(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert "has no model*.safetensors" in problem(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pytorch_model.bin; pickle files can run code" in problem(tmp_path)
    assert "looks like a pickle" in problem(tmp_path / "pytorch_model.bin")
    assert "give its folder" in problem(tmp_path / "model.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "lacks model-1.safetensors" in problem(tmp_path)
    write_safetensors(tmp_path / "model-1.safetensors", {"b": np.zeros(1, np.float32)})
    assert "lists 1 tensors that no file holds, such as 'a'" in problem(tmp_path)
    index.write_text(json.dumps({"weight_map": ["model-1.safetensors"]}))
    assert "has no weight_map" in problem(tmp_path)
    index.unlink()
    write_safetensors(tmp_path / "model-2.safetensors", {"b": np.zeros(1, np.float32)})
    assert "tensor 'b' is in model-1.safetensors and in model-2.safetensors" in problem(tmp_path)


def test_ggufs_that_are_no_dense_model_known_here(tmp_path: Path) -> None:
    def problem(architecture: str, weights: Mapping[str, NDArray[np.float32]], extra: Mapping[str, Any] | None = None) -> str:
        with pytest.raises(InputError) as caught:
            load_base(write_gguf(tmp_path / "m.gguf", architecture, weights, extra=extra))
        return str(caught.value)

    weights = llama_weights()
    assert "has the architecture 'mamba'" in problem("mamba", weights)
    assert "is a GGUF of type 'adapter'" in problem("llama", weights, {"general.type": "adapter"})
    assert "one part of a split model" in problem("llama", weights, {"split.count": 3})
    assert "1 tensors that a dense llama model does not have, such as 'blk.0.ffn_gate_inp.weight'" in problem(
        "llama", {**weights, "blk.0.ffn_gate_inp.weight": np.ones((4, D), np.float32)}
    )
    assert "has no token embedding" in problem("llama", {k: v for k, v in weights.items() if "embed" not in k})
    missing = problem("llama", {k: v for k, v in weights.items() if "layers.1." not in k})
    assert "model.layers.1.self_attn.q_proj.weight is missing" in missing
    assert f"and {9 * (L - 1) - 8} more" in missing


def test_the_hash_covers_config_and_weights_and_nothing_else(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", LLAMA, llama_weights())
    first = load_base(folder).hash
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in ("config.json", "model.safetensors")]
    assert first == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    (folder / "README.md").write_text("hello")
    assert load_base(folder).hash == first
    edit_config(folder / "config.json", {"rope_theta": 5e5})
    assert load_base(folder).hash != first
    path = write_gguf(tmp_path / "m.gguf", "llama", llama_weights())
    assert load_base(path).hash == hashlib.sha256(path.read_bytes()).hexdigest()


def test_families_that_only_mlx_lm_knows_can_be_opened(tmp_path: Path) -> None:
    """Their config.json says the same things in other words; their tensors are not compared with a llama's."""
    config = {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64, "layer_norm_epsilon": 1e-6, "vocab_size": 9}
    folder = write_folder(tmp_path / "gpt2", config, {"wte.weight": np.zeros((9, 32), np.float32)})
    found = load_base(folder).config
    assert (found.hidden_size, found.n_heads, found.n_layers, found.max_positions, found.rms_eps) == (32, 4, 3, 64, 1e-6)
    text = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24, "vocab_size": 9}
    folder = write_folder(tmp_path / "pictures", {"model_type": "gemma3", "text_config": text}, {"a.weight": np.zeros((9, 16), np.float32)})
    found = load_base(folder).config
    assert (found.model_type, found.hidden_size, found.ffn_size) == ("gemma3", 16, 24)


def test_a_stack_of_quantized_experts_has_a_shape_but_is_not_read(tmp_path: Path) -> None:
    config = {"model_type": "mixtral", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
    experts = {
        "x.weight": np.zeros((3, 5, 8), np.uint32),
        "x.scales": np.zeros((3, 5, 2), np.float16),
        "x.biases": np.zeros((3, 5, 2), np.float16),
    }
    folder = write_folder(tmp_path / "m", {**config, "quantization": {"bits": 4, "group_size": 32}}, experts)
    base = load_base(folder)
    assert base.tensors.shape("x.weight") == (3, 5, 64)
    with pytest.raises(InputError, match="only --engine mlx"):
        base.tensors["x.weight"]
