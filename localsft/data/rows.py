"""The rows of a data file, whatever holds them: JSON Lines, a JSON array, CSV, TSV, plain text or Parquet, gzipped or not.

Rows of JSON stay bytes here, so that parsing them can be spread over processes; ``parse_object`` is strict.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from localsft.data.containers import csv_rows, json_array_rows, parquet_rows, text_rows
from localsft.errors import InputError

MAX_LINE = 64 << 20  # bytes
_LOOSE = re.compile(rb'"[ \t\r\n]+:')  # a colon apart from its key
_SUFFIXES = {".csv": "CSV", ".tsv": "TSV", ".txt": "plain text", ".parquet": "Parquet"}

Row = tuple[int, "bytes | dict[str, Any]"]


@dataclass(frozen=True, slots=True)
class Container:
    """What holds the rows of a file: "JSON Lines", "JSON array", "CSV", "TSV", "plain text" or "Parquet"."""

    file: Path
    kind: str
    gzipped: bool

    @property
    def label(self) -> str:
        """For people: ``JSON Lines, gzip``."""
        return f"{self.kind}, gzip" if self.gzipped else self.kind


def find_container(file: Path) -> Container:
    """What holds the rows of ``file``: told by its name where that is clear, else by its first character.

    Raises:
        InputError: missing, unreadable, empty, UTF-16, or neither named nor built like a file of rows.
    """
    with opened(file) as stream:
        gzipped = stream.read(2) == b"\x1f\x8b"
    suffix = Path(file.stem if gzipped else file.name).suffix.lower()
    if suffix in _SUFFIXES:
        return Container(file, _SUFFIXES[suffix], gzipped)
    with opened(file, gzipped) as stream:
        start = _without_bom(_read(stream, 4096, file), file).lstrip()
    if start.startswith(b"["):
        return Container(file, "JSON array", gzipped)
    if start.startswith(b"{") or suffix in (".jsonl", ".ndjson", ".json"):
        return Container(file, "JSON Lines", gzipped)
    if not start:
        raise InputError(f"{file}: the file is empty; it needs one conversation a line")
    raise InputError(f"{file}: not a kind of data file that is known; use .jsonl, .json, .csv, .tsv, .txt or .parquet (also .gz)")


def read_rows(container: Container) -> Iterator[Row]:
    """Line number (from 1; Parquet: row number) and row: the bytes of a JSON object, or columns by name.

    Raises:
        InputError: the file can't be read on, or has no rows.
    """
    file = container.file
    found = False
    with opened(file, container.gzipped) as stream:
        if container.kind == "JSON Lines":
            rows: Iterator[Row] = _json_lines(stream, file)
        elif container.kind == "JSON array":
            rows = json_array_rows(stream, file)
        elif container.kind == "Parquet":
            rows = parquet_rows(file)
        elif container.kind == "plain text":
            rows = text_rows(stream, file)
        else:
            rows = csv_rows(stream, file, "\t" if container.kind == "TSV" else ",")
        try:
            for row in rows:
                found = True
                yield row
        except (EOFError, OSError, zlib.error) as error:  # a gzip stream that is cut off or damaged
            raise InputError(f"{file}: the file is damaged or cut off ({error}); fetch or write it again") from None
    if not found:
        raise InputError(f"{file}: the file is empty; it needs one conversation a line")


def _json_lines(stream: IO[bytes], file: Path) -> Iterator[Row]:
    """Lines that are not blank; split on ``\\n`` bytes only (U+2028 and the like stay inside strings), ``\\r`` dropped."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"{file}:{number}: the line is longer than {MAX_LINE >> 20} MiB; split it into several rows")
        if number == 1:
            line = _without_bom(line, file)
        if line := line.strip(b" \t\r\n"):
            yield number, line


@contextmanager
def opened(file: Path, gzipped: bool = False) -> Iterator[IO[bytes]]:
    """The file's bytes, unzipped if need be; a missing or unreadable file is an InputError."""
    import gzip

    try:
        stream = cast("IO[bytes]", gzip.open(file)) if gzipped else file.open("rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{file}: can't be read ({error.strerror}); check the path and its permissions") from None
    with stream:
        yield stream


def _read(stream: IO[bytes], count: int, file: Path) -> bytes:
    try:
        return stream.read(count)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{file}: the file is damaged or cut off ({error}); fetch or write it again") from None


def _without_bom(start: bytes, file: Path) -> bytes:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start[:4].count(b"\0") >= 2:
        raise InputError(f"{file}: the file is UTF-16 or UTF-32; save it as UTF-8")
    return start.removeprefix(b"\xef\xbb\xbf")


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """One JSON object; strict UTF-8 and JSON (no NaN, no infinity, no duplicate keys, no lone surrogates).

    Raises:
        InputError: names ``where`` and the fault.
    """
    import orjson

    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where}: {_explain(line, error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: the row is JSON but not an object; each row must be one {{...}} object")
    try:
        again = orjson.dumps([[[[[[[[value]]]]]]]])  # some levels to spare for what a row is put into later
    except orjson.JSONEncodeError:
        raise InputError(f"{where}: the row nests deeper than 240 levels; flatten it") from None
    # Written out again, a row without duplicate keys has as many `":` as before, unless a quote or a colon is an escape or
    # stands apart; only then the slow look.
    if again.count(b'":') != line.count(b'":') or b"\\u0022" in line or b"\\u003" in line or _LOOSE.search(line):
        _refuse_duplicate_keys(line, where)
    return value


def _explain(line: bytes, error: Exception) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return f"not UTF-8 at byte {bad.start + 1} of the line; save the file as UTF-8"
    text = str(error).split(":")[0].strip() or "malformed"
    return f"not valid JSON ({text}, column {getattr(error, 'colno', 1)}); each row must be one whole JSON object"


def _refuse_duplicate_keys(line: bytes, where: str) -> None:
    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{where}: the key {twice!r} stands twice in one object; remove one of them")

    json.loads(line, object_pairs_hook=check)
