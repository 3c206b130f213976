"""The linear operations read and write nothing beyond an array's end: a weight may be the end of a mapped file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PYTHON = os.environ.get("LOCALSFT_TEST_PYTHON", sys.executable)  # under an emulator the program itself can't be started

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="memory is protected by mprotect")


def test_linears_stay_within_their_arrays(isa: str) -> None:
    done = subprocess.run([PYTHON, "-m", "tests.kernels.guarded", isa], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode} at {done.stdout.splitlines()[-1:]}: {done.stderr[-1000:]}"


def test_the_guard_guards() -> None:
    beyond = """if True:
        import ctypes, numpy
        from tests.kernels.guarded import guarded
        address = guarded(numpy.zeros(3, numpy.float32)).ctypes.data
        print(len(ctypes.string_at(address, 12)), flush=True)
        ctypes.string_at(address, 13)
    """
    done = subprocess.run([PYTHON, "-c", beyond], capture_output=True, text=True, check=False)
    assert done.stdout == "12\n" and done.returncode < 0
