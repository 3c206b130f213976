"""The part of Go's text/template that go_template writes, evaluated: enough to compare Ollama's rendering with the Jinja template's.

Actions: ``if``/``else if``/``else``/``end``, ``range $i, $m := .Messages``, values; ``{{-`` and ``-}}`` trim white space. Values:
strings, whole numbers, ``.Field``, ``$.Field``, ``$name.Field``, parentheses with a field after them, and the functions eq, ne, and,
or, not, len, index, slice. Semantics from the Go documentation of text/template: and/or return one of their arguments; empty
strings, empty lists, 0 and false are false.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(-?[0-9]+)|(\$?(?:\.?[A-Za-z_][A-Za-z0-9_]*)+|\$)|(:=|[(),])|(\.[A-Za-z_]\w*))')


@dataclass(slots=True)
class _Node:
    """``kind``: text, value, if (branches of condition and body; None for else) or range."""

    kind: str
    text: str = ""
    branches: list[tuple[str | None, list[_Node]]] = field(default_factory=list)


def evaluate_go(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """What Ollama would send to the model. ``.System`` is all system contents, as Ollama joins them. ValueError for what is not of the
    subset."""
    data = {
        "Messages": [{"Role": message["role"], "Content": message["content"]} for message in messages],
        "System": "\n\n".join(message["content"] for message in messages if message["role"] == "system"),
    }
    pieces = _pieces(template)
    nodes, end = _parse(pieces, 0)
    if end != len(pieces):
        raise ValueError("'end' or 'else' without 'if' or 'range'")
    out: list[str] = []
    _run(nodes, {"$": data}, data, out)
    return "".join(out)


def _pieces(template: str) -> list[tuple[bool, str]]:
    """(is an action, text) in order, trimmed as the markers say."""
    pieces: list[tuple[bool, str]] = []
    position, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim else text
        pieces.append((False, text.rstrip() if match[1] else text))
        pieces.append((True, match[2].strip()))
        position, trim = match.end(), bool(match[3])
    rest = template[position:]
    pieces.append((False, rest.lstrip() if trim else rest))
    return [piece for piece in pieces if piece[1]]


def _parse(pieces: list[tuple[bool, str]], at: int) -> tuple[list[_Node], int]:
    """Nodes up to an end or else at this level, and the place of that."""
    nodes: list[_Node] = []
    while at < len(pieces):
        action, text = pieces[at]
        word = text.partition(" ")[0]
        if not action:
            nodes.append(_Node("text", text))
        elif word in ("end", "else"):
            return nodes, at
        elif word in ("if", "range"):
            node = _Node(word)
            condition: str | None = text.partition(" ")[2]
            while True:
                body, at = _parse(pieces, at + 1)
                node.branches.append((condition, body))
                if at >= len(pieces):
                    raise ValueError(f"'{word}' without 'end'")
                if pieces[at][1] == "end":
                    break
                condition = pieces[at][1].removeprefix("else").strip().removeprefix("if").strip() or None
            nodes.append(node)
        else:
            nodes.append(_Node("value", text))
        at += 1
    return nodes, at


def _run(nodes: list[_Node], names: dict[str, Any], dot: Any, out: list[str]) -> None:
    for node in nodes:
        if node.kind == "text":
            out.append(node.text)
        elif node.kind == "value":
            out.append(_show(_value(node.text, names, dot)))
        elif node.kind == "if":
            for condition, body in node.branches:
                if condition is None or _value(condition, names, dot):
                    _run(body, names, dot, out)
                    break
        else:
            header, body = node.branches[0]
            match = re.fullmatch(r"(\$\w+),\s*(\$\w+)\s*:=\s*(.+)", header or "")
            if match is None:
                raise ValueError(f"range {header}")
            for number, item in enumerate(_value(match[3], names, dot)):
                _run(body, names | {match[1]: number, match[2]: item}, item, out)


def _show(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{value!r} is not written out")
    return str(value)


def _value(text: str, names: Mapping[str, Any], dot: Any) -> Any:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"can't read {text[position:]!r}")
        tokens.append(match[0].strip())
        position = match.end()
    value, rest = _call(tokens, names, dot)
    if rest:
        raise ValueError(f"can't read {' '.join(rest)!r}")
    return value


def _call(tokens: list[str], names: Mapping[str, Any], dot: Any) -> tuple[Any, list[str]]:
    """A function with its arguments, or one operand; up to the closing parenthesis or the end."""
    if tokens and tokens[0] in _FUNCTIONS:
        name, rest, arguments = tokens[0], tokens[1:], []
        while rest and rest[0] != ")":
            argument, rest = _operand(rest, names, dot)
            arguments.append(argument)
        return _FUNCTIONS[name](*arguments), rest
    return _operand(tokens, names, dot)


def _operand(tokens: list[str], names: Mapping[str, Any], dot: Any) -> tuple[Any, list[str]]:
    if not tokens:
        raise ValueError("an operand is missing")
    token, rest = tokens[0], tokens[1:]
    if token == "(":
        value, rest = _call(rest, names, dot)
        if not rest or rest[0] != ")":
            raise ValueError("')' is missing")
        rest = rest[1:]
        if rest and rest[0].startswith("."):
            value, rest = _fields(value, rest[0][1:].split(".")), rest[1:]
        return value, rest
    if token.startswith('"'):
        return json.loads(token), rest
    if token.lstrip("-").isdigit():
        return int(token), rest
    if token.startswith("$"):
        name, _, path = token.partition(".")
        return _fields(names[name], path.split(".") if path else []), rest
    if token.startswith("."):
        return _fields(dot, token[1:].split(".")), rest
    raise ValueError(f"unknown name {token!r}")


def _fields(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = value[name]
    return value


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _slice(value: Any, start: int, end: int | None = None) -> Any:
    if not 0 <= start <= len(value) or (end is not None and not start <= end <= len(value)):
        raise ValueError("slice out of range")  # as in Go, where it is an error
    return value[start:end]


_FUNCTIONS: Mapping[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "len": len,
    "index": lambda value, number: value[number],
    "slice": _slice,
}
