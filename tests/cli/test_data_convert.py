"""``data convert`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Localsft

TABLE = "question,answer\nWhere is it?,In the post.\nWhy?,Because.\n"


def test_a_table_becomes_conversations_and_comes_back(localsft: Localsft, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(TABLE)
    result = localsft("data", "convert", "in.csv", "out.jsonl", "--map", "prompt=question,completion=answer")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [[message["content"] for message in row["messages"]] for row in rows] == [["Where is it?", "In the post."], ["Why?", "Because."]]
    assert "in.csv: " in result.stderr and "out.jsonl: 2 rows" in result.stderr
    back = localsft("data", "convert", "out.jsonl", "back.csv", "--to", "prompt-completion")
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "back.csv").read_text() == "system,prompt,completion,tags\n,Where is it?,In the post.,\n,Why?,Because.,\n"


def test_a_file_that_exists_is_kept_unless_forced(localsft: Localsft, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "out.jsonl").write_text("mine")
    result = localsft("data", "convert", "in.jsonl", "out.jsonl")
    assert result.returncode == 3 and "--force" in result.stderr
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    assert localsft("data", "convert", "in.jsonl", "out.jsonl", "--force").returncode == 0
    assert "messages" in (tmp_path / "out.jsonl").read_text()
    same = localsft("data", "convert", "in.jsonl", "in.jsonl", "--force")
    assert same.returncode == 2 and "the same file" in same.stderr


def test_a_row_without_a_place_is_an_error_or_counted_and_nothing_half_is_left(localsft: Localsft, tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    long = {"messages": [*good["messages"], *good["messages"]]}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (good, long, good)))
    result = localsft("data", "convert", "in.jsonl", "out.jsonl", "--to", "prompt-completion")
    assert result.returncode == 2 and "in.jsonl:2" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()
    skipped = localsft("data", "convert", "in.jsonl", "out.jsonl", "--to", "prompt-completion", "--skip-bad")
    assert skipped.returncode == 0 and "left out: in.jsonl:2" in skipped.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
