"""export, verify and import as a user runs them, on a tiny GGUF model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localsft.checkpoint import ADAPTER_FILE
from localsft.export.gguf import GGUF_FILE
from localsft.weights.gguf import open_gguf
from tests.export.tiny import gguf_base, loaded, trained

ROOT = Path(__file__).parents[2]
Localsft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def localsft(tmp_path: Path) -> Localsft:
    """Runs ``localsft`` in a process of its own, in a folder of its own, without llama.cpp, which slow tests are for."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "LOCALSFT_HOME": str(tmp_path / "home"), "PATH": ""}
        return subprocess.run(
            [sys.executable, "-m", "localsft", *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )

    return run


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return trained(tmp_path / "adapter", loaded(gguf_base(tmp_path / "base.gguf")))


def test_export_verify_and_import(localsft: Localsft, tmp_path: Path, adapter: Path) -> None:
    done = localsft("export", str(adapter), "--to", "gguf-lora", "--out", "out", "--model", "base.gguf", "--push", "me/tiny", "--json")
    assert done.returncode == 0, done.stderr
    proof = json.loads(done.stdout)
    assert proof["holds"] and [check["ok"] for check in proof["checks"][:5]] == [True] * 5
    assert "hf upload me/tiny" in done.stderr and (tmp_path / "out/.gitattributes").is_file()
    done = localsft("verify", "out", "--model", "base.gguf")
    assert done.returncode == 0 and "out is the trained model" in done.stderr
    done = localsft("import", "out", "--model", "base.gguf", "--out", "back")
    assert done.returncode == 0, done.stderr
    assert "gguf-lora adapter of 14 linears: rank 4, alpha 10" in done.stderr and (tmp_path / "back" / ADAPTER_FILE).is_file()


def test_a_changed_export_is_found(localsft: Localsft, tmp_path: Path, adapter: Path) -> None:
    assert localsft("export", str(adapter), "--to", "gguf-lora", "--out", "out", "--model", "base.gguf").returncode == 0
    file = tmp_path / "out" / GGUF_FILE
    with open_gguf(file) as old:
        place = old.tensors["blk.1.attn_q.weight.lora_b"].offset
    content = bytearray(file.read_bytes())
    content[place : place + 4] = np.float32(5).tobytes()
    file.write_bytes(content)
    done = localsft("verify", "out", "--model", "base.gguf")
    assert done.returncode == 1 and "FAIL update" in done.stderr and "NOT the trained model" in done.stderr


def test_options_of_other_targets_and_other_bases_are_refused(localsft: Localsft, tmp_path: Path, adapter: Path) -> None:
    done = localsft("export", str(adapter), "--to", "mlx", "--out", "out", "--model", "base.gguf", "--type", "Q8_0")
    assert done.returncode == 2 and "--type goes with --to merged" in done.stderr
    gguf_base(tmp_path / "other.gguf", quantization="Q8_0")
    done = localsft("export", str(adapter), "--to", "mlx", "--out", "out", "--model", "other.gguf")
    assert done.returncode == 3 and "trained on tiny" in done.stderr and "not on other.gguf" in done.stderr
    assert not (tmp_path / "out").exists()
