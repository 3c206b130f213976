"""Per-ISA objects export their table and nothing else, and use nothing of the C++ library.

A weak std:: symbol compiled with AVX flags could be picked by the linker for all callers and crash an older CPU.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
C_LIBRARY = {"memcpy", "memset", "memmove", "memcmp", "logf", "_GLOBAL_OFFSET_TABLE_"}


def objects() -> list[Path]:
    return sorted((ROOT / "build").glob("*/CMakeFiles/kernels_*.dir/csrc/kernels/kernels.cc.o"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.skipif(not objects(), reason="no build tree with per-ISA objects under build/ (make core leaves one)")
def test_only_the_table_is_exported() -> None:
    for path in objects():
        lines = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout.splitlines()
        isa = path.parts[-4].removeprefix("kernels_").removesuffix(".dir")
        symbols = [(line[17:18], line[19:]) for line in lines]
        exported = {name for kind, name in symbols if kind.isupper() and kind not in "U"} | {n for k, n in symbols if k in "uvw"}
        assert exported == {f"localsft::kernels::{isa}::table()"}, path
        assert {name for kind, name in symbols if kind == "U"} <= C_LIBRARY, path
