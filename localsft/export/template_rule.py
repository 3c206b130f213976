"""The chat template as transformers and mlx-lm render it: their files, their rule of which template counts, and jinja2 itself.

jinja2's sandbox lets a template eat memory and time, so it runs in a process of its own, under the kernel's limits.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import orjson

from localsft.data.template import MARKS
from localsft.errors import InputError
from localsft.export.go_template import conversations
from localsft.export.proof import Check
from localsft.session import LoadedModel

_SECONDS = 60  # against a child that hangs without working; its processor time is limited by itself
_NO_MARKS = dict.fromkeys(map(ord, MARKS))


def check_template(target: str, model: LoadedModel, folder: Path) -> list[Check]:
    """Twenty conversations rendered by jinja2 from the files that transformers and mlx-lm load, beside the template that was trained on.
    Nothing for targets that are GGUF files: llama.cpp has a Jinja of its own, which only it can speak for."""
    if target not in ("mlx", "peft", "merged"):
        return []
    if target != "merged" and model.base.metadata:
        return [Check("template", None, "the base's Hugging Face folder, whose template will be used, is not here")]
    if find_spec("jinja2") is None:
        return [Check("template", None, "jinja2, which renders templates there, is not installed here: pip install jinja2")]
    talks = [[*talk, {"role": "assistant", "content": "Yes."}] if number % 2 else talk for number, talk in enumerate(conversations())]
    files = folder if target == "merged" else model.base.path
    script = str(Path(__file__).with_name("render_jinja.py"))
    try:
        done = subprocess.run(
            [sys.executable, "-I", script], input=orjson.dumps({"folder": str(files.resolve()), "conversations": talks}),
            capture_output=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Check("template", False, f"jinja2 did not render it within {_SECONDS} s")]
    if done.returncode:
        line = next(iter(reversed(done.stderr.decode("utf-8", "replace").splitlines())), f"exit code {done.returncode}")
        return [Check("template", False, f"jinja2 can't render it: {line[:300]}")]
    theirs = orjson.loads(done.stdout)
    if theirs is None:
        return [Check("template", None, "the base's files hold no chat template")]
    ours = [_rendered(model, talk) for talk in talks]
    wrong = [number for number, (a, b) in enumerate(zip(ours, theirs, strict=True), 1) if a != b]
    refused = sum(text is None for text in ours)
    detail = f"conversations {', '.join(map(str, wrong[:5]))} are rendered differently there" if wrong else ""
    words = f"{len(talks) - refused} conversations are rendered by jinja2 as here" + (f", {refused} refused by both" if refused else "")
    return [Check("template", not wrong, detail or words)]


def _rendered(model: LoadedModel, talk: Sequence[Mapping[str, str]]) -> str | None:
    try:
        text = model.template.render(talk, add_generation_prompt=talk[-1]["role"] == "user")
    except InputError:
        return None
    return text.translate(_NO_MARKS)
