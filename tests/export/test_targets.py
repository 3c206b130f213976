"""Every family and every target: what was written is what was trained; and each classic mistake is caught."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from localsft.checkpoint import ADAPTER_CONFIG, ADAPTER_FILE
from localsft.config import LoraConfig
from localsft.errors import Finding, InputError, LocalsftError, Refused, UsageError
from localsft.export import verify, write
from localsft.export.again import verify_folder
from localsft.export.gguf import GGUF_FILE
from localsft.export.lowrank import Update, difference
from localsft.export.peft import PEFT_CONFIG, PEFT_FILE
from localsft.export.source import Source, open_source
from localsft.export.stop_rules import rules_of
from localsft.export.write import ADAPTER_TARGETS, export_adapter
from tests.export.tiny import E, H, K, gguf_base, hf_base, loaded, source_of, trained

needs_mlx = pytest.mark.skipif(find_spec("mlx_lm") is None, reason="the mlx engine, which runs this family, needs mlx-lm")
FAMILIES = ["llama", "mistral", pytest.param("qwen2", marks=needs_mlx), pytest.param("qwen3", marks=needs_mlx)]
LORAS = {
    "lora": LoraConfig(rank=4, alpha=10.0),
    "rslora": LoraConfig(rank=4, alpha=6.0, variant="rslora"),
    "last layer, q and v": LoraConfig(rank=2, alpha=3.0, layers=1, targets=("q_proj", "v_proj")),
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ADAPTER_TARGETS)
def test_a_folder_base_exports(tmp_path: Path, family: str, target: Any) -> None:
    source = source_of(tmp_path, hf_base(tmp_path / "base", family), engine="mlx" if family.startswith("qwen") else "cpu")
    proof = export_adapter(source, target, tmp_path / "out")
    # The tiny folder has no tokenizer, so no template either.
    expected = [True] * 5 + ([] if target == "gguf-lora" else [None])
    assert [check.ok for check in proof.checks] == expected
    assert verify_folder(tmp_path / "out", source).holds


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("target", ADAPTER_TARGETS)
def test_a_gguf_base_exports(tmp_path: Path, target: Any, lora: LoraConfig) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf", quantization="Q4_1"), lora)
    proof = export_adapter(source, target, tmp_path / "out")
    assert [check.ok for check in proof.checks[:5]] == [True] * 5


def test_peft_config_selects_exactly_the_adapted_layers(tmp_path: Path) -> None:
    source = source_of(tmp_path, hf_base(tmp_path / "base"), LORAS["last layer, q and v"])
    export_adapter(source, "peft", tmp_path / "out")
    config = json.loads((tmp_path / "out" / PEFT_CONFIG).read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["layers_to_transform"] == [1]
    assert config["r"] == 2 and config["lora_alpha"] == 3


def test_gguf_permutes_the_rows_of_b_for_q_and_k_only(tmp_path: Path, source: Source) -> None:
    """Against the formula of llama.cpp's converter, written out."""
    export_adapter(source, "gguf-lora", tmp_path / "out")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "out" / GGUF_FILE).tensors}
    q = source.updates["model.layers.0.self_attn.q_proj"]
    permuted = q.b.T.reshape(H, 2, E // 2, 4).swapaxes(1, 2).reshape(H * E, 4)
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight.lora_b"], permuted)
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight.lora_a"], q.a.T)
    v = source.updates["model.layers.0.self_attn.v_proj"]
    np.testing.assert_array_equal(tensors["blk.0.attn_v.weight.lora_b"], v.b.T)


def test_a_family_that_a_target_cannot_express_is_refused_by_name(tmp_path: Path, source: Source) -> None:
    config = replace(source.model.base.config, model_type="deepseek_v3")
    model = replace(source.model, base=replace(source.model.base, config=config, metadata={}))
    with pytest.raises(UsageError, match="deepseek_v3"):
        export_adapter(replace(source, model=model), "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- mutations: what is written wrongly must not pass ----


def edit_mlx(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        tensors = load_file(folder / ADAPTER_FILE)
        change(config, tensors)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / ADAPTER_FILE)

    return edit


def edit_peft(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / PEFT_CONFIG).read_text())
        tensors = load_file(folder / PEFT_FILE)
        change(config, tensors)
        (folder / PEFT_CONFIG).write_text(json.dumps(config))
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / PEFT_FILE)

    return edit


def edit_gguf(alpha: Callable[[float], float] = lambda alpha: alpha, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Any:
    def edit(folder: Path) -> None:
        path = folder / GGUF_FILE
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        texts = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        change(tensors)
        writer = gguf.GGUFWriter(path, texts.pop("general.architecture"))
        for key, value in texts.items():
            if isinstance(value, str):
                writer.add_string(key, value)
        writer.add_float32("adapter.lora.alpha", alpha(texts["adapter.lora.alpha"]))
        for name, values in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return edit


Q = "model.layers.1.self_attn.q_proj"
PEFT_B = f"base_model.model.{Q}.lora_B.weight"
SQUARE = "model.layers.1.self_attn.o_proj"  # H·E = D here: a transposed or swapped matrix keeps its shape


def swap_a(tensors: dict[str, Any], name: str) -> None:
    """A's numbers read in the wrong order: the shape that the loader wants, another matrix."""
    tensors[name] = tensors[name].T.reshape(tensors[name].shape)


def drop(tensors: dict[str, Any], part: str) -> None:
    for name in [name for name in tensors if part in name]:
        del tensors[name]


def unpermute(tensors: dict[str, Any], name: str = "q", heads: int = H) -> None:
    b = tensors[f"blk.1.attn_{name}.weight.lora_b"]
    tensors[f"blk.1.attn_{name}.weight.lora_b"] = b.reshape(heads, E // 2, 2, -1).swapaxes(1, 2).reshape(b.shape)


def permuted(b: Any, heads: int = H) -> Any:
    """(out, R) in the order of GGUF."""
    return b.reshape(heads, 2, E // 2, -1).swapaxes(1, 2).reshape(b.shape)


MUTATIONS: dict[str, tuple[Any, Callable[[Path], None], str]] = {
    "mlx: alpha for scale": ("mlx", edit_mlx(lambda c, _: c["lora_parameters"].update(scale=10.0)), "update"),
    "mlx: A transposed": ("mlx", edit_mlx(lambda _, t: swap_a(t, f"{Q}.lora_a")), "update"),
    "mlx: q permuted": ("mlx", edit_mlx(lambda _, t: t.update({(n := f"{Q}.lora_b"): permuted(t[n].T).T})), "update"),
    "mlx: missing linear": ("mlx", edit_mlx(lambda _, t: drop(t, Q)), "update"),
    "mlx: half of a linear": ("mlx", edit_mlx(lambda _, t: drop(t, f"{Q}.lora_b")), "read back"),
    "mlx: scale 0": ("mlx", edit_mlx(lambda c, _: c["lora_parameters"].update(scale=0.0)), "update"),
    "mlx: one layer too few": ("mlx", edit_mlx(lambda c, _: c.update(num_layers=1)), "read back"),
    "peft: scale for alpha": ("peft", edit_peft(lambda c, _: c.update(lora_alpha=2.5)), "update"),
    "peft: alpha 0": ("peft", edit_peft(lambda c, _: c.update(lora_alpha=0)), "update"),
    "peft: rslora": ("peft", edit_peft(lambda c, _: c.update(use_rslora=True)), "update"),
    "peft: A transposed": ("peft", edit_peft(lambda _, t: swap_a(t, f"base_model.model.{Q}.lora_A.weight")), "update"),
    "peft: A not transposed": (
        "peft",
        edit_peft(lambda _, t: t.update({(n := f"base_model.model.{Q}.lora_A.weight"): t[n].T})),
        "read back",
    ),
    "peft: q permuted": (
        "peft",
        edit_peft(lambda _, t: t.update({PEFT_B: permuted(t[PEFT_B])})),
        "update",
    ),
    "peft: missing linear": ("peft", edit_peft(lambda _, t: drop(t, Q)), "update"),
    "gguf: scale for alpha": ("gguf-lora", edit_gguf(lambda alpha: alpha / 4), "update"),
    "gguf: alpha 0": ("gguf-lora", edit_gguf(lambda _: 0.0), "update"),
    "gguf: q not permuted": ("gguf-lora", edit_gguf(change=unpermute), "update"),
    "gguf: k not permuted": ("gguf-lora", edit_gguf(change=lambda t: unpermute(t, "k", K)), "update"),
    "gguf: A transposed": ("gguf-lora", edit_gguf(change=lambda t: swap_a(t, "blk.1.attn_q.weight.lora_a")), "update"),
    "gguf: missing linear": ("gguf-lora", edit_gguf(change=lambda t: drop(t, "blk.1.attn_q")), "update"),
    "gguf: unknown tensor": (
        "gguf-lora",
        edit_gguf(change=lambda t: t.update({"blk.9.attn_q.weight.lora_a": t["blk.1.attn_q.weight.lora_a"]})),
        "read back",
    ),
}


# The classic five, in the words of each target; q and k have rows of their own order in GGUF only.
CLASSIC = {
    "mlx": ("alpha for scale", "q permuted", "A transposed", "missing linear", "scale 0"),
    "peft": ("scale for alpha", "q permuted", "A transposed", "missing linear", "alpha 0"),
    "gguf": ("scale for alpha", "q not permuted", "A transposed", "missing linear", "alpha 0"),
}


def test_every_target_has_the_classic_five() -> None:
    assert {f"{target}: {mistake}" for target, mistakes in CLASSIC.items() for mistake in mistakes} <= MUTATIONS.keys()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_caught(tmp_path: Path, source: Source, mutation: str) -> None:
    target, edit, check = MUTATIONS[mutation]
    export_adapter(source, target, tmp_path / "out")
    edit(tmp_path / "out")
    proof = verify_folder(tmp_path / "out", source)
    assert not proof.holds
    failed = [check.name for check in proof.failures]
    assert "files" in failed and check in failed
    if check == "update":
        assert "logits" in failed  # seen where it matters, too


@pytest.mark.parametrize("target", ADAPTER_TARGETS)
def test_an_exporter_that_writes_another_model_leaves_nothing(
    tmp_path: Path, source: Source, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = write.WRITERS[target]

    def wrong(folder: Path, source: Source) -> None:
        updates = {name: replace(update, b=-update.b) for name, update in source.updates.items()}
        writer(folder, replace(source, updates=updates))

    monkeypatch.setitem(write.WRITERS, target, wrong)
    with pytest.raises(Finding, match="ΔW differs"):
        export_adapter(source, target, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))


def test_provenance_that_the_file_lacks_is_caught(tmp_path: Path, source: Source) -> None:
    export_adapter(source, "mlx", tmp_path / "out")
    edit_mlx(lambda c, t: None)(tmp_path / "out")  # written again without the header's texts
    assert "provenance" in [check.name for check in verify_folder(tmp_path / "out", source).failures]


# ---- reverse mistakes ----


def test_another_base_is_refused_with_both_names(tmp_path: Path) -> None:
    folder = trained(tmp_path / "adapter", loaded(gguf_base(tmp_path / "one.gguf")))
    other = replace(loaded(gguf_base(tmp_path / "two.gguf", quantization="Q8_0")), name="other-model")
    with pytest.raises(Refused, match=r"trained on tiny .*not on other-model"):
        open_source(folder, other)


def test_everything_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    model = loaded(gguf_base(tmp_path / "base.gguf"))
    folder = trained(tmp_path / "adapter", model)
    tensors = load_file(folder / ADAPTER_FILE)
    tensors["model.layers.7.mlp.up_proj.lora_a"] = tensors["model.layers.1.mlp.up_proj.lora_a"]
    tensors["model.layers.7.mlp.up_proj.lora_b"] = tensors["model.layers.1.mlp.up_proj.lora_b"]
    tensors[f"{Q}.lora_a"], tensors[f"{Q}.lora_b"] = tensors[f"{Q}.lora_a"][:, :2].copy(), tensors[f"{Q}.lora_b"][:2].copy()
    tensors[f"{SQUARE}.lora_b"][0, 0] = np.nan
    save_file(tensors, folder / ADAPTER_FILE)
    with pytest.raises(InputError) as caught:
        open_source(folder, model)
    message = str(caught.value)
    assert "layers.7.mlp.up_proj is not in the base" in message and "ranks are mixed (2, 4)" in message and "not finite" in message


def test_an_adapter_that_changes_nothing_is_no_adapter(tmp_path: Path) -> None:
    model = loaded(gguf_base(tmp_path / "base.gguf"))
    folder = trained(tmp_path / "adapter", model)
    tensors = load_file(folder / ADAPTER_FILE)
    save_file({name: np.zeros_like(x) if name.endswith("lora_b") else x for name, x in tensors.items()}, folder / ADAPTER_FILE)
    with pytest.raises(InputError, match="changes nothing"):
        open_source(folder, model)


def test_out_is_never_overwritten(tmp_path: Path, source: Source) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(LocalsftError, match="exists already"):
        export_adapter(source, "mlx", tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text() == "mine"


# ---- the arithmetic of the comparison ----


def test_difference_is_that_of_the_whole_update() -> None:
    rng = np.random.default_rng(0)

    def update(rank: int, scale: float, *experts: int) -> Update:
        a, b = rng.standard_normal((*experts, 30, rank)), rng.standard_normal((*experts, rank, 20))
        return Update(a.astype(np.float32), b.astype(np.float32), scale)

    for one, other in ((update(3, 2.0), update(5, -0.5)), (update(2, 1.0, 4), update(2, 1.5, 4))):
        weight = np.zeros(one.shape, np.float32)
        whole = np.linalg.norm(one.delta(weight).astype(np.float64) - other.delta(weight))
        np.testing.assert_allclose(difference(one, other), whole, rtol=1e-6)
        np.testing.assert_allclose(one.norm, np.linalg.norm(one.delta(weight)), rtol=1e-6)
        assert difference(one, replace(one, scale=one.scale / 2, b=one.b * 2)) < 1e-12 * one.norm


def test_bos_twice_and_answers_without_an_end_are_findings(tmp_path: Path, source: Source) -> None:
    tokenizer = source.model.tokenizer
    bos, end = tokenizer.bos_id, max(tokenizer.stop_ids)
    tokenizer.add_bos = True
    ones = np.array([0, 0, 1, 1], np.float32)
    for ids, problem in (
        ([bos, bos, 50, end], "two BOS"),
        ([50, 51, 52, end], "not begin with BOS"),
        ([bos, 50, 51, 52], "none of the stop"),
    ):
        probe = replace(source.probes[0], ids=np.array(ids, np.int32), weights=ones, prompt=2)
        check = verify.check_prompts([probe], source.model, rules_of("gguf-lora", source.model, tmp_path))
        assert check.ok is False and problem in check.detail
