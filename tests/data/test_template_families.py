"""The chat templates of 70 models: rendered as jinja2 renders them, and supervised as the committed table says.

The templates are other people's and not in this repository: LOCALSFT_TEST_TEMPLATES names a folder with them, the
``vendor/llama.cpp/models/templates`` of llama-cpp-python's source distribution (``make test-all`` fetches it).
``python tests/data/test_template_families.py FOLDER`` writes the table anew, to be read before it is committed.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path

import pytest

from localsft.data.render import render
from localsft.data.template import ChatTemplate
from localsft.errors import InputError
from tests.data.template_cases import CONVERSATIONS, RENDERED, TOOL, jinja2_template, supervised, tokenizer_of

pytestmark = pytest.mark.slow
TABLE = Path(__file__).parent / "template_families.json"
NOW = datetime(2026, 2, 3, 4, 5)
# Where minijinja and jinja2 part, and why. In each case jinja2 can't be what is meant.
DIFFERENT = {
    "CohereForAI-c4ai-command-r-plus-tool_use": "jinja2 refuses to loop over tools that are none; minijinja loops zero times",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "jinja2 refuses to loop over tools that are none; minijinja loops zero times",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "jinja2 refuses to loop over tools that are none; minijinja loops zero times",
    "LFM2.5-8B-A1B": "jinja2 refuses to loop over content that is none; minijinja loops zero times",
    "llama-cpp-deepseek-r1": "jinja2 refuses to write `tools | map(...)` as JSON, as it is a generator; minijinja writes the list",
    "meetkai-functionary-medium-v3.1": "jinja2 escapes HTML in what is added to a `| safe` text; minijinja adds it as it is",
}


def templates() -> dict[str, str]:
    folder = os.environ.get("LOCALSFT_TEST_TEMPLATES")
    if not folder:
        pytest.skip("LOCALSFT_TEST_TEMPLATES does not name a folder of chat templates (make test-all fetches them)")
    return {file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8") for file in sorted(Path(folder).glob("*.jinja"))}


def compare(source: str) -> list[str]:
    """The cases in which we render another text than jinja2; refusing alike counts as alike."""
    template = ChatTemplate(source, bos="<s>", eos="</s>", now=NOW)
    oracle = jinja2_template(source, NOW)
    different = []
    for name, messages in RENDERED.items():
        for tools in ([], [TOOL]):
            for prompt in (False, True):
                fitted = json.loads(json.dumps(list(template._fitted(messages))))
                values = {"messages": fitted, "tools": tools or None, "bos_token": "<s>", "eos_token": "</s>"}
                try:
                    want = oracle.render(add_generation_prompt=prompt, **values)
                except Exception:
                    want = None
                try:
                    got = template.render(messages, tools, add_generation_prompt=prompt)
                except InputError:
                    got = None
                if got != want:
                    different.append(f"{name}, {len(tools)} tools, prompt {prompt}")
    return different


def spans(source: str) -> dict[str, object]:
    """Conversation -> the supervised texts of each example, with what was noted; or the error."""
    tokenizer = tokenizer_of(source)
    template = ChatTemplate(source, bos="<s>", eos="</s>", now=NOW)
    found: dict[str, object] = {}
    for name, conversation in CONVERSATIONS.items():
        try:
            result = render(conversation, tokenizer, template, mask="assistant", max_length=10**6)
        except InputError as error:
            found[name] = str(error).removeprefix(f"{conversation.source}: ")
        else:
            found[name] = supervised(result, tokenizer)
            assert not result.skipped
    return found


def test_rendered_as_jinja2_does() -> None:
    found = {name: compare(source) for name, source in templates().items()}
    assert len(found) >= 67
    assert {name for name, different in found.items() if different} == set(DIFFERENT)


def test_supervised_as_the_table_says() -> None:
    table = json.loads(TABLE.read_text())
    found = {name: spans(source) for name, source in templates().items()}
    assert {name: found[name] for name in table} == table


if __name__ == "__main__":
    files = sorted(Path(sys.argv[1]).glob("*.jinja"))
    table = {file.name.removesuffix(".jinja"): spans(file.read_text(encoding="utf-8")) for file in files}
    TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
