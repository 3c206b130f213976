"""``data check`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Localsft

THINGS = ("hat", "tie", "coat", "scarf", "glove", "shirt")
WAYS = ("that I bought", "that I got as a gift", "by post", "in a shop", "without its label", "after a month")


def test_errors_are_exit_code_1_with_the_line_and_the_remedy(localsft: Localsft, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "one", "completion": "two"}\n{"prompt": "\\u001b[31mthree", "completion": " "}\n')
    result = localsft("data", "check", "in.jsonl", "--no-tokens", "--json")
    assert result.returncode == 1
    assert "error: empty-answer" in result.stderr and "in.jsonl:2" in result.stderr and "write the answer" in result.stderr
    assert "\x1b" not in result.stderr
    document = json.loads(result.stdout)
    assert document["model"] is None
    assert document["rows"] == 2
    assert {finding["code"]: finding["severity"] for finding in document["findings"]} == {
        "empty-answer": "error",
        "control-characters": "warning",
    }


def test_warnings_are_exit_code_0_and_a_missing_file_is_2(localsft: Localsft, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "one", "completion": "two"}\n' * 2)
    result = localsft("data", "check", "in.jsonl", "--no-tokens")
    assert result.returncode == 0 and "warning: duplicate" in result.stderr
    assert localsft("data", "check", "none.jsonl").returncode == 2
    both = localsft("data", "check", "in.jsonl", "--no-tokens", "--model", "x")
    assert both.returncode == 2 and "not both" in both.stderr


def test_coverage_is_told_in_text_and_json(localsft: Localsft, tmp_path: Path) -> None:
    rows = [{"prompt": f"How do I return the {thing} {way}?", "completion": "So."} for thing in THINGS for way in WAYS]
    rows += [{"prompt": text, "completion": "Fenster zu."} for text in ("Mein Hund bellt nachts.", "Mein Hund bellt tags.")]
    asked = [
        {"prompt": "How do I return the tie that I got?", "completion": "So."},
        {"prompt": "Кто там, за дверью?", "completion": "\u001b[31mJa."},
    ]
    for name, part in (("train", rows), ("valid", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    result = localsft("data", "check", "train.jsonl", "--valid", "valid.jsonl", "--no-tokens", "--json")
    assert result.returncode == 0, result.stderr
    assert "1 of 2 holdout rows have no near training row; 1 groups of fewer than 5 like prompts, 0 prompts like no other" in result.stderr
    document = json.loads(result.stdout)
    assert document["coverage"] | {"limit": 0} == {
        "rows": 38, "few": 5, "limit": 0, "holdout_rows": 2, "holdout_alone": 1, "small_groups": 1, "alone": 0
    }  # fmt: skip
    findings = {finding["code"]: finding for finding in document["findings"]}
    assert findings["no-neighbour"]["lines"] == ["valid.jsonl:2: cosine 0.00: 'Кто там, за дверью?'"]
    assert findings["rare-group"]["remedy"] and "2 rows (also 3" in findings["rare-group"]["lines"][0]
    fewer = localsft("data", "check", "train.jsonl", "--no-tokens", "--few", "2")
    assert "rare-group" not in fewer.stderr and "coverage" in fewer.stderr and "holdout" not in fewer.stderr
