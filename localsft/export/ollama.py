"""What ``ollama create`` reads: a Modelfile beside a merged GGUF, or with the GGUF adapter on the base's file."""

from __future__ import annotations

from pathlib import Path

from localsft.errors import UsageError
from localsft.export.go_template import Turns, conversations, differing, find_turns, go_template
from localsft.export.proof import Check
from localsft.session import LoadedModel
from localsft.weights.gguf import open_gguf

MODELFILE = "Modelfile"


def bos_text(model: LoadedModel) -> str:
    """What the Jinja template writes for BOS and Ollama's llama.cpp adds by itself; '' where it adds none."""
    tokenizer = model.tokenizer
    if not tokenizer.add_bos or tokenizer.bos_id is None:
        return ""
    return tokenizer.token_bytes(tokenizer.bos_id).decode("utf-8", "replace")


def stop_texts(model: LoadedModel) -> list[str]:
    """The texts of the tokens that end an answer, those that the chat template writes."""
    tokens = model.tokenizer
    texts = [tokens.token_bytes(i).decode("utf-8", "replace") for i in sorted(tokens.stop_ids)]
    written = [text for text in texts if text and text in model.template.source]
    eos = tokens.token_bytes(tokens.eos_id).decode("utf-8", "replace") if tokens.eos_id is not None else ""
    return list(dict.fromkeys([*written, *([eos] if eos else [])]))


def write_modelfile(folder: Path, model: LoadedModel, model_file: str, adapter_file: str = "", system: str = "") -> Turns:
    """Write ``Modelfile``. Raises UsageError for a chat template that Go's language can't express this way."""
    turns = find_turns(model.template, bos_text(model))
    lines = [f"FROM {model_file}"]
    if adapter_file:
        lines.append(f"ADAPTER {adapter_file}")
    lines.append(f"TEMPLATE {_quoted(go_template(turns))}")
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stop_texts(model)]
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    (folder / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return turns


def _quoted(text: str) -> str:
    if '"""' in text or text.endswith('"'):
        raise UsageError(
            "a Modelfile can't hold a text with three quotation marks in a row, and the chat template or system prompt has such"
        )
    return f'"""{text}"""'


def check_modelfile(folder: Path, model: LoadedModel) -> list[Check]:
    """The Modelfile read back: files there, template rendered like the Jinja one, stop texts single tokens that end answers."""
    text = (folder / MODELFILE).read_text(encoding="utf-8")
    fields = read_modelfile(text)
    files = [name for key, name in fields if key in ("FROM", "ADAPTER")]
    absent = [name for name in files if not (folder / name).is_file()]
    checks = [Check("Modelfile", not absent, f"missing: {', '.join(absent)}" if absent else f"names {', '.join(files)}")]
    go = next((value for key, value in fields if key == "TEMPLATE"), "")
    turns = find_turns(model.template, bos_text(model))
    takes_system = turns.system is not None or turns.system_in_user is not None
    try:
        wrong = differing(go, model.template, bos_text(model), takes_system)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return [*checks, Check("template", False, f"the Go template can't be evaluated: {error}")]
    count = sum(takes_system or messages[0]["role"] != "system" for messages in conversations())
    detail = (
        f"conversations {', '.join(map(str, wrong))} are rendered differently" if wrong else f"{count} conversations rendered as by Jinja"
    )
    checks.append(Check("template", not wrong, detail))
    stops = [value for key, value in fields if key == "PARAMETER stop"]
    ids = model.tokenizer.control_tokens
    bad = [stop for stop in stops if ids.get(stop) not in model.tokenizer.stop_ids]
    checks.append(Check("stop", bool(stops) and not bad, f"no stop tokens: {bad}" if bad else f"stops at {', '.join(stops) or 'nothing'}"))
    gguf = next((folder / name for key, name in fields if key == "FROM"), None)
    if gguf and gguf.is_file():
        with open_gguf(gguf) as file:
            checks.append(Check("GGUF", True, f"{len(file.tensors)} tensors of {file.metadata.get('general.architecture')}"))
    return checks


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """(instruction, value) in order; PARAMETER with its name. Texts in three quotation marks go over lines."""
    found = []
    while text.strip():
        word, _, text = text.lstrip().partition(" ")
        if word == "PARAMETER":
            name, _, text = text.lstrip().partition(" ")
            word = f"{word} {name}"
        if text.startswith('"""'):
            value, _, text = text[3:].partition('"""')
        else:
            value, _, text = text.partition("\n")
        found.append((word, value))
    return found
