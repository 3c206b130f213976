"""``data check`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Localsft


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
