"""``data preview`` as a user runs it, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Localsft
from tests.cli.tiny_gguf import write_tiny_gguf


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_tiny_gguf(tmp_path / "model.gguf")
    rows = [
        [("user", "say [bold] \u001b[31m"), ("assistant", "héllo wörld 👍")],
        [("system", "be brief"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")],
        *([[("user", f"q {i}"), ("assistant", f"a {i}")] for i in range(20)]),
    ]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in row]}) for row in rows]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_supervised_text_is_marked_with_the_token_that_ends_the_turn(localsft: Localsft, work: Path) -> None:
    result = localsft("data", "preview", "in.jsonl", "--model", "model.gguf", "--row", "2")
    assert result.returncode == 0, result.stderr
    assert "in.jsonl:2: " in result.stderr
    assert "«two<|im_end|>⏎»" in result.stderr and "«four<|im_end|>⏎»" in result.stderr
    assert "«be" not in result.stderr and "«one" not in result.stderr
    last = localsft("data", "preview", "in.jsonl", "--model", "model.gguf", "--row", "2", "--mask", "last").stderr
    assert "«two" not in last and "«four" in last


def test_pieces_are_the_tokens_and_texts_are_not_obeyed(localsft: Localsft, work: Path) -> None:
    result = localsft("data", "preview", "in.jsonl", "--model", "model.gguf", "--row", "1", "--json", "--ids")
    assert result.returncode == 0, result.stderr
    assert "[bold]" in result.stderr and "\x1b" not in result.stderr
    (document,) = json.loads(result.stdout)
    (example,) = document["examples"]
    text = "".join(piece["text"] for piece in example["pieces"])
    assert "héllo wörld 👍<|im_end|>" in text
    assert sum(len(piece["ids"]) for piece in example["pieces"]) == example["tokens"]
    assert sum(len(piece["ids"]) for piece in example["pieces"] if piece["weight"]) == example["supervised"]
    assert "".join(piece["text"] for piece in example["pieces"] if piece["weight"]) == "héllo wörld 👍<|im_end|>"


def test_the_first_rows_a_sample_or_one_row(localsft: Localsft, work: Path) -> None:
    def sources(*arguments: str) -> list[str]:
        result = localsft("data", "preview", "in.jsonl", "--model", "model.gguf", "--json", *arguments)
        assert result.returncode == 0, result.stderr
        return [document["source"] for document in json.loads(result.stdout)]

    assert sources() == ["in.jsonl:1", "in.jsonl:2", "in.jsonl:3"]
    sample = sources("--sample", "5")
    assert len(set(sample)) == 5 and sample == sources("--sample", "5") != sources("--sample", "5", "--seed", "1")
    none = localsft("data", "preview", "in.jsonl", "--model", "model.gguf", "--row", "99")
    assert none.returncode == 2 and "no row starts on line 99" in none.stderr
