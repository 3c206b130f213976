"""Tokenized examples on disk: written as they come, read through memory maps, found again by a key of all that made them.

A store is a folder of four plain arrays, little-endian:

    ids.i4      int32 (T,)       token ids of all examples, one after the other
    starts.i8   int64 (n + 1,)   example i is ids[starts[i]:starts[i + 1]]
    runs.bin    (m,) of int32 example, int32 start, int32 end, float32 weight: tokens start..end of the example, as targets
    lines.i4    int32 (n,)       line of the row that an example came from

and ``store.json``: the account of the rows and the sizes of the arrays. It is safe to delete.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Example, Float32, Int32
from localsft.data.render import Tokens

FORMAT = 1  # of the folder and of what rendering makes of a row; a change makes old stores unfound
_RUN = np.dtype([("example", "<i4"), ("start", "<i4"), ("end", "<i4"), ("weight", "<f4")])
_FILES: dict[str, np.dtype[Any]] = {"ids.i4": np.dtype("<i4"), "starts.i8": np.dtype("<i8"), "runs.bin": _RUN, "lines.i4": np.dtype("<i4")}


@dataclass(frozen=True, slots=True)
class Columns:
    """Some examples as arrays: ``ids`` int32 (T,), ``lengths`` int32 (n,), ``runs`` (m,) of example, start, end and weight,
    ``lines`` int32 (n,)."""

    ids: Int32
    lengths: Int32
    runs: NDArray[Any]
    lines: Int32

    @staticmethod
    def of(examples: Sequence[tuple[Tokens, int]]) -> Columns:
        """From examples, each with its line."""
        return Columns(
            np.frombuffer(b"".join([tokens.ids for tokens, _ in examples]), np.int32),
            np.array([len(tokens.ids) // 4 for tokens, _ in examples], np.int32),
            np.array([(number, *run) for number, (tokens, _) in enumerate(examples) for run in tokens.runs], _RUN),
            np.array([line for _, line in examples], np.int32),
        )


class ExampleStore(Sequence[Example]):
    """The examples of a store, made when they are asked for; ``file`` is the data file they came from."""

    def __init__(self, folder: Path, file: str, owner: tempfile.TemporaryDirectory[str] | None = None) -> None:
        """Raises ``ValueError`` or ``OSError`` where the folder is not a whole store."""
        self.report: dict[str, Any] = json.loads((folder / "store.json").read_text())
        arrays = [_open(folder / name, dtype, self.report["sizes"][name]) for name, dtype in _FILES.items()]
        self._ids, self._starts, self._runs, self._lines = arrays
        self._run_starts = np.searchsorted(self._runs["example"], np.arange(len(self._lines) + 1))
        self._file = file
        self._owner = owner  # keeps a temporary folder until the store is dropped

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        weights: Float32 = np.zeros(end - start, np.float32)
        for run in self._runs[self._run_starts[index] : self._run_starts[index + 1]]:
            weights[run["start"] : run["end"]] = run["weight"]
        return Example(np.asarray(self._ids[start:end]), weights, f"{self._file}:{self._lines[index]}")

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, (n,)."""
        return np.diff(self._starts)

    @property
    def supervised_tokens(self) -> int:
        """Tokens that count in the loss, over all examples."""
        return int((self._runs["end"].astype(np.int64) - self._runs["start"]).sum())


class StoreWriter:
    """Fills ``folder`` with examples as they come; ``close`` makes it a store."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {name: (folder / name).open("wb") for name in _FILES}
        self._files["starts.i8"].write(np.zeros(1, "<i8").tobytes())
        self.examples = self.tokens = self.supervised = 0

    def add(self, columns: Columns) -> None:
        """Append examples."""
        runs = columns.runs.copy()
        runs["example"] += self.examples
        starts = self.tokens + np.cumsum(columns.lengths, dtype=np.int64)
        for name, array in zip(_FILES, (columns.ids, starts, runs, columns.lines), strict=True):
            self._files[name].write(np.ascontiguousarray(array, _FILES[name]).tobytes())
        self.examples += len(columns.lengths)
        self.tokens += len(columns.ids)
        self.supervised += int((columns.runs["end"] - columns.runs["start"]).sum())

    def close(self, report: dict[str, Any]) -> None:
        """Finish the arrays and write store.json with ``report``."""
        for file in self._files.values():
            file.close()
        sizes = {name: (self._folder / name).stat().st_size for name in _FILES}
        (self._folder / "store.json").write_text(json.dumps(report | {"sizes": sizes}))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()


def _open(path: Path, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    if path.stat().st_size != size or size % dtype.itemsize:
        raise ValueError(f"{path}: not as it was written")
    # A plain array over the map: one index into a memmap object takes as long as twelve into it.
    return np.asarray(np.memmap(path, dtype, "r")) if size else np.zeros(0, dtype)


def prune(root: Path, budget: int, keep: Path) -> None:
    """Remove the stores in ``root`` that were used longest ago, until all take at most ``budget`` bytes; never ``keep``."""
    import shutil

    def used(folder: Path) -> float:
        file = folder / "store.json"
        return file.stat().st_mtime if file.exists() else 0.0

    folders = sorted((folder for folder in root.iterdir() if folder.is_dir()), key=used)
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) for folder in folders}
    total = sum(sizes.values())
    for folder in folders:
        if total > budget and folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]
