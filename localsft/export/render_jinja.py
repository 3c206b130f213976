"""Renders conversations with jinja2 as transformers' apply_chat_template sets it up: ``python render_jinja.py`` with JSON on stdin.

Stands by itself. {folder, conversations} -> a list of texts, null for a conversation that the template refuses; null if the folder has
no template. It holds itself to a little memory and processor time, as templates come from strangers.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

CPU_SECONDS = 10
MEMORY = 1 << 30  # bytes, where the system holds a process to it


def main() -> None:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}…{% endgeneration %}: what stands between."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source, tokens = template_of(Path(request["folder"]))
    if source is None:
        json.dump(None, sys.stdout)
        return
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    template = environment.from_string(source)
    texts: list[str | None] = []
    for messages in request["conversations"]:
        prompt = messages[-1]["role"] == "user"
        try:
            texts.append(template.render(messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **tokens))
        except jinja2.TemplateError:
            texts.append(None)
    json.dump(texts, sys.stdout)


def template_of(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The template that counts, and the special tokens that it is given: chat_template.jinja goes before tokenizer_config.json."""
    config = read_json(folder / "tokenizer_config.json")
    special = {**read_json(folder / "special_tokens_map.json"), **config}
    tokens = {}
    for key in ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        value = special.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[key] = text
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), tokens
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {row["name"]: row["template"] for row in template}.get("default")
    return template if isinstance(template, str) else None, tokens


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


if __name__ == "__main__":
    main()
