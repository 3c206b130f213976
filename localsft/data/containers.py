"""Rows out of JSON arrays, CSV, plain text and Parquet; each is streamed, so that a file may be larger than memory."""

from __future__ import annotations

import csv
import io
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from localsft.errors import InputError, MissingPart

_MAX_DOCUMENT = 64 << 20  # characters
# A whole string, a bracket or a comma; a lone quote is a string that never ends.
_JSON_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],"]', re.DOTALL)
_BETWEEN = re.compile(rb"\s*,?\s*")


def json_array_rows(stream: IO[bytes], file: Path) -> Iterator[tuple[int, bytes]]:
    """The objects of ``[{...}, {...}]`` as bytes, with the line each begins on.

    Raises:
        InputError: something that is no object in the array, or the file ends inside it.
    """
    with tempfile.TemporaryFile() as unzipped:
        plain: IO[bytes] = stream
        if not isinstance(stream, io.BufferedReader):  # gzip: no way to map it
            shutil.copyfileobj(stream, unzipped)
            unzipped.flush()
            plain = unzipped
        with mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _array_elements(data, file)


def _array_elements(data: mmap.mmap, file: Path) -> Iterator[tuple[int, bytes]]:
    depth = 0
    line, counted = 1, 0  # line of position ``counted``
    start = position = 0
    for match in _JSON_TOKEN.finditer(data):
        token = match[0][:1]
        if token == b'"' and len(match[0]) == 1:
            line += data[counted : match.start()].count(b"\n")
            raise InputError(f"{file}:{line}: the file ends inside a string that begins here; it was cut off, fetch or write it again")
        if token in b"{[":
            depth += 1
            if depth == 2:
                start = match.start()
                line += data[counted:start].count(b"\n")
                counted = start
                if token == b"[" or not _BETWEEN.fullmatch(data[position:start]):
                    raise InputError(f"{file}:{line}: the array holds something that is not an object; each element must be one {{...}}")
            elif depth == 1:
                position = match.end()
        elif token in b"}]":
            depth -= 1
            if depth == 1:
                position = match.end()
                yield line, data[start:position]
            elif depth <= 0:
                rest = data[match.end() :].strip()
                if token != b"]" or data[position : match.start()].strip() or rest:
                    line += data[counted : match.start()].count(b"\n")
                    raise InputError(f"{file}:{line}: not valid JSON around the end of the array; write the file again")
                return
    line += data[counted:].count(b"\n")
    raise InputError(f"{file}:{line}: the file ends before its array does; it was cut off, fetch or write it again")


def csv_rows(stream: IO[bytes], file: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a CSV or TSV file with a header line; an empty cell is an empty text.

    Raises:
        InputError: no header, a record with too many or too few cells, not UTF-8, or a malformed quote.
    """
    reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for record in reader:
            if not record:
                pass
            elif header is None:
                header = record
                if len(set(header)) < len(header) or not all(header):
                    raise InputError(f"{file}:{line}: the header has an empty or repeated name; the first line must name the columns")
            elif len(record) != len(header):
                raise InputError(f"{file}:{line}: {len(record)} cells under {len(header)} columns; quote cells that hold the delimiter")
            else:
                yield line, dict(zip(header, record, strict=True))
            line = reader.line_num + 1
    except UnicodeDecodeError:
        raise InputError(f"{file}:{line}: not UTF-8 on or after this line; save the file as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{file}:{line}: not valid CSV ({error}); correct the quotes") from None


def text_rows(stream: IO[bytes], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Documents of plain text, separated by blank lines, as {"text": ...}.

    Raises:
        InputError: not UTF-8, or a document beyond 64 million characters.
    """
    lines: list[str] = []
    first = size = 0
    for number, raw in enumerate(stream, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise InputError(f"{file}:{number}: not UTF-8; save the file as UTF-8") from None
        if line.strip():
            first = first or number
            size += len(line)
            lines.append(line)
            if size > _MAX_DOCUMENT:
                raise InputError(f"{file}:{first}: a document of over {_MAX_DOCUMENT} characters; separate documents by blank lines")
        elif lines:
            yield first, {"text": "\n".join(lines)}
            lines, first, size = [], 0, 0
    if lines:
        yield first, {"text": "\n".join(lines)}


def parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file, numbered from 1; columns that are null in a row are left out.

    Raises:
        MissingPart: pyarrow is not installed.
        InputError: not a Parquet file, or damaged.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPart(f"{file}: reading Parquet needs pyarrow; run `pip install 'localsft[parquet]'`") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: value for name, value in row.items() if value is not None}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{file}: not a Parquet file, or damaged ({first}); fetch or write it again") from None
