"""Runs a command until it ends, or until whoever wanted it is gone, however that came about: then standard input, which only they
hold open, ends, and the whole process group is killed. ``python keeper.py COMMAND...`` imports nothing of localsft.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def _end_with_the_other_side() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def main(command: list[str]) -> int:
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"it could not be started: {error}", file=sys.stderr)
        return 127  # as a shell says it
    threading.Thread(target=_end_with_the_other_side, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
