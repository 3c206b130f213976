"""``train`` and ``generate`` as a user runs them, on a tiny model: streams, the run folder, exit codes, interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Localsft
from tests.cli.tiny_gguf import write_tiny_gguf

PROMISED = {
    *("run", "engine", "isa", "model", "examples", "steps", "epochs", "tokens", "tokens_computed", "tokens_supervised", "train_seconds"),
    *("tokens_per_second", "first_loss", "final_loss", "base_valid_loss", "best_valid_loss", "peak_memory_mb", "adapter"),
}
STEP = {"step", "epoch", "loss", "weight", "lr", "grad_norm", "tokens", "tokens_computed", "seconds"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with model.gguf and data/{train,valid}.jsonl."""
    write_tiny_gguf(tmp_path / "model.gguf")
    (tmp_path / "data").mkdir()
    for part, count in (("train", 12), ("valid", 3)):
        rows = [
            {"messages": [{"role": "user", "content": f"say {part} {i}"}, {"role": "assistant", "content": "hello world"}]}
            for i in range(count)
        ]
        (tmp_path / "data" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


FLAGS = ("--model", "model.gguf", "--batch-size", "4", "--threads", "1", "--learning-rate", "1e-2", "--engine", "cpu")


def test_train_keeps_the_promises_of_its_json_and_folder_and_the_adapter_answers(localsft: Localsft, work: Path) -> None:
    result = localsft("train", "data", *FLAGS, "--epochs", "8", "--out", "run", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document.keys() >= PROMISED
    assert (document["examples"], document["steps"], document["epochs"]) == (12, 24, 8.0)
    assert document["best_valid_loss"] < 0.5 * document["base_valid_loss"]
    assert document["tokens_computed"] < document["tokens"]
    lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    steps, valid = [line for line in lines if "loss" in line], [line for line in lines if "valid_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 25))
    assert all(line.keys() >= STEP for line in steps)
    assert [line["step"] for line in valid] == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert all("valid_token_accuracy" in line for line in valid)
    info = json.loads((work / "run" / "run.json").read_text())
    assert info["config"]["optim"]["learning_rate"] == 1e-2
    assert info["result"]["best_valid_loss"] == document["best_valid_loss"]
    assert "step 24/24" in result.stderr and "\x1b" not in result.stderr

    for adapter in ("run", "run/adapter"):
        answer = localsft("generate", "--adapter", adapter, "--model", "model.gguf", "--prompt", "say valid 1", "--threads", "1")
        assert (answer.returncode, answer.stdout) == (0, "hello world\n")
    answer = localsft("generate", "--adapter", "run", "--prompt", "-", "--json", stdin="say valid 2")
    document = json.loads(answer.stdout)
    assert (document["text"], document["finish"], document["model"]) == ("hello world", "stop", "model.gguf")


def test_an_adapter_of_another_base_is_refused(localsft: Localsft, work: Path) -> None:
    assert localsft("train", "data", *FLAGS, "--steps", "1", "--out", "run").returncode == 0
    changed = bytearray((work / "model.gguf").read_bytes())
    changed[-100] ^= 1
    (work / "other.gguf").write_bytes(changed)
    result = localsft("generate", "--adapter", "run", "--model", "other.gguf", "--prompt", "x")
    assert (result.returncode, result.stdout) == (3, "")
    assert "was trained on model.gguf with hash" in result.stderr


def test_a_config_file_and_flags_over_it(localsft: Localsft, work: Path) -> None:
    (work / "run.toml").write_text('model = "model.gguf"\nsteps = 5\n[data]\npath = "data"\n[lora]\nrank = 2\n')
    result = localsft("train", "--config", "run.toml", "--rank", "4", "--out", "run", "--json")
    assert json.loads(result.stdout)["steps"] == 5
    assert json.loads((work / "run" / "run.json").read_text())["config"]["lora"]["rank"] == 4


def test_a_dry_run_trains_nothing(localsft: Localsft, work: Path) -> None:
    result = localsft("train", "data", *FLAGS, "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert (result.returncode, plan["steps"]) == (0, 9)
    assert not (work / "runs").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', "bad.jsonl:1: "),
        ('{"messages": [{"role": "boss", "content": "x"}]}', "bad.jsonl:1: message 1 has the unknown role 'boss'"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "bad.jsonl:1: no assistant turn"),
        ("", "bad.jsonl: the file is empty"),
    ],
)
def test_bad_data_is_one_sentence_and_leaves_no_run(localsft: Localsft, work: Path, row: str, message: str) -> None:
    (work / "bad.jsonl").write_text(row)
    result = localsft("train", "bad.jsonl", *FLAGS)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"localsft: {message}")
    assert not (work / "runs").exists()


def test_a_truncated_model_is_one_sentence(localsft: Localsft, work: Path) -> None:
    content = (work / "model.gguf").read_bytes()
    (work / "model.gguf").write_bytes(content[: len(content) // 2])
    result = localsft("train", "data", *FLAGS)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("localsft: model.gguf")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_writes_a_checkpoint_and_ends_with_130(work: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "localsft", "train", "data", *FLAGS, "--steps", "100000", "--out", "run", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LOCALSFT_HOME": str(work / "home")}
    process = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = work / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline and (not metrics.exists() or b'"loss"' not in metrics.read_bytes()):
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "stopping after this step" in err
    steps = json.loads(out)["steps"]
    assert (work / "run" / "checkpoints" / f"step-{steps:07d}" / "manifest.json").exists()
    assert err.endswith("to go on: localsft resume run\n")


@pytest.mark.parametrize("isa", ["", "baseline"])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(localsft: Localsft, work: Path, isa: str) -> None:
    whole = localsft("train", "data", *FLAGS, "--epochs", "2", "--save-every", "2", "--out", "whole", LOCALSFT_ISA=isa)
    assert whole.returncode == 0, whole.stderr
    shutil.copytree(work / "whole", work / "cut")
    shutil.rmtree(work / "cut" / "checkpoints" / "step-0000006")
    with open(work / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # torn by a power cut
    result = localsft("resume", "cut")
    assert result.returncode == 0, result.stderr
    assert "run cut: steps 5 to 6" in result.stderr
    assert f"cpu engine ({isa}" in result.stderr
    for name in ("adapter/adapters.safetensors", "checkpoints/step-0000006/optimizer.safetensors"):
        assert (work / "cut" / name).read_bytes() == (work / "whole" / name).read_bytes()

    def without_times(run: str) -> list[dict[str, object]]:
        lines = (work / run / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    assert without_times("cut") == without_times("whole")
    assert "cut is finished: all 6 steps are done" in localsft("resume", "cut").stderr


def test_a_run_on_changed_data_is_not_resumed(localsft: Localsft, work: Path) -> None:
    localsft("train", "data", *FLAGS, "--epochs", "2", "--save-every", "2", "--out", "run")
    shutil.rmtree(work / "run" / "checkpoints" / "step-0000006")
    rows = (work / "data" / "train.jsonl").read_text().replace("say train 1", "say change 1")
    (work / "data" / "train.jsonl").write_text(rows)
    result = localsft("resume", "run")
    assert result.returncode == 3
    assert "the train examples are not those the run was started with" in result.stderr


def test_a_run_on_reordered_rows_is_not_resumed(localsft: Localsft, work: Path) -> None:
    localsft("train", "data", *FLAGS, "--epochs", "2", "--save-every", "2", "--out", "run")
    shutil.rmtree(work / "run" / "checkpoints" / "step-0000006")
    rows = (work / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    (work / "data" / "train.jsonl").write_text("".join(rows[::-1]))
    result = localsft("resume", "run")
    assert result.returncode == 3
    assert "the train rows are in another order" in result.stderr


def test_validation_rows_that_stand_in_the_training_data_are_refused(localsft: Localsft, work: Path) -> None:
    with open(work / "data" / "valid.jsonl", "a") as file:
        file.write((work / "data" / "train.jsonl").read_text().splitlines()[4] + "\n")
    result = localsft("train", "data", *FLAGS, "--steps", "1", "--out", "run")
    assert result.returncode == 3
    assert "data/valid.jsonl:4 is the same as data/train.jsonl:5" in result.stderr
    assert "--allow-leakage" in result.stderr
    assert not (work / "run").exists()
    allowed = localsft("train", "data", *FLAGS, "--steps", "1", "--out", "run", "--allow-leakage")
    assert allowed.returncode == 0, allowed.stderr
    assert "warning: 1 validation rows are in the training data" in allowed.stderr


def test_a_fraction_is_held_out_without_near_duplicates_of_what_is_trained(localsft: Localsft, work: Path) -> None:
    words = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")
    prompts = [f"{word} {ending}" for word in (f"{name} {name[::-1]} {name}" for name in words) for ending in ("now", "now please")]
    rows = [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "hello"}]} for p in prompts]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = localsft("train", "rows.jsonl", *FLAGS, "--valid-fraction", "0.2", "--steps", "1", "--dry-run", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["examples"], document["valid_examples"]) == (16, 4)
