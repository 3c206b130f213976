"""Where each target stops, by its own files and rule; and what verify says where that is not where answers end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localsft.errors import Finding
from localsft.export.hf_files import write_gguf_tokenizer
from localsft.export.merge import export_merged
from localsft.export.source import Source
from localsft.export.stop_rules import StopRule, llama_cpp_stop_ids, mlx_lm_stop_ids, rules_of, transformers_stop_ids
from localsft.export.verify import answer_ends, check_prompts
from localsft.export.write import export_adapter
from tests.export.tiny import gguf_base, hf_base, loaded, source_of
from tests.tiny_vocab import tiny_metadata

TOKENS = tiny_metadata()["tokenizer.ggml.tokens"]  # <|endoftext|> 0, <|im_end|> 2, </s> 4


def names(ids: frozenset[int], tokens: list[str] = TOKENS) -> set[str]:
    return {tokens[number] for number in ids}


def metadata(*tokens: str, **ids: int) -> dict[str, Any]:
    named = {f"tokenizer.ggml.{key}_token_id": value for key, value in ids.items()}
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": list(tokens)} | named


def test_llama_cpp_stops_at_named_ids_and_at_listed_texts() -> None:
    assert names(llama_cpp_stop_ids(tiny_metadata())) == {"<|endoftext|>", "<|im_end|>", "</s>"}
    assert llama_cpp_stop_ids(metadata("a", "b", "c", "d", "e", eos=1, eot=2, eom=3)) == {1, 2, 3}
    assert llama_cpp_stop_ids(metadata("a", "b", "<file_sep>", "<|file_sep|>", "<|fim_pad|>", "<fim-repo>", eos=0)) == {0, 3, 4, 5}
    assert llama_cpp_stop_ids(metadata("a", "<|fim_pad|>", "b", eos=0, fim_pad=2)) == {0, 2}  # the named id goes before the text
    assert llama_cpp_stop_ids(metadata("<|END_OF_TURN_TOKEN|>", "b", eos=1)) == {1}  # not in its list


def test_llama_cpp_takes_its_default_for_eos_where_the_file_names_none() -> None:
    assert llama_cpp_stop_ids(metadata(*"abcdefghijklmn")) == {11}
    assert llama_cpp_stop_ids(metadata(*"abcdefghijklmn", eos=99)) == {11}
    assert llama_cpp_stop_ids(metadata(*"abcd") | {"tokenizer.ggml.model": "llama"}) == {2}
    assert llama_cpp_stop_ids(metadata(*"abcd")) == set()


def test_llama_cpp_takes_back_what_ends_a_message_only() -> None:
    harmony = ("<|return|>", "<|call|>", "<|end|>", "<|message|>")
    assert llama_cpp_stop_ids(metadata(*harmony, eos=0)) == {0, 1}
    assert llama_cpp_stop_ids(metadata("<|end|>", "<|call|>", "x", eos=2)) == {0, 1, 2}
    assert llama_cpp_stop_ids(metadata("<|end|>", "<|calls|>", "<|flush|>", eos=2)) == {1, 2}
    assert llama_cpp_stop_ids(metadata("</s>", "<|tool_response>", "<eos>", eos=2)) == {1, 2}


def folder(path: Path, **files: Any) -> Path:
    path.mkdir()
    for name, document in files.items():
        (path / f"{name}.json").write_text(json.dumps(document))
    return path


def test_transformers_and_mlx_lm_read_other_files(tmp_path: Path) -> None:
    vocabulary = {"added_tokens": [{"id": 7, "content": "<end>"}], "model": {"vocab": {"x": 3}}}
    both = folder(
        tmp_path / "both", config={"eos_token_id": 1}, generation_config={"eos_token_id": [2, 5]}, tokenizer=vocabulary,
        tokenizer_config={"eos_token": {"content": "<end>"}},
    )  # fmt: skip
    assert transformers_stop_ids(both) == {2, 5} and mlx_lm_stop_ids(both) == {2, 5, 7}
    silent = folder(tmp_path / "silent", config={"eos_token_id": 1}, generation_config={"do_sample": False})
    # transformers: a generation_config.json that says nothing goes before config.json.
    assert transformers_stop_ids(silent) == set() and mlx_lm_stop_ids(silent) == {1}
    old = folder(tmp_path / "old", config={"eos_token_id": [1, 4]})
    assert transformers_stop_ids(old) == mlx_lm_stop_ids(old) == {1, 4}
    bare = folder(tmp_path / "bare", config={}, tokenizer=vocabulary, tokenizer_config={"eos_token": "x"})
    assert transformers_stop_ids(bare) == set() and mlx_lm_stop_ids(bare) == {3}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A folder base whose config.json and generation_config.json can be made to disagree with its template."""
    source = source_of(tmp_path, hf_base(tmp_path / "base"))
    write_gguf_tokenizer(tmp_path / "base", replace(source.model, base=gguf_base(tmp_path / "vocabulary.gguf")))
    return source


def test_answers_end_with_what_the_template_writes(source: Source) -> None:
    assert names(answer_ends(source.model)) == {"<|im_end|>"}


@pytest.mark.parametrize("target", ["mlx", "peft"])
def test_a_base_that_stops_elsewhere_is_refused_by_name(tmp_path: Path, source: Source, target: Any) -> None:
    """The classic: a template with <|im_end|> on a base that knows <|endoftext|> only."""
    for name in ("config.json", "generation_config.json"):  # mlx-lm takes a 0 in the latter for nothing said
        file = tmp_path / "base" / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | {"eos_token_id": 0}))
    settings = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    with pytest.raises(
        Finding, match=r"goes on behind <\|im_end\|>, which ends answers: by generation_config\.json.*<\|endoftext\|>; add \[2\]"
    ):
        export_adapter(source, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_adapter(source, "gguf-lora", tmp_path / "gguf")  # llama.cpp finds <|im_end|> by its text


def test_targets_that_disagree_are_told_apart(tmp_path: Path, source: Source) -> None:
    """mlx-lm also asks the tokenizer for its eos, transformers does not."""
    (tmp_path / "base/generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    export_adapter(source, "mlx", tmp_path / "mlx")  # tokenizer_config.json says <|im_end|>
    with pytest.raises(Finding, match="transformers goes on behind"):
        export_adapter(source, "peft", tmp_path / "peft")
    with pytest.raises(Finding, match="transformers goes on behind"):
        export_merged(source, "merged", tmp_path / "merged", "f16")
    export_merged(source, "merged", tmp_path / "quantized", "mlx-8bit")  # which only mlx-lm loads


def test_a_base_without_an_end_token_is_named(tmp_path: Path, source: Source) -> None:
    (tmp_path / "base/generation_config.json").write_text(json.dumps({"do_sample": False}))
    proof = export_adapter(source, "peft", tmp_path / "out")
    check = next(check for check in proof.checks if check.name == "prompts")
    assert check.ok is None and "transformers never stops by itself" in check.detail and "put [2] there" in check.detail


def test_stop_tokens_of_localsft_alone_are_named(tmp_path: Path) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    (rule,) = rules_of("gguf-lora", source.model, tmp_path)
    assert rule.program == "llama.cpp" and names(rule.ids) == {"<|endoftext|>", "<|im_end|>", "</s>"}
    check = check_prompts(source.probes, source.model, [StopRule(frozenset((2,)), "that", "this")])
    assert check.ok and "that does not stop at <|endoftext|>, at which localsft does" in check.detail


def test_a_gguf_that_stops_elsewhere_is_refused(tmp_path: Path) -> None:
    """Command R's end of turn is in nobody's list of texts: there the file has to name it."""
    tokens = [*TOKENS]
    tokens[tokens.index("<|im_end|>")] = "<|END_OF_TURN_TOKEN|>"
    base = gguf_base(tmp_path / "base.gguf", **{"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": 0})
    model = loaded(base)
    model.tokenizer.stop_ids = frozenset((0, 2))
    check = check_prompts([], model, rules_of("gguf-lora", model, tmp_path))
    assert check.ok is False and "llama.cpp goes on behind" in check.detail
