"""Templates render as transformers renders them (jinja2 is the oracle), and hostile ones end in an error at once."""

from __future__ import annotations

import json
from datetime import datetime

import jinja2.sandbox
import pytest

from localsft.data.template import ChatTemplate
from localsft.errors import InputError
from tests.tiny_vocab import CHATML

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is 1 < 2 & \"quoted\" 'é' 日本?"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": [1, "é<"]}}}]},
    {"role": "tool", "content": "yes"},
    {"role": "assistant", "content": "  Yes.\n"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}]


def oracle(source: str, **values: object) -> str:
    """transformers' way to render (utils/chat_template_utils.py), with jinja2."""

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = NOW.strftime
    return environment.from_string(source).render(**values)


NOW = datetime(2026, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        "{% for m in messages if m.role != 'system' %}\n  [{{ loop.index0 }}/{{ loop.length }}] {{ m.content | trim }}\n{% endfor %}\n",
        "{% for m in messages if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}",
        "{{ tools | tojson(indent=4) }}{{ messages[1:] | length }}{{ messages[-1]['content'].strip() }}{{ strftime_now('%d %b %Y') }}",
        "{% set n = namespace(i=0) %}{% for m in messages %}{% if m.tool_calls %}{% break %}{% endif %}{% set n.i = n.i + 1 %}{% endfor %}"
        "{{ n.i }}",
        "{% macro say(x, y='z') %}<{{ x }}{{ y }}>{% endmacro %}{{ say('a') }}{{ say('b', y=messages[0].role) }}",
        "{% for m in messages %}{{ m.content.split(' ')[0] }}|{{ m.content.replace('e', 'E') }}{{ m.role.startswith('a') }}{% endfor %}",
        "{% for k, v in tools[0].function.items() %}{{ k }}={{ v }},{% endfor %}{{ messages | map(attribute='role') | join(',') }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ none }}{{ gone }}{{ 'x' if missing is defined }}",
        "{{ {'a': 1, 'b': [true, none]} }}{{ 'a' 'b' ~ 1 }}{{ 7 // 2 }}{{ 1.0 }}{{ 'abc'[::-1] }}{{ messages[0].get('name', 'no') }}",
    ],
)
def test_as_jinja2(source: str) -> None:
    values = {"tools": TOOLS, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    ours = ChatTemplate(source, bos="<s>", eos="</s>", now=NOW).render(MESSAGES, TOOLS, add_generation_prompt=True)
    assert ours == oracle(source, messages=MESSAGES, **values)


def test_generation_blocks_become_marks() -> None:
    template = ChatTemplate("a {%- generation %}  b{% endgeneration -%} c")
    assert template.marks_generation
    assert template.render([]) == "a\ufdd1  b\ufdd2c"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ strftime_now.__globals__['os'] }}",
        "{{ raise_exception.__self__.x }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ 'a' * 10**9 }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ messages | tojson(default=1) }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
    ],
)
@pytest.mark.timeout(5)
def test_hostile_templates_end_in_an_error(source: str) -> None:
    with pytest.raises(InputError) as error:
        ChatTemplate(source).render(MESSAGES, TOOLS, source="data.jsonl:7")
    assert "\n" not in str(error.value)


def test_a_template_can_not_change_the_data() -> None:
    messages = [{"role": "user", "content": "hi", "tool_calls": [{"a": 1}]}]
    ChatTemplate("{{ messages[0].pop('role') }}{{ messages[0].tool_calls[0].clear() }}{{ messages.clear() }}").render(messages)
    assert messages == [{"role": "user", "content": "hi", "tool_calls": [{"a": 1}]}]


def test_syntax_errors_are_told_at_once() -> None:
    with pytest.raises(InputError, match=r"model.gguf: minijinja can't read"):
        ChatTemplate("{% if %}", where="model.gguf")
    with pytest.raises(InputError, match="longer than"):
        ChatTemplate("x" * (1 << 20) + "x")
