"""The proof in Ollama: what it says beside what our engine says. A stand-in serves answers that the tests choose; Ollama itself, where
it is installed, is asked in the slow tests."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.config import LoraConfig
from localsft.data.conversation import Message
from localsft.data.render import render_prompt
from localsft.export.merge import export_merged
from localsft.export.ollama import bos_text
from localsft.export.ollama_proof import ABSENT_OLLAMA
from localsft.export.proof import Check
from localsft.export.runtime_compare import Answers, answers, until
from localsft.export.runtimes import open_merged, runtime_checks_of, runtime_prompts
from localsft.export.source import GENERAL_PROMPTS, Source, open_source
from localsft.export.stop_rules import llama_cpp_stop_ids
from localsft.session import load_model
from localsft.tokenizer import load_tokenizer
from tests.export.tiny import gguf_base, source_of, trained
from tests.tiny_vocab import CHATML, CONTROL

STAND_IN = """#!{python}
import json, os, pathlib, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
told = json.loads(pathlib.Path({told!r}).read_text())
if sys.argv[1] == "create":
    sys.exit(told.get("refusal") or 0)
class Handler(BaseHTTPRequestHandler):
    def reply(self, document):
        body = json.dumps(document).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        self.reply({{"version": "1.2.3"}})
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/generate":
            answer = told["answers"].pop(0)
            answer["prompt_eval_count"] += bool(told["bos"]) and request["prompt"].startswith(told["bos"])  # it writes one itself
            self.reply(answer)
        elif request.get("_debug_render_only"):
            self.reply({{"_debug_info": {{"rendered_template": told["chats"][0]["text"]}}}})
        else:
            self.reply({{"prompt_eval_count": told["chats"].pop(0)["count"]}})
    def log_message(self, *words): pass
host, port = os.environ["OLLAMA_HOST"].split(":")
HTTPServer((host, int(port)), Handler).serve_forever()
"""


def said(source: Source, model: Path) -> tuple[dict[str, Any], Answers]:
    """What an Ollama with our own numbers would say about the merged model."""
    engine, loaded = open_merged(model, source), source.model
    prompts = runtime_prompts(source)
    own = answers(engine, prompts)
    stops = llama_cpp_stop_ids(loaded.base.metadata)
    control = set(loaded.tokenizer.control_tokens.values())

    def token(number: int) -> dict[str, Any]:
        return {} if number in control else {"bytes": list(loaded.tokenizer.token_bytes(number))}

    rows = []
    for prompt, row, text in zip(prompts, own.logits, own.texts, strict=True):
        ids = until(text, stops)
        ended = ids[-1] in stops
        logprobs = row - np.log(np.exp(row.astype(np.float64)).sum())
        top = [{**token(int(i)), "logprob": float(logprobs[i])} for i in np.argsort(-row)[:20]]
        tokens = [{**token(i), "top_logprobs": top} for i in (ids[:-1] if ended else ids)]
        rows.append({"response": "x", "prompt_eval_count": len(prompt), "logprobs": tokens, "done_reason": "stop" if ended else "length"})
    chats = []
    for text in GENERAL_PROMPTS:
        shown = loaded.template.render([{"role": "user", "content": text}], add_generation_prompt=True).removeprefix(bos_text(loaded))
        chats.append({"text": shown, "count": len(render_prompt([Message("user", text)], loaded.tokenizer, loaded.template))})
    return {"answers": rows, "chats": chats, "bos": bos_text(loaded)}, own


def ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any], Answers], None], **keys: Any
) -> dict[str, Check]:
    """The checks of Ollama by their names, with a stand-in on PATH that says ``said``, changed. ``keys``: of the base's metadata."""
    base = gguf_base(tmp_path / "base.gguf", **keys)
    source = source_of(tmp_path, base, tokenizer=load_tokenizer(base.metadata, "base.gguf"))
    export_merged(source, "ollama", tmp_path / "out", "F16")
    document, own = said(source, tmp_path / "out" / "model.gguf")
    change(document, own)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "told.json").write_text(json.dumps(document))
    (folder / "ollama").write_text(STAND_IN.format(python=sys.executable, told=str(folder / "told.json")))
    (folder / "ollama").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    checks = runtime_checks_of("ollama", source, "F16")(tmp_path / "out")
    return {check.name.removeprefix("ollama 1.2.3: "): check for check in checks}


def test_the_same_answers_are_a_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = ask(tmp_path, monkeypatch, lambda document, own: None)
    assert [checks[name].ok for name in ("tokens", "prompts", "probabilities", "text")] == [True] * 4
    assert checks["probabilities"].figures["apart"] < 1e-5 and checks["text"].figures["same"] == 10
    assert checks["runtime"].ok is None  # no llama.cpp on this PATH


def test_each_difference_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more BOS; a template that writes other text; other probabilities; an answer cut short; each by its own check."""

    def change(document: dict[str, Any], own: Answers) -> None:
        document["answers"][1]["prompt_eval_count"] += 1
        document["chats"][2]["text"] += " "
        top = document["answers"][3]["logprobs"][0]["top_logprobs"]
        top[0]["logprob"] = 0.0
        document["answers"][4]["logprobs"] = document["answers"][4]["logprobs"][:1]
        document["answers"][4]["done_reason"] = "length"

    checks = ask(tmp_path, monkeypatch, change)
    assert [checks[name].ok for name in ("tokens", "prompts", "probabilities", "text")] == [False] * 4
    assert "prompts [2]" in checks["tokens"].detail and "conversations [3]" in checks["prompts"].detail


def test_a_prompt_of_another_length_is_found_without_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(document: dict[str, Any], own: Answers) -> None:
        document["chats"][1].update(text=None, count=document["chats"][1]["count"] + 1)

    assert "conversations [2]" in ask(tmp_path, monkeypatch, change)["prompts"].detail


def test_the_bos_is_left_to_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"add_bos_token": True, "bos_token_id": CONTROL.index("<s>")}
    template = {"tokenizer.chat_template": "{{ bos_token }}" + CHATML}
    checks = ask(tmp_path, monkeypatch, lambda document, own: None, **{f"tokenizer.ggml.{key}": keys[key] for key in keys} | template)
    assert json.loads((tmp_path / "bin" / "told.json").read_text())["bos"] and checks["tokens"].ok


def test_an_answer_that_ends_has_its_stop_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is kept back: it is the likeliest of the tokens that end answers. A text that ends there and not here is found."""
    base = gguf_base(tmp_path / "plain.gguf")
    (tmp_path / "plain").mkdir()
    source = source_of(tmp_path / "plain", base)
    export_merged(source, "ollama", tmp_path / "plain" / "out", "F16")
    first = answers(open_merged(tmp_path / "plain" / "out" / "model.gguf", source), runtime_prompts(source)).texts[0]
    end = next(token for token in first[2:] if token not in first[:2])
    places: list[int] = []

    def change(document: dict[str, Any], own: Answers) -> None:
        places.extend(place for place, row in enumerate(document["answers"]) if row["done_reason"] == "stop")

    key = {"tokenizer.ggml.eot_token_id": end}
    checks = ask(tmp_path, monkeypatch, change, **key)
    assert places and checks["text"].ok and checks["text"].figures["same"] == 10

    def cut(document: dict[str, Any], own: Answers) -> None:
        row = document["answers"][places[0]]
        row["logprobs"] = row["logprobs"][:1]

    (tmp_path / "cut").mkdir()
    assert not ask(tmp_path / "cut", monkeypatch, cut, **key)["text"].ok


def test_an_older_ollama_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(document: dict[str, Any], own: Answers) -> None:
        for row in document["answers"]:
            del row["logprobs"]

    checks = ask(tmp_path, monkeypatch, change)
    assert checks["ollama 1.2.3"].ok is None and "tells no probabilities" in checks["ollama 1.2.3"].detail


def test_a_refused_modelfile_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = ask(tmp_path, monkeypatch, lambda document, own: document.update(refusal="Error: unknown instruction"))
    assert checks["ollama"].ok is False and "ollama create refuses the Modelfile: Error: unknown instruction" in checks["ollama"].detail


def test_without_ollama_the_proof_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    source = source_of(tmp_path, gguf_base(tmp_path / "base.gguf"))
    for kind in ("F16", "adapter"):
        proof = export_merged(source, "ollama", tmp_path / f"out-{kind}", kind, runtime_checks=runtime_checks_of("ollama", source, kind))
        assert proof.checks[-1].ok is None and proof.checks[-1].detail == ABSENT_OLLAMA


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["Q8_0", "adapter"])
def test_smollm2_in_ollama_itself(tmp_path: Path, smollm2_path: Path, kind: str) -> None:
    """The real model with an adapter of the size that training makes."""
    if shutil.which("ollama") is None:
        pytest.skip(ABSENT_OLLAMA)
    model = load_model("smollm2-135m-instruct", smollm2_path)
    source = open_source(trained(tmp_path / "adapter", model, LoraConfig(rank=8, alpha=16.0), size=0.02), model)
    proof = export_merged(source, "ollama", tmp_path / "out", kind, runtime_checks=runtime_checks_of("ollama", source, kind))
    asked = [check for check in proof.checks if check.name.startswith("ollama ")]
    assert len(asked) == 4 and all(check.ok for check in asked)
