"""A data file or folder as examples ready to pack, with an account of every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from localsft.batch import Example
from localsft.data.conversation import Conversation
from localsft.data.formats import read_conversations
from localsft.data.render import render_batch
from localsft.data.supervision import Mask
from localsft.data.template import ChatTemplate
from localsft.errors import InputError
from localsft.tokenizer import Tokenizer

_PARTS = {"train": ("train",), "valid": ("valid", "validation", "holdout", "dev"), "test": ("test",)}
_BATCH_ROWS = 1024


@dataclass(slots=True)
class LoadReport:
    """What became of a file's rows. ``skipped`` and ``notes``: reason -> count; ``first``: where a reason came up first."""

    file: str
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def count(self, counter: Counter[str], reason: str, source: str) -> None:
        """Count one more ``reason`` at ``source``."""
        counter[reason] += 1
        self.first.setdefault(reason, source)


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
        found = sorted(file for stem in stems for file in path.glob(f"{stem}.jsonl") if file.is_file())
        if len(found) > 1:
            raise InputError(f"{path}: both {found[0].name} and {found[1].name} could be the {part} data; keep one of them")
        if found:
            files[part] = found[0]
    if "train" not in files:
        raise InputError(f"{path}: no train.jsonl in this folder; name the training file so, or pass the file itself")
    return files


def load_dataset(
    path: str | Path, tokenizer: Tokenizer, template: ChatTemplate, *, mask: Mask, max_length: int, skip_bad: bool = False
) -> Dataset:
    """The examples of DATA, a file or a folder with train, valid and test files.

    Raises:
        InputError: a file is missing or empty, a row is bad (unless ``skip_bad``), or nothing is left to train on.
    """
    parts = {
        name: load_file(file, tokenizer, template, mask=mask, max_length=max_length, skip_bad=skip_bad)
        for name, file in data_files(path).items()
    }
    return Dataset(parts["train"], parts.get("valid"), parts.get("test"))


def load_file(file: Path, tokenizer: Tokenizer, template: ChatTemplate, *, mask: Mask, max_length: int, skip_bad: bool = False) -> Part:
    """The examples of one file. Raises ``InputError`` as ``load_dataset`` does."""
    report = LoadReport(str(file))

    def skip(error: InputError) -> None:
        report.count(report.skipped, "bad row", str(error))

    examples: list[Example] = []
    rows = read_conversations(file, skip if skip_bad else None)
    for batch in _batches(rows, _BATCH_ROWS):
        report.rows += len(batch)
        for conversation, rendered in zip(batch, render_batch(batch, tokenizer, template, mask=mask, max_length=max_length), strict=True):
            examples += rendered.examples
            for reason in rendered.skipped:
                report.count(report.skipped, reason, conversation.source)
            for note in rendered.notes:
                report.count(report.notes, note, conversation.source)
    report.rows += report.skipped["bad row"]
    report.examples = len(examples)
    report.tokens = sum(len(example.token_ids) for example in examples)
    report.supervised_tokens = sum(int(np.count_nonzero(example.target_weights)) for example in examples)
    if not examples:
        reasons = "; ".join(f"{reason}: {count} rows, first at {report.first[reason]}" for reason, count in report.skipped.items())
        raise InputError(f"{file}: no example is left to train on ({reasons}); correct the rows or raise --max-length")
    return Part(examples, report)


def _batches(rows: Iterator[Conversation], size: int) -> Iterator[list[Conversation]]:
    while batch := list(islice(rows, size)):
        yield batch
