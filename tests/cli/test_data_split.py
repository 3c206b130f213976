"""``data split`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import ROOT, Localsft

EXAMPLE = str(ROOT / "examples" / "billing-support" / "train.jsonl")


def test_every_row_is_in_one_part_and_training_on_them_finds_no_leak(localsft: Localsft, tmp_path: Path) -> None:
    result = localsft("data", "split", EXAMPLE, "--out", "parts", "--valid", "0.2", "--test", "0.1", "--json")
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)["rows"]
    texts = {part: (tmp_path / "parts" / f"{part}.jsonl").read_text().splitlines() for part in ("train", "valid", "test")}
    assert {part: len(lines) for part, lines in texts.items()} == counts
    whole = [json.loads(line)["messages"] for line in Path(EXAMPLE).read_text().splitlines()]
    assert sorted(map(str, whole)) == sorted(str(json.loads(line)["messages"]) for lines in texts.values() for line in lines)
    assert abs(counts["valid"] - 0.2 * len(whole)) < 4


def test_files_that_exist_are_kept_unless_forced_and_old_parts_go(localsft: Localsft, tmp_path: Path) -> None:
    assert localsft("data", "split", EXAMPLE, "--out", "parts", "--test", "0.1").returncode == 0
    before = (tmp_path / "parts" / "train.jsonl").read_bytes()
    result = localsft("data", "split", EXAMPLE, "--out", "parts", "--seed", "2")
    assert result.returncode == 3 and "--force" in result.stderr
    assert (tmp_path / "parts" / "train.jsonl").read_bytes() == before
    assert localsft("data", "split", EXAMPLE, "--out", "parts", "--seed", "2", "--force").returncode == 0
    assert not (tmp_path / "parts" / "test.jsonl").exists()


def test_rows_that_are_all_alike_are_not_split(localsft: Localsft, tmp_path: Path) -> None:
    (tmp_path / "same.jsonl").write_text('{"prompt": "a question of mine", "completion": "b"}\n' * 5)
    result = localsft("data", "split", "same.jsonl", "--out", "parts")
    assert result.returncode == 2 and "too few different rows" in result.stderr
    assert not (tmp_path / "parts").exists()
