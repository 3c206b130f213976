"""The Go template says what the Jinja template says, and the Modelfile stops where the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from localsft.data.template import ChatTemplate
from localsft.errors import Finding, UsageError
from localsft.export import merge, ollama
from localsft.export.go_evaluate import evaluate_go
from localsft.export.go_template import conversations, differing, find_turns, go_template
from localsft.export.merge import export_merged
from localsft.export.ollama import check_modelfile, read_modelfile, write_modelfile
from tests.export.tiny import gguf_base, source_of
from tests.tiny_vocab import CHATML

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
    "assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}{% for message in turns %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + (first if loop.first else '') + "
    "message['content'] | trim }}{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "smollm": SMOLLM, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL}


@pytest.mark.parametrize("name", TEMPLATES)
def test_go_template_renders_as_jinja2_itself(name: str) -> None:
    """The reference here is jinja2, as transformers sets it up, not the renderer that the template was derived with."""

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    jinja = environment.from_string(TEMPLATES[name])
    go = go_template(find_turns(ChatTemplate(TEMPLATES[name], bos="<s>", eos="</s>"), "<s>"))
    compared = 0
    for messages in conversations():
        if name == "mistral" and messages[0]["role"] == "system":
            continue
        expected = jinja.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        assert evaluate_go(go, messages) == expected.removeprefix("<s>")
        compared += 1
    assert compared == (10 if name == "mistral" else 20)


def test_an_unfinished_answer_is_left_open() -> None:
    go = go_template(find_turns(ChatTemplate(CHATML)))
    text = evaluate_go(go, [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "h"}])
    assert text.endswith("<|im_start|>assistant\nh")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {{- .System -}} b", "asysb"),
        ("{{ if eq (len .Messages) 3 }}three{{ else if eq 1 2 }}x{{ else }}y{{ end }}", "three"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ .Role }}{{ $m.Content }};{{ end }}", "0systemsys;1userhi;2assistantyo;"),
        ("{{ (index .Messages (len (slice .Messages 1))).Role }}", "assistant"),
        ('{{ or "" "b" }}{{ and "a" "" }}{{ if not .System }}no{{ end }}', "b"),
        ('{{ "{{" }}', "{{"),
        ("{{ range $i, $m := .Messages }}{{ if ne (len (slice $.Messages $i)) 1 }}{{ $i }}{{ end }}{{ end }}", "01"),
    ],
)
def test_evaluator_follows_go(template: str, expected: str) -> None:
    """Expected values by the documentation of Go's text/template."""
    messages = [{"role": role, "content": text} for role, text in (("system", "sys"), ("user", "hi"), ("assistant", "yo"))]
    assert evaluate_go(template, messages) == expected


@pytest.mark.parametrize("template", ["{{ if .System }}x", "{{ end }}", "{{ printf 1 }}", "{{ .Messages }}", "{{ slice .Messages 9 }}"])
def test_evaluator_refuses_what_it_does_not_know(template: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        evaluate_go(template, [{"role": "user", "content": "x"}])


def test_a_changed_template_is_noticed() -> None:
    template = ChatTemplate(SMOLLM)
    go = go_template(find_turns(template))
    assert differing(go, template) == []
    assert len(differing(go.replace("<|im_end|>\n", "<|im_end|>", 1), template)) >= 10


def test_a_template_that_rewrites_contents_is_refused() -> None:
    upper = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | upper }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    with pytest.raises(UsageError, match="write the Modelfile's TEMPLATE yourself"):
        find_turns(ChatTemplate(upper))


@pytest.mark.parametrize("kind", ["Q8_0", "adapter"])
def test_export_for_ollama(tmp_path: Path, kind: str) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    proof = export_merged(source, "ollama", tmp_path / "out", kind, system="You sort tickets.")
    assert all(check.ok for check in proof.checks)
    fields = dict(read_modelfile((tmp_path / "out" / "Modelfile").read_text()))
    assert fields["SYSTEM"] == "You sort tickets." and fields["PARAMETER stop"] in source.model.tokenizer.control_tokens
    assert ("ADAPTER" in fields) == (kind == "adapter")


def test_a_wrong_modelfile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))

    def wrong(folder: Path, *arguments: Any, **options: Any) -> None:
        write_modelfile(folder, *arguments, **options)
        path = folder / ollama.MODELFILE
        path.write_text(path.read_text().replace("assistant\n", "assistant "))

    monkeypatch.setattr(merge, "write_modelfile", wrong)
    with pytest.raises(Finding, match="rendered differently"):
        export_merged(source, "ollama", tmp_path / "out", "adapter")
    assert not (tmp_path / "out").exists()


def test_a_stop_text_that_is_no_token_is_caught(tmp_path: Path) -> None:
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    write_modelfile(tmp_path, source.model, "./base.gguf")
    path = tmp_path / "Modelfile"
    path.write_text(path.read_text().replace('stop """<|im_end|>"""', 'stop """<|fin|>"""'))
    assert {check.name: check.ok for check in check_modelfile(tmp_path, source.model)}["stop"] is False
