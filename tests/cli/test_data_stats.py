"""``data stats`` as a user runs it, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Localsft
from tests.cli.tiny_gguf import write_tiny_gguf


def test_figures_add_up_and_are_the_same_in_text(localsft: Localsft, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "model.gguf")
    turns = [("system", "Be brief. " * 20), ("user", "one"), ("assistant", "two")]
    rows = [{"messages": [{"role": role, "content": text + str(i)} for role, text in turns]} for i in range(9)]
    rows.append({"messages": [{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "y"}]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    arguments = ("data", "stats", "in.jsonl", "--model", "model.gguf", "--max-length", "500", "--skip-bad")
    result = localsft(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["examples"] == 9 and sum(document["skipped"].values()) == 2
    assert document["turns"]["rows"] == 10 and document["turns"]["answers"] == {"1": 10}
    assert document["supervised"]["percentiles"]["p50"] == len("two0") + 1  # a byte a token, and the end of the turn
    assert document["supervised_share"] == document["supervised"]["total"] / document["tokens"]["total"]
    assert document["packing"]["shared"] < document["packing"]["packed"] <= document["packing"]["padded"]
    text = localsft(*arguments)
    assert text.returncode == 0
    assert "left out: 1 rows: longer than max_length" in text.stderr and "left out: 1 rows: bad row" in text.stderr
    assert f"packed, shared prefixes once{document['packing']['shared']:>22,}" in text.stdout
    assert "█" in text.stdout and "\x1b" not in text.stdout
    assert localsft("data", "stats", "in.jsonl", "--model", "model.gguf").returncode == 2


def test_a_file_of_which_nothing_can_be_used_is_an_error(localsft: Localsft, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "model.gguf")
    (tmp_path / "in.jsonl").write_text('{"prompt": "one", "completion": "two"}\n')
    result = localsft("data", "stats", "in.jsonl", "--model", "model.gguf", "--max-length", "2")
    assert result.returncode == 2
    assert "no example is left" in result.stderr and "first at in.jsonl:1" in result.stderr
    wrong = localsft("data", "stats", "in.jsonl", "--max-length", "-3")
    assert wrong.returncode == 2 and "max_length" in wrong.stderr
