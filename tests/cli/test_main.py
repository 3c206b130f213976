"""Exit codes, one-sentence errors, and what goes to which stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localsft.cli import main as module
from localsft.cli.main import run
from localsft.errors import Finding, InputError, NotMeasured, Refused
from tests.cli.conftest import ROOT, Localsft


def test_help_starts_with_an_example_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom localsft.cli.main import run\nrun(['--help'])\n"
        "heavy = {'numpy', 'rich', 'tokenizers', 'mlx', 'localsft._core', 'safetensors', 'minijinja'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Example:\n  localsft demo\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "localsft: No such command 'trian'; see 'localsft --help'"),
        (["train", "--rnk", "4"], "localsft: No such option '--rnk'. Did you mean"),
        (["train"], "localsft: there is no DATA to train on; give a .jsonl file or a folder"),
        (["train", "d.jsonl", "--rank", "0"], "localsft: lora.rank (--rank) must be a whole number of at least 1, not '0'"),
        (["train", "d.jsonl", "--mask", "users"], "localsft: data.mask (--mask) must be one of assistant, last, all, not 'users'"),
        (["train", "d.jsonl", "--model", "nope"], "localsft: --model nope: neither a file or folder nor in the catalogue"),
        (["train", "d.jsonl", "--config", "none.toml"], "localsft: none.toml: no such file; give an existing TOML file to --config"),
        (["generate"], "localsft: give either --prompt TEXT or --messages F.json"),
        (["generate", "--prompt", "x", "--adapter", "none"], "localsft: there is no run 'none'"),
        (["generate", "--messages", "none.json"], "localsft: none.json (--messages): can't be read as JSON"),
        (["models", "show", "smollm"], "localsft: there is no model 'smollm' in the catalogue; did you mean 'smollm2-"),
        (["models", "pull", "smollm2-135m-instruct", "--from", "none"], "localsft: none can't be copied to "),
    ],
)
def test_usage_and_input_errors_are_one_sentence_with_code_2(localsft: Localsft, arguments: list[str], message: str) -> None:
    result = localsft(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Finding("x"), 1),
        (InputError("x"), 2),
        (Refused("x"), 3),
        (NotMeasured("x"), 4),
        (MemoryError(), 3),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 70),
    ],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(module.cli, "main", fail)
    assert run([]) == code
    assert "Traceback" not in capsys.readouterr().err
    if code != 130:
        run(["--debug"])
        assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m localsft models show smollm2-135m-instruct --json; echo code $? >&2"
    result = subprocess.run(["bash", "-c", f"({command}) | true"], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr in ("code 141\n", "code 0\n")  # 0: it was faster than its reader's end


def test_what_models_list_says_is_results_only(localsft: Localsft) -> None:
    result = localsft("models", "list", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)[0]["name"]
    assert "smollm2-135m-instruct" in localsft("models", "list").stdout


def test_a_pulled_model_is_shown_as_here(localsft: Localsft, smollm2_path: Path) -> None:
    result = localsft("models", "pull", "smollm2-135m-instruct", "--from", str(smollm2_path))
    path = result.stdout.strip()
    assert (result.returncode, os.path.getsize(path)) == (0, smollm2_path.stat().st_size)
    assert json.loads(localsft("models", "show", "smollm2-135m-instruct", "--json").stdout)["path"] == path
    os.truncate(path, 1000)
    row = json.loads(localsft("models", "list", "--json").stdout)[0]
    assert (row["path"], row["problem"].partition("; ")[0]) == ("", f"{path} is missing or has been changed")


def test_doctor_reports_and_finds_a_folder_that_can_not_be_written(localsft: Localsft, tmp_path: Path) -> None:
    report = json.loads(localsft("doctor", "--json").stdout)
    assert report["problems"] == []
    assert report["kernel_used"] in report["kernels"]
    assert list(report["gflops"]) == report["kernels"]
    (tmp_path / "file").write_text("")
    result = localsft("doctor", "--json", LOCALSFT_HOME=str(tmp_path / "file" / "home"))
    assert result.returncode == 1
    assert "set LOCALSFT_HOME to another folder" in json.loads(result.stdout)["problems"][0]
    result = localsft("doctor", LOCALSFT_ISA="sse9")
    assert result.returncode == 1
    assert "problems:     LOCALSFT_ISA=sse9: unknown ISA 'sse9': this machine can run baseline" in result.stdout
