"""Any data file as conversations: container and shape are detected for each file, told, and held for every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localsft.data.conversation import Conversation
from localsft.data.rows import Container, Row, find_container, parse_object, read_rows
from localsft.data.shapes import SHAPES, Shape, shape_of
from localsft.errors import InputError, UsageError

SkipBad = Callable[[InputError], None]
_OPTIONAL = ("system", "input", "tools", "tags")
_MAP_TARGETS = ("messages", "prompt", "completion", "text", "instruction", "output", "ideal", "conversations", *_OPTIONAL)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file whose format is known. ``first``: the line that told the shape; ``mapping``: shape key -> column."""

    container: Container
    shape: Shape
    first: int
    mapping: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people: ``OpenAI chat in JSON Lines``."""
        return self.container.label if self.shape.name == self.container.kind else f"{self.shape.name} in {self.container.label}"

    def conversation(self, row: Row) -> Conversation:
        """One row as a conversation.

        Raises:
            InputError: the row is malformed or has another shape than the file began with.
        """
        line, value = row
        file = str(self.container.file)
        where = f"{file}:{line}"
        columns = parse_object(value, where) if isinstance(value, bytes) else value
        if self.mapping:
            columns = _renamed(columns, self.mapping, where)
        if not self.shape.fits(columns):
            raise self._misfit(columns, where)
        return self.shape.read(columns, file, line)

    def _misfit(self, row: Mapping[str, Any], where: str) -> InputError:
        other = next((shape for shape in SHAPES if shape.fits(row)), None)
        if other is None:
            missing = next(key for key in self.shape.keys if key not in row)
            return InputError(f'{where}: "{missing}" is missing, which a row of {self.shape.name} needs; add it or remove the row')
        return InputError(
            f"{where}: this row is {other.name}, but the file began as {self.shape.name} on line {self.first}; "
            "put the rows into separate files or convert them with `localsft data convert`"
        )


def open_data(file: str | Path, mapping: Mapping[str, str] | None = None) -> DataFile:
    """Detect the format of a file from its name, its first character and the keys of its first readable row.

    Raises:
        InputError: missing, empty, or of no known format.
    """
    container = find_container(Path(file))
    problem: InputError | None = None
    for number, (line, value) in enumerate(read_rows(container)):
        where = f"{file}:{line}"
        try:
            row = parse_object(value, where) if isinstance(value, bytes) else value
            return DataFile(container, shape_of(_renamed(row, mapping, where) if mapping else row, where), line, dict(mapping or {}))
        except InputError as error:
            problem = problem or error
        if number == 100:
            break
    raise problem or InputError(f"{file}: the file is empty; it needs one conversation a line")


def read_conversations(
    file: str | Path, skip_bad: SkipBad | None = None, mapping: Mapping[str, str] | None = None
) -> Iterator[Conversation]:
    """The conversations of a data file, one after the other, in bounded memory.

    Args:
        skip_bad: gets the error of each bad row, which is then passed over; without it the first one ends the reading.
        mapping: column names under the keys of a shape, {"prompt": "question"}.

    Raises:
        InputError: the file can't be read or is empty, or a row is bad: names file and line.
    """
    data = open_data(file, mapping)
    for row in readable_rows(data, skip_bad):
        try:
            conversation = data.conversation(row)
        except InputError as error:
            if skip_bad is None:
                raise
            skip_bad(error)
        else:
            yield conversation


def readable_rows(data: DataFile, skip_bad: SkipBad | None = None) -> Iterator[Row]:
    """The raw rows of a file. With ``skip_bad``, a file that is cut off or damaged after some rows counts as one bad row.

    Raises:
        InputError: the file can't be read on.
    """
    rows = read_rows(data.container)
    yield next(rows)
    try:
        yield from rows
    except InputError as error:
        if skip_bad is None:
            raise
        skip_bad(error)


def parse_mapping(text: str) -> dict[str, str]:
    """``prompt=question,completion=answer`` as {"prompt": "question", "completion": "answer"}.

    Raises:
        UsageError: malformed, or a key that no shape has.
    """
    mapping = {}
    for part in text.split(","):
        target, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or target not in _MAP_TARGETS:
            raise UsageError(f"--map {text}: {part.strip()!r} is not KEY=COLUMN with a KEY of {', '.join(_MAP_TARGETS)}")
        mapping[target] = column
    return mapping


def _renamed(row: Mapping[str, Any], mapping: Mapping[str, str], where: str) -> dict[str, Any]:
    missing = [column for target, column in mapping.items() if column not in row and target not in _OPTIONAL]
    if missing:
        raise InputError(f"{where}: no column {missing[0]!r} for --map (there are {', '.join(map(str, row))}); correct --map or the row")
    return {target: row[column] for target, column in mapping.items() if column in row}
