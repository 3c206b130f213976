"""A template that eats memory or time ends in a child process, with one sentence."""

from __future__ import annotations

import pytest
from tiny_vocab import CHATML

from localsft.data.template import ChatTemplate
from localsft.data.vetting import vet
from localsft.errors import InputError


@pytest.mark.parametrize(
    "source",
    [
        "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ messages | string | upper }}{% endfor %}{% endfor %}",
    ],
    ids=["doubling", "loops"],
)
def test_eating_memory_or_time_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=r"model.gguf: the chat template takes more than a second or 512 MiB") as error:
        vet(ChatTemplate(source, where="model.gguf"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["{{ '%1000000000d' | format(1) }}", "{{ 'a' | indent(10**9) }}", "{{ 'a' * 10**9 }}"])
def test_one_step_that_would_write_a_gigabyte_is_refused(source: str) -> None:
    template = ChatTemplate(source, where="model.gguf")
    with pytest.raises(InputError, match=r"model.gguf: the chat template") as error:
        vet(template)  # with minijinja 2, which writes it
        template.render([{"role": "user", "content": "a"}], [], add_generation_prompt=False)  # minijinja 3 counts it as steps
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", [CHATML, "{{ raise_exception('only tools') }}", "{{ undefined.attribute }}"])
def test_honest_templates_pass(source: str) -> None:
    vet(ChatTemplate(source))
