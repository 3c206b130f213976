"""Ollama's TEMPLATE, in Go's template language, derived from a Jinja chat template by looking at what that writes.

The Jinja template is rendered with contents that stand nowhere else, and what it puts around them is read off: before and after
each role's content, at the start without a system message, and at the end to ask for an answer. Ollama hands a template
``.Messages`` with ``.Role`` and ``.Content`` (its docs/template.md); BOS is not written, since its llama.cpp adds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localsft.data.template import ChatTemplate
from localsft.errors import InputError, UsageError
from localsft.export.go_evaluate import evaluate_go

Messages = Sequence[Mapping[str, str]]
_S, _U, _A, _V = "\u241esystem\u241f", "\u241efirst\u241f", "\u241eanswer\u241f", "\u241esecond\u241f"


@dataclass(frozen=True, slots=True)
class Turns:
    """What stands around the contents. ``system``: (before, after) of a turn of its own; else ``system_in_user``: what stands between
    the system text and the first user's, in whose turn it goes; both None where the template takes no system message."""

    start: str  # before the first turn where there is no system message
    system: tuple[str, str] | None
    system_in_user: str | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    ask: str  # what makes the model answer


def find_turns(template: ChatTemplate, bos: str = "") -> Turns:
    """Raises UsageError for a template that does not put fixed texts around contents."""

    def render(*messages: tuple[str, str], ask: bool = False) -> str:
        text = template.render([{"role": role, "content": text} for role, text in messages], add_generation_prompt=ask)
        return text.removeprefix(bos) if bos else text

    first, answer, second = ("user", _U), ("assistant", _A), ("user", _V)
    plain = _split(render(first, answer, second), (_U, _A, _V))
    asked = render(first, answer, second, ask=True)
    user_after = plain[3]
    assistant_before = _without_prefix(plain[1], user_after)
    ended = _split(render(first, answer), (_U, _A))[2]
    assistant_after = ended if plain[2].startswith(ended) else _without_suffix(plain[2], _common_end(plain[0], plain[2]))
    user_before = _without_prefix(plain[2], assistant_after)
    start = _without_suffix(plain[0], user_before)
    ask = _without_prefix(asked, render(first, answer, second))
    system: tuple[str, str] | None = None
    in_user: str | None = None
    try:
        with_system = _split(render(("system", _S), first), (_S, _U))
    except (InputError, UsageError):
        with_system = []
    if with_system and with_system[0].endswith(user_before) and not with_system[1].endswith(user_before):
        in_user = with_system[1]
    elif with_system:
        system = (with_system[0], _without_suffix(with_system[1], user_before))
    return Turns(start, system, in_user, (user_before, user_after), (assistant_before, assistant_after), ask)


def _split(text: str, contents: Sequence[str]) -> list[str]:
    """The texts around ``contents``, each of which stands in ``text`` once, in this order."""
    parts = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found or content in text:
            raise UsageError(
                f"the chat template does not write each message once, in order; no template for Ollama can be derived{_ADVICE}"
            )
        parts.append(before)
    return [*parts, text]


_ADVICE = ": export --to merged-gguf, and write the Modelfile's TEMPLATE yourself"


def _without_prefix(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise UsageError(f"the chat template writes other text around a later turn than around the first{_ADVICE}")
    return text[len(prefix) :]


def _without_suffix(text: str, suffix: str) -> str:
    if not text.endswith(suffix):
        raise UsageError(f"the chat template writes other text around a later turn than around the first{_ADVICE}")
    return text[: len(text) - len(suffix)]


def _common_end(one: str, other: str) -> str:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return one[len(one) - count :]


def go_template(turns: Turns) -> str:
    """The template text. An assistant message at the very end is one to be continued: nothing is written after it."""
    last = "(index .Messages (len (slice .Messages 1))).Role"
    user_before, user_after = map(_literal, turns.user)
    assistant_before, assistant_after = map(_literal, turns.assistant)
    if turns.system:
        before, after = map(_literal, turns.system)
        head = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{_literal(turns.start)}{{{{ end }}}}' if turns.start else ""
        system = f'{{{{ if eq $m.Role "system" }}}}{before}{{{{ $m.Content }}}}{after}{{{{ else if eq $m.Role "user" }}}}'
        user = f"{user_before}{{{{ $m.Content }}}}{user_after}"
    else:
        head = _literal(turns.start)
        system = '{{ if eq $m.Role "user" }}'
        place = 'and $.System (or (eq $i 0) (and (eq $i 1) (eq (index $.Messages 0).Role "system")))'
        folded = f"{{{{ if {place} }}}}{{{{ $.System }}}}{_literal(turns.system_in_user)}{{{{ end }}}}" if turns.system_in_user else ""
        user = f"{user_before}{folded}{{{{ $m.Content }}}}{user_after}"
    ended = f"{{{{ if ne (len (slice $.Messages $i)) 1 }}}}{assistant_after}{{{{ end }}}}"
    assistant = f'{{{{ else if eq $m.Role "assistant" }}}}{assistant_before}{{{{ $m.Content }}}}{ended}{{{{ end }}}}'
    ask = f'{{{{ if ne {last} "assistant" }}}}{_literal(turns.ask)}{{{{ end }}}}'
    return f"{head}{{{{ range $i, $m := .Messages }}}}{system}{user}{assistant}{{{{ end }}}}{ask}"


def _literal(text: str) -> str:
    """Text of the template; what Go would read as an action is written as a string."""
    return text.replace("{{", '{{ "{{" }}')


def conversations() -> list[list[dict[str, str]]]:
    """Twenty to compare renderings on: with and without a system message, one to five turns, contents that templates trip over."""
    contents = (
        "Hello", "Where is my invoice?", "Line one\nline two", "{{ .Content }} and {% if x %}", "Ünïcödé 漢字 🙂",
        'quotes " and \\ backslash', "<b>& &amp;</b>", "A table:\n\n| a | b |\n|---|---|", "```go\nfmt.Println(1)\n```", "42",
    )  # fmt: skip
    found = []
    for number in range(20):
        turns = 1 + 2 * (number % 3)
        messages = [{"role": "system", "content": f"You are helper {number}.\nBe brief."}] if number % 2 else []
        messages += [
            {"role": "assistant" if turn % 2 else "user", "content": contents[(number + 3 * turn) % len(contents)]} for turn in range(turns)
        ]
        found.append(messages)
    return found


def differing(go: str, template: ChatTemplate, bos: str = "", takes_system: bool = True) -> list[int]:
    """Numbers (from 1) of the conversations that the two templates render differently. Those with a system message are left out where
    the Jinja template refuses one."""
    wrong = []
    for number, messages in enumerate(conversations(), 1):
        if messages[0]["role"] == "system" and not takes_system:
            continue
        expected = template.render(messages, add_generation_prompt=True)
        if evaluate_go(go, messages) != (expected.removeprefix(bos) if bos else expected):
            wrong.append(number)
    return wrong
