"""DATA as a file or a folder, and the account of every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localsft.data.load import Dataset, load_dataset
from localsft.data.render import TOO_LONG, chat_template
from localsft.errors import InputError
from tests.tiny_vocab import tiny_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "billing-support"


def row(question: str, answer: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}).encode() + b"\n"


def load(path: Path, max_length: int = 100, skip_bad: bool = False) -> Dataset:
    tokenizer = tiny_tokenizer()
    return load_dataset(path, tokenizer, chat_template(tokenizer), mask="assistant", max_length=max_length, skip_bad=skip_bad)


def test_the_shipped_example() -> None:
    data = load(EXAMPLE, max_length=10_000)
    assert data.valid is not None and data.test is None
    for part in (data.train, data.valid):
        assert part.report.rows == part.report.examples == len(part.examples) >= 40
        assert not part.report.skipped and not part.report.notes
        assert part.report.tokens == sum(len(example.token_ids) for example in part.examples)
        assert 0 < part.report.supervised_tokens < part.report.tokens


def test_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(row("Hi", "Hello") + b"nonsense\n" + row("Hi" * 100, "long") + row("Hi", "Bye"))
    report = load(file, skip_bad=True).train.report
    assert (report.rows, report.examples) == (4, 2)
    assert report.skipped == {"bad row": 1, TOO_LONG: 1}
    assert report.first[TOO_LONG] == f"{file}:3" and report.first["bad row"].startswith(f"{file}:2: not valid JSON")
    with pytest.raises(InputError, match=r"rows.jsonl:2: not valid JSON"):
        load(file)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no train.jsonl in this folder"):
        load(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(row("Hi", "Hello"))
    assert load(tmp_path).valid is None
    (tmp_path / "holdout.jsonl").write_bytes(row("a", "b"))
    assert load(tmp_path).valid is not None
    (tmp_path / "valid.jsonl").write_bytes(row("a", "b"))
    with pytest.raises(InputError, match=r"both holdout.jsonl and valid.jsonl"):
        load(tmp_path)


def test_nothing_left_and_nothing_there(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(row("Hi" * 100, "long"))
    with pytest.raises(InputError, match=rf"no example is left to train on .*1 rows, first at {file}:1"):
        load(file)
    with pytest.raises(InputError, match="no such file or folder"):
        load(tmp_path / "none")
