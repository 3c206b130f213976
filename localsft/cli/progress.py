"""A training run as a person follows it: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from localsft.cli.output import console, megabytes, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from localsft.train import Event, Step, Validated

LINE_EVERY = 10.0  # seconds between lines when there is no terminal


class TrainingDisplay:
    """Shows events; use it as a context manager around the loop."""

    def __init__(self, steps: int, done: int = 0) -> None:
        self._steps = steps
        self._first = done
        self._console = console()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._tokens = 0
        self._seconds = 0.0
        self._last_line = 0.0

    def __enter__(self) -> TrainingDisplay:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(None), TextColumn("{task.fields[figures]}"))
            self._progress = Progress(
                *columns, TextColumn("ETA"), TimeRemainingColumn(), console=self._console, transient=True, expand=True
            )
            self._task = self._progress.add_task("", total=self._steps, completed=self._first, figures="")
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, event: Event) -> None:
        from localsft.train import Checkpointed, Step, Validated

        if isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Validated):
            self._line(validation_line(event))
        elif isinstance(event, Checkpointed) and event.interrupted:
            self._line(f"checkpoint of step {event.step} written to {event.path}")

    def _step(self, event: Step) -> None:
        self._tokens += event.tokens
        self._seconds += event.seconds
        figures = f"loss {event.loss:.3f}  {self._tokens / self._seconds:,.0f} tokens/s  {megabytes(resident_bytes())}"
        if not event.applied:
            self._line(f"step {event.step}: the loss or its gradient is not finite; the step was not applied")
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=event.step, figures=figures)
        elif time.monotonic() - self._last_line >= LINE_EVERY or event.step == event.steps:
            self._last_line = time.monotonic()
            left = (event.steps - event.step) * self._seconds / (event.step - self._first)
            self._line(f"step {event.step}/{event.steps}  {figures}  ETA {left:,.0f} s")

    def _line(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False)
        else:
            say(text)


def validation_line(event: Validated) -> str:
    """ "step 24: valid loss 1.234, token accuracy 71.2 % (best so far)"."""
    what = "base" if event.step == 0 else f"step {event.step}"
    best = " (best so far)" if event.best and event.step else ""
    return f"{what}: valid loss {event.score.loss:.3f}, token accuracy {100 * event.score.accuracy:.1f} %{best}"


def resident_bytes() -> int:
    """What this process takes of the memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)
