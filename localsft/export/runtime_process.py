"""A foreign program in a process group of its own: bounded in time, and gone with all its children after it, or with this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from localsft.errors import LocalsftError
from localsft.export import keeper

STARTING = 300.0  # s: the imports of torch or mlx from a cold disk, kernels compiled on first use
LOADING = 20e6  # bytes/s of model files: a slow disk, each weight read and converted to float32
# Times what our engine takes for the same tokens: it generates all prompts together, in 4 to 8 bits; the others one after another, in
# float32, and mlx without an Apple GPU on loops that use no vectors.
SLOWER = 200.0


class TimedOut(LocalsftError):
    """A program that did not end within its bound."""


@dataclass(frozen=True, slots=True)
class TimeBound:
    """How long a runtime may take: ``model_bytes`` to load, and work that our engine does in ``own_seconds``."""

    model_bytes: int
    own_seconds: float

    @property
    def seconds(self) -> float:
        return STARTING + self.model_bytes / LOADING + SLOWER * self.own_seconds

    def __str__(self) -> str:
        return (
            f"{self.seconds:.0f} s ({STARTING:.0f} to start, {self.model_bytes / LOADING:.0f} to load {self.model_bytes / 1e6:.0f} MB, "
            f"{SLOWER * self.own_seconds:.0f} for what took {self.own_seconds:.1f} s here)"
        )


def size_of(model: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in model.iterdir() if file.is_file()) if model.is_dir() else model.stat().st_size


def run_program(name: str, command: Sequence[str], bound: TimeBound) -> str:
    """Standard output of ``command``.

    Raises:
        TimedOut: it did not end within ``bound``; it and its children were ended.
        LocalsftError: it can't be started, or failed: with the last line that it wrote.
    """
    held, holding = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__, *command],
        stdin=held,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it starts itself, a server for one, can be ended with it
    )
    os.close(held)
    try:
        out, err = process.communicate(timeout=bound.seconds)
    except subprocess.TimeoutExpired:
        _end_group(process)
        _, err = process.communicate()
        raise TimedOut(
            f"{name} gave no answer within {bound} and was ended; it hangs or this machine is busy with other work: "
            f"run `localsft verify` on the folder when it is idle{_last_line(err, '; its last words: ')}"
        ) from None
    finally:
        _end_group(process)  # also on Ctrl-C, which does not reach a session of its own
        process.wait()
        os.close(holding)
    if process.returncode:
        raise LocalsftError(f"{name} failed{_last_line(err, ': ') or f' with exit code {process.returncode}'}")
    return out


def _end_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone already; macOS says EPERM of a group of zombies
        os.killpg(process.pid, signal.SIGKILL)


def _last_line(text: str, before: str) -> str:
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return f"{before}{line.strip()[:300]}" if line else ""
