"""Rows to examples, chunk by chunk: in this process, or in one process a core when the file is large.

A worker gets raw rows and gives back arrays, so that parsing, rendering and encoding all run beside each other. Chunks come
back in the order of the file, whatever the number of workers.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

from localsft.data.conversation import Conversation
from localsft.data.formats import DataFile
from localsft.data.render import Rendered, encode_marked
from localsft.data.rows import Row
from localsft.data.store import Columns
from localsft.data.supervision import Mask, TextExample, mark
from localsft.data.template import ChatTemplate
from localsft.errors import InputError
from localsft.tokenizer import Tokenizer

CHUNK = 1024  # rows
PARALLEL_BYTES = 8 << 20  # a smaller file is done before workers have started
MAX_WORKERS = 16
BAD_ROW = "bad row"


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that turns a row into examples."""

    data: DataFile
    tokenizer: Tokenizer
    template: ChatTemplate
    mask: Mask
    max_length: int
    skip_bad: bool


class HasData(Protocol):
    """What ``map_rows`` must know of a recipe."""

    @property
    def data(self) -> DataFile: ...


R = TypeVar("R", bound=HasData)
T = TypeVar("T")


@dataclass(slots=True)
class Chunk:
    """The examples of some rows, and what became of those rows: reason -> count, reason -> where it came up first."""

    columns: Columns
    rows: int
    skipped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def count(self, counter: dict[str, int], reason: str, source: str) -> None:
        """Count one more ``reason`` at ``source``."""
        counter[reason] = counter.get(reason, 0) + 1
        self.first.setdefault(reason, source)


def render_chunk(rows: list[Row], recipe: Recipe) -> Chunk:
    """The examples of some rows.

    Raises:
        InputError: a row is bad, unless ``recipe.skip_bad``.
    """
    chunk = Chunk(Columns.of([]), len(rows))
    marked: list[tuple[Conversation, list[TextExample]]] = []
    for row in rows:
        try:
            conversation = recipe.data.conversation(row)
            marked.append((conversation, mark(conversation, recipe.tokenizer, recipe.template, recipe.mask)))
        except InputError as error:
            if not recipe.skip_bad:
                raise
            chunk.count(chunk.skipped, BAD_ROW, str(error))
    rendered: list[Rendered] = encode_marked(marked, recipe.tokenizer, max_length=recipe.max_length)
    for (conversation, _), result in zip(marked, rendered, strict=True):
        for reason in result.skipped:
            chunk.count(chunk.skipped, reason, conversation.source)
        for note in result.notes:
            chunk.count(chunk.notes, note, conversation.source)
    chunk.columns = Columns.of(
        [(tokens, conversation.line) for (conversation, _), result in zip(marked, rendered, strict=True) for tokens in result.tokens]
    )
    return chunk


def render_rows(rows: Iterable[Row], recipe: Recipe, *, workers: int | None = None) -> Iterator[Chunk]:
    """The examples of all rows, in order. ``workers``: None chooses; 1 stays in this process.

    Raises:
        InputError: as ``render_chunk``; also if a worker died, as a template that eats memory makes it do.
    """
    return map_rows(render_chunk, rows, recipe, workers=workers)


def map_rows(task: Callable[[list[Row], R], T], rows: Iterable[Row], recipe: R, *, workers: int | None = None) -> Iterator[T]:
    """What ``task`` (a function of a module) makes of each chunk of rows, in order; ``recipe`` goes to every worker once.

    Raises:
        InputError: as ``task``; also if a worker died.
    """
    chunks = _chunks(rows)
    if workers is None:
        size = recipe.data.container.file.stat().st_size * (4 if recipe.data.container.gzipped else 1)
        workers = min(MAX_WORKERS, cores()) if size >= PARALLEL_BYTES else 1
    if workers == 1:
        for chunk in chunks:
            yield task(chunk, recipe)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (task, recipe)) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_work, chunk))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise InputError(
                f"{recipe.data.container.file}: a process that rendered its rows was killed, for lack of memory or by the chat template; "
                "free memory or pass another template with --template"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


_task: Callable[[list[Row], Any], Any]  # of a worker process, set when it starts
_recipe: HasData


def _start_worker(task: Callable[[list[Row], R], T], recipe: R) -> None:
    global _task, _recipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is enough
    _task, _recipe = task, recipe
    gc.freeze()  # what is here stays: collections look at what rows make only


def _work(rows: list[Row]) -> Any:
    return _task(rows, _recipe)
