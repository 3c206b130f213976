from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from localsft.errors import InputError, Refused, UsageError
from localsft.runs import Run, create, list_runs, open_run


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("examples/billing-support", "billing-support"),
        ("examples/billing-support/train.jsonl", "billing-support"),
        ("My Tickets (2025).jsonl.gz", "my-tickets-2025"),
        ("../..//%%%.jsonl", "run"),
    ],
)
def test_names_come_from_date_and_data(tmp_path: Path, data: str, name: str) -> None:
    today = datetime.date.today().isoformat()
    assert create(None, data, tmp_path).name == f"{today}-{name}-1"
    assert create(None, data, tmp_path).name == f"{today}-{name}-2"


def test_a_given_folder_must_be_new_or_empty(tmp_path: Path) -> None:
    run = create(str(tmp_path / "a" / "b"), "data")
    assert create(str(run.path), "data") == run
    run.write_info({})
    with pytest.raises(Refused, match=r"b \(--out\) exists already and is not empty; choose another folder"):
        create(str(run.path), "data")
    with pytest.raises(Refused, match=r"run.json \(--out\) is a file"):
        create(str(run.path / "run.json"), "data")


def test_info_round_trip_with_numpy_and_not_finite(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_info({"loss": np.float64(0.5), "bad": float("nan"), "steps": np.int64(3)})
    assert run.info() == {"loss": 0.5, "bad": None, "steps": 3}


def test_metrics_ignore_only_a_torn_last_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.metrics() == []
    run.append_metrics({"step": 1})
    run.append_metrics({"step": 2})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')
    assert run.metrics() == [{"step": 1}, {"step": 2}]
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2: not JSON"):
        run.metrics()


def test_metrics_after_a_checkpoint_are_taken_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"ste')
    run.keep_metrics(2)
    run.append_metrics({"step": 3, "again": True})
    assert run.metrics() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_listing_passes_over_other_folders_and_sorts_numbers(tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "other"):
        (tmp_path / name).mkdir()
        if name != "other":
            Run(tmp_path / name).write_info({})
    assert [run.name for run in list_runs(tmp_path)] == ["run-2", "run-10"]
    assert list_runs(tmp_path / "none") == []


def test_open_by_name_or_folder(tmp_path: Path) -> None:
    run = create(str(tmp_path / "one"), "data")
    run.write_info({})
    assert open_run("one", tmp_path) == run
    assert open_run(str(run.path)) == run
    with pytest.raises(UsageError, match="there is no run 'two'"):
        open_run("two", tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_broken_run_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run.json: (can't be read|must be)"):
        Run(tmp_path).info()
