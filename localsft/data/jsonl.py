"""Lines of a JSON Lines file as objects, strictly: every byte is accounted for, every fault names its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from localsft.errors import InputError

MAX_LINE = 64 << 20  # bytes


def read_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line that is not blank; split on ``\\n`` bytes only, a ``\\r`` before it dropped.

    Raises:
        InputError: the file is missing, empty, unreadable, UTF-16, or has a line of more than 64 MiB.
    """
    with open_data(file) as stream:
        number = 0
        found = False
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise InputError(f"{file}:{number}: the line is longer than {MAX_LINE >> 20} MiB; split it into several rows")
            if number == 1:
                line = _check_start(line, file)
            if line := line.strip(b" \t\r\n"):
                found = True
                yield number, line
        if not found:
            raise InputError(f"{file}: the file is empty; it needs one conversation a line")


def open_data(file: Path) -> BinaryIO:
    """The file opened for reading bytes; a missing or unreadable one is an InputError."""
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{file}: can't be read ({error.strerror}); check the path and its permissions") from error


def _check_start(line: bytes, file: Path) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or line[:4].count(b"\0") >= 2:
        raise InputError(f"{file}: the file is UTF-16 or UTF-32; save it as UTF-8")
    return line.removeprefix(b"\xef\xbb\xbf")


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """One JSON object; strict UTF-8 and JSON (no NaN, no duplicate keys, no lone surrogates).

    Raises:
        InputError: names ``where`` and the fault.
    """
    import orjson

    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where}: {_explain(line, error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: the line is JSON but not an object; each line must be one {{...}} object")
    if line.count(b'":') + line.count(b'" :') != _count_keys(value):  # cheap; only then the exact and slow look
        _refuse_duplicate_keys(line, where)
    return value


def _explain(line: bytes, error: Exception) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return f"not UTF-8 at byte {bad.start + 1} of the line; save the file as UTF-8"
    text = str(error).split(":")[0].strip() or "malformed"
    return f"not valid JSON ({text}, column {getattr(error, 'colno', 1)}); each line must be one whole JSON object"


def _count_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(child) for child in value.values() if isinstance(child, dict | list))
    return sum(_count_keys(child) for child in value if isinstance(child, dict | list))


def _refuse_duplicate_keys(line: bytes, where: str) -> None:
    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{where}: the key {twice!r} stands twice in one object; remove one of them")

    json.loads(line, object_pairs_hook=check)
