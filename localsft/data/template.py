"""Chat templates, rendered by minijinja: no access to Python, a limit of steps and a limit of output.

Templates come with models, from strangers. HF templates are written for jinja2 with trim_blocks, lstrip_blocks and a few
extra names (transformers' apply_chat_template); this renders the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from localsft.errors import InputError

MAX_TEMPLATE = 1 << 20  # characters
MAX_STEPS = 2_000_000  # minijinja fuel, about one a template instruction
MAX_OUTPUT = 64 << 20  # characters

# Unicode noncharacters, "intended for process-internal use": they stand in no text, so they can mark places in one.
GUARD, OPEN, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
MARKS = (GUARD, OPEN, CLOSE)
_FLAT = frozenset(("role", "content"))  # of a message: texts
_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class TooManySteps(InputError):
    """A template took more steps on a conversation than any honest one needs."""


class ChatTemplate:
    """A compiled chat template. ``now``: what strftime_now tells; default the time of the call."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "", where: str = "the chat template", now: datetime | None = None) -> None:
        """Raises ``InputError`` where the source is no template or is absurdly long."""
        import minijinja

        if len(source) > MAX_TEMPLATE:
            raise InputError(f"{where}: longer than {MAX_TEMPLATE} characters, which no chat template is; pass another with --template")
        self.source = source
        self.marks_generation = _GENERATION.search(source) is not None
        self.bos, self.eos, self.where = bos, eos, where
        self._now = now
        marked = _GENERATION.sub(lambda m: f"{{{{{m[1]} '{CLOSE if m[2] else OPEN}' {m[3]}}}}}", source)
        self._environment = minijinja.Environment(
            filters={"tojson": _to_json},
            tests={"iterable": _is_iterable},
            globals={"raise_exception": _raise_exception, "strftime_now": self._strftime_now},
            fuel=MAX_STEPS,
            debug=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        try:
            self._environment.add_template("chat", marked)
        except minijinja.TemplateError as error:
            raise InputError(
                f"{where}: minijinja can't read the chat template ({_first_line(error)}); pass another with --template"
            ) from None

    @property
    def fingerprint(self) -> str:
        """All that decides what is rendered: the source, the tokens it is given, and the day where it asks for the date."""
        day = (self._now or datetime.now()).date() if "strftime_now" in self.source else None
        return repr((self.source, self.bos, self.eos, day))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.source, self.bos, self.eos, self.where, self._now)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
        source: str = "",
    ) -> str:
        """The text of a conversation; generation blocks are enclosed in OPEN and CLOSE marks.

        Raises:
            InputError: the template refuses the conversation, fails on it, or takes more than it may; ``source`` is named.
            TooManySteps: of these, when it is steps that it takes more of.
        """
        try:
            text: str = self._environment.render_template(
                "chat",
                messages=[dict(row) if _FLAT.issuperset(row) else _copy(row) for row in self._fitted(messages)],
                tools=_copy(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos,
                eos_token=self.eos,
            )
        except Exception as error:  # whatever fails in there, also in a Python callback, is the template's doing
            kind = TooManySteps if getattr(error, "kind", "") == "OutOfFuel" else InputError
            raise kind(f"{source or self.where}: the chat template can't render this conversation: {_first_line(error)}") from None
        if len(text) > MAX_OUTPUT:
            raise InputError(f"{source or self.where}: the chat template wrote over {MAX_OUTPUT} characters; pass another with --template")
        return text

    def _fitted(self, messages: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """``messages`` with tool calls as this template reads them."""
        for message in messages:
            if "tool_calls" in message:
                break
        else:
            return messages
        null_content, text_arguments = self._tool_call_form
        return [_fit(message, null_content, text_arguments) if "tool_calls" in message else message for message in messages]

    @cached_property
    def _tool_call_form(self) -> tuple[bool, bool]:
        """How the template takes a turn that only calls a tool: content none (else empty), arguments as JSON text (else as an
        object). Templates differ, and the wrong form is lost or written as Python would: so each is tried on a probe."""
        for text_arguments in (False, True):
            for null_content in (True, False):
                call = {
                    "id": "call00000",
                    "type": "function",
                    "function": {"name": "probe_call", "arguments": {"probe_key": "probe_value"}},
                }
                turn = _fit({"role": "assistant", "content": "", "tool_calls": [call]}, null_content, text_arguments)
                result = {"role": "tool", "content": "4", "tool_call_id": "call00000", "name": "probe_call"}
                try:
                    text: str = self._environment.render_template(
                        "chat", messages=[{"role": "user", "content": "?"}, turn, result], bos_token=self.bos, eos_token=self.eos
                    )
                except Exception:
                    continue
                written = "probe_call" in text and "probe_value" in text
                if written and not any(sign in text for sign in ("None", "'probe_key'", '\\"probe_key')):
                    return null_content, text_arguments
        return False, False

    def _strftime_now(self, form: str) -> str:
        return (self._now or datetime.now()).strftime(form[:100])


def _rebuild(source: str, bos: str, eos: str, where: str, now: datetime | None) -> ChatTemplate:
    return ChatTemplate(source, bos=bos, eos=eos, where=where, now=now)


def _copy(value: Any) -> Any:
    """Fresh lists and dicts: a template may call their methods, pop and clear among them."""
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list | tuple) else value


def _is_iterable(value: Any) -> bool:
    """jinja2's test: none is not iterable, as minijinja would have it."""
    return isinstance(value, Iterable)


def _fit(message: Mapping[str, Any], null_content: bool, text_arguments: bool) -> dict[str, Any]:
    fitted = {**message, "content": message.get("content") or (None if null_content else "")}
    if text_arguments:
        fitted["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _to_json(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return fitted


class _TemplateRefusal(Exception):
    """raise_exception in a template, or a call that goes too far."""


def _raise_exception(message: str) -> None:
    raise _TemplateRefusal(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' tojson: no HTML escapes, keys in their order."""
    if indent is not None and not 0 <= indent <= 16:
        raise _TemplateRefusal(f"tojson with an indent of {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
