"""A template that eats memory, time or the stack ends in a child process, with one sentence."""

from __future__ import annotations

import pytest

from localsft.data.render import chat_template
from localsft.data.template import ChatTemplate
from localsft.data.vetting import vet
from localsft.errors import InputError
from tests.tiny_vocab import CHATML, tiny_tokenizer


@pytest.mark.parametrize(
    "source",
    [
        "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ messages | string | upper }}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}",
        "{{ " + "not " * 100_000 + "1 }}",
        "{{ a" + ".b" * 100_000 + " }}",
        "{{ 1" + " | string" * 100_000 + " }}",
        "{% if 0 %}" + "{% elif 0 %}" * 30_000 + "{% endif %}",
    ],
    ids=["doubling", "loops", "quick loops", "operators", "attributes", "filters", "branches"],
)
def test_eating_memory_time_or_stack_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=r"model.gguf: the chat template takes more than a second or 512 MiB") as error:
        chat_template(tiny_tokenizer(), source, "model.gguf")  # in this process the last four would overflow the stack
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["{{ '%1000000000d' | format(1) }}", "{{ 'a' | indent(10**9) }}", "{{ 'a' * 10**9 }}"])
def test_one_step_that_would_write_a_gigabyte_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=r"model.gguf: the chat template") as error:
        vet(source, where="model.gguf")  # with minijinja 2, which writes it
        ChatTemplate(source, where="model.gguf").render([{"role": "user", "content": "a"}])  # minijinja 3 counts it as steps
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", [CHATML, "{{ raise_exception('only tools') }}", "{{ undefined.attribute }}", "{% if %}"])
def test_honest_templates_pass(source: str) -> None:
    vet(source)
