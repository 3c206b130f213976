"""Ctrl-C and SIGTERM during training: the first asks for a checkpoint, the second stops at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from localsft.cli.output import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Becomes true with the first signal; pass it to ``Trainer.events``."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self) -> bool:
        return self.requested


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catches both signals inside the block."""
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            os._exit(130)  # at once: not even a finally clause may take its time
        stop.requested = True
        say("stopping after this step, with a checkpoint; once more stops at once and loses what came after the last checkpoint")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
