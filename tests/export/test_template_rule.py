"""The template as transformers and mlx-lm render it, from the files that they read."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from localsft.data.template import ChatTemplate
from localsft.errors import Finding
from localsft.export import template_rule
from localsft.export.hf_files import write_gguf_tokenizer
from localsft.export.merge import export_merged
from localsft.export.source import Source
from localsft.export.template_rule import check_template
from localsft.export.write import export_adapter
from tests.export.test_ollama import TEMPLATES
from tests.export.tiny import gguf_base, hf_base, source_of

GENERATION = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{% generation %}{{ m['content'] }}{% endgeneration %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    source = source_of(tmp_path, hf_base(tmp_path / "base"))
    write_gguf_tokenizer(tmp_path / "base", replace(source.model, base=gguf_base(tmp_path / "vocabulary.gguf")))
    return source


def with_template(source: Source, text: str, trained: str | None = None) -> Source:
    """``text`` in the base's files; ``trained`` (the same if None) in what was trained on."""
    path = source.model.base.path / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"chat_template": text, "bos_token": "<s>", "eos_token": "</s>"}
    path.write_text(json.dumps(settings))
    return replace(source, model=replace(source.model, template=ChatTemplate(trained or text, bos="<s>", eos="</s>")))


@pytest.mark.parametrize("template", [*TEMPLATES.values(), GENERATION], ids=[*TEMPLATES, "generation"])
def test_templates_are_rendered_as_by_jinja2(tmp_path: Path, source: Source, template: str) -> None:
    for target in ("mlx", "peft"):
        (check,) = check_template(target, with_template(source, template).model, tmp_path)
        assert check.ok, check.detail


def test_another_template_in_the_served_files_is_caught(tmp_path: Path, source: Source) -> None:
    changed = with_template(source, TEMPLATES["chatml"].replace("<|im_end|>\n", "<|im_end|>"), TEMPLATES["chatml"])
    (check,) = check_template("mlx", changed.model, tmp_path)
    assert check.ok is False and "rendered differently" in check.detail
    with pytest.raises(Finding, match="rendered differently"):
        export_adapter(changed, "peft", tmp_path / "out")


def test_the_jinja_file_goes_before_the_settings(tmp_path: Path, source: Source) -> None:
    (tmp_path / "base/chat_template.jinja").write_text("other")
    (check,) = check_template("mlx", source.model, tmp_path)
    assert check.ok is False


def test_a_merged_folder_is_read_itself(tmp_path: Path) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    proof = export_merged(source, "merged", tmp_path / "out", "f16")
    assert next(check for check in proof.checks if check.name == "template").ok
    path = tmp_path / "out/tokenizer_config.json"
    path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>Assistant"))
    assert check_template("merged", source.model, tmp_path / "out")[0].ok is False


def test_what_can_not_be_rendered_is_said(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_template("gguf-lora", source.model, tmp_path) == []
    monkeypatch.setattr(template_rule, "find_spec", lambda name: None)
    (check,) = check_template("mlx", source.model, tmp_path)
    assert check.ok is None and "pip install jinja2" in check.detail


@pytest.mark.parametrize(
    "template", ["{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "{{ 'a' * 10**9 }}"]
)
def test_a_hostile_template_ends_soon(tmp_path: Path, source: Source, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that behaves in our renderer, and shows what it is to jinja2 only."""
    start = time.monotonic()
    hostile = with_template(source, template, TEMPLATES["chatml"])
    (check,) = check_template("mlx", hostile.model, tmp_path)
    assert check.ok is False and time.monotonic() - start < 50
