"""A data file or folder as examples ready to pack, with an account of every row; tokenized once, found again by content."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localsft import __version__
from localsft.atomic import atomic_folder, write_error
from localsft.batch import Example
from localsft.data.formats import open_data, readable_rows
from localsft.data.pipeline import BAD_ROW, Chunk, Recipe, render_rows
from localsft.data.rows import opened
from localsft.data.store import FORMAT, ExampleStore, StoreWriter, prune
from localsft.data.supervision import Mask
from localsft.data.template import ChatTemplate
from localsft.errors import InputError
from localsft.tokenizer import Tokenizer

_PARTS = {"train": ("train",), "valid": ("valid", "validation", "holdout", "dev"), "test": ("test",)}
_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
CACHE_BYTES = 8 << 30


@dataclass(slots=True)
class LoadReport:
    """What became of a file's rows. ``skipped`` and ``notes``: reason -> count; ``first``: where a reason came up first."""

    file: str
    format: str = ""
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> None:
        """Count the rows of a chunk."""
        self.rows += chunk.rows
        for mine, theirs in ((self.skipped, chunk.skipped), (self.notes, chunk.notes)):
            for reason, count in theirs.items():
                mine[reason] = mine.get(reason, 0) + count
        self.first = chunk.first | self.first


@dataclass(frozen=True, slots=True)
class Part:
    """The examples of one file and the account of its rows."""

    examples: Sequence[Example]
    report: LoadReport


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training examples and, where the folder has them, validation and test examples."""

    train: Part
    valid: Part | None = None
    test: Part | None = None


def data_files(path: str | Path) -> dict[str, Path]:
    """The files behind DATA: {"train": file, "valid": ..., "test": ...}; a single file is "train".

    Raises:
        InputError: nothing there, no train file in the folder, or two files for one part.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; check the path")
        return {"train": path}
    files: dict[str, Path] = {}
    for part, stems in _PARTS.items():
        found = sorted(file for file in path.iterdir() if file.is_file() and _stem(file) in stems)
        if len(found) > 1:
            raise InputError(f"{path}: both {found[0].name} and {found[1].name} could be the {part} data; keep one of them")
        if found:
            files[part] = found[0]
    if "train" not in files:
        raise InputError(f"{path}: no train.jsonl in this folder; name the training file so, or pass the file itself")
    return files


def _stem(file: Path) -> str:
    """``train`` for train.jsonl or train.csv.gz; empty for a file that is no data file by its name."""
    name = file.name.removesuffix(".gz")
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), "")


def load_dataset(
    path: str | Path,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    mask: Mask,
    max_length: int,
    skip_bad: bool = False,
    cache: Path | None = None,
) -> Dataset:
    """The examples of DATA, a file or a folder with train, valid and test files.

    ``cache``: a folder where tokenized files are kept for the next time; without it they live in a temporary one.

    Raises:
        InputError: a file is missing or empty, a row is bad (unless ``skip_bad``), or nothing is left to train on.
    """
    parts = {
        name: load_file(file, tokenizer, template, mask=mask, max_length=max_length, skip_bad=skip_bad, cache=cache)
        for name, file in data_files(path).items()
    }
    return Dataset(parts["train"], parts.get("valid"), parts.get("test"))


def load_file(
    file: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    mask: Mask,
    max_length: int,
    skip_bad: bool = False,
    cache: Path | None = None,
    mapping: Mapping[str, str] | None = None,
) -> Part:
    """The examples of one file. ``mapping``: as for ``open_data``. Raises ``InputError`` as ``load_dataset`` does."""
    recipe = Recipe(open_data(file, mapping), tokenizer, template, mask, max_length, skip_bad)
    target = cache / _key(recipe) if cache else None
    store = _found(target, str(file)) if target else None
    if store is None:
        store = _make(recipe, target)
        if cache and target:
            prune(cache, CACHE_BYTES, keep=target)
    return Part(store, _report(store.report))


def _make(recipe: Recipe, target: Path | None) -> ExampleStore:
    """Render the file into a store at ``target``, or into a temporary folder that lives as long as the store."""
    file = recipe.data.container.file
    owner = None
    with ExitStack() as stack:
        if target is None:
            owner = tempfile.TemporaryDirectory(prefix="localsft-")
            folder = Path(owner.name)
        else:
            folder = stack.enter_context(atomic_folder(target, replace=True))
        report = LoadReport(str(file), recipe.data.label)
        try:
            with StoreWriter(folder) as writer:
                bad: list[InputError] = []
                for chunk in render_rows(readable_rows(recipe.data, bad.append if recipe.skip_bad else None), recipe):
                    report.add(chunk)
                    writer.add(chunk.columns)
                for error in bad:  # the damaged rest of the file
                    report.rows += 1
                    report.skipped[BAD_ROW] = report.skipped.get(BAD_ROW, 0) + 1
                    report.first.setdefault(BAD_ROW, str(error))
                report.examples, report.tokens, report.supervised_tokens = writer.examples, writer.tokens, writer.supervised
                if not writer.examples:
                    reasons = "; ".join(f"{reason}: {n} rows, first at {report.first[reason]}" for reason, n in report.skipped.items())
                    raise InputError(f"{file}: no example is left to train on ({reasons}); correct the rows or raise --max-length")
                writer.close(asdict(report))
        except OSError as error:
            raise write_error(folder, error) from error
    return ExampleStore(target or folder, str(file), owner)


def _found(folder: Path, file: str) -> ExampleStore | None:
    """The store in ``folder`` if it is whole; anything else there is made again."""
    try:
        store = ExampleStore(folder, file)
        os.utime(folder / "store.json")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return store


def _report(document: dict[str, Any]) -> LoadReport:
    return LoadReport(**{key: value for key, value in document.items() if key != "sizes"})


def _key(recipe: Recipe) -> str:
    """A hash of the file's bytes and of everything that decides what its rows become."""
    import xxhash

    digest = xxhash.xxh3_128()
    with opened(recipe.data.container.file) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    for part in (
        FORMAT,
        __version__,
        str(recipe.data.container.file),
        recipe.data.label,
        sorted(recipe.data.mapping.items()),
        recipe.tokenizer.fingerprint,
        recipe.template.fingerprint,
        recipe.mask,
        recipe.max_length,
        recipe.skip_bad,
    ):
        digest.update(f"\0{part!r}".encode())
    return digest.hexdigest()
