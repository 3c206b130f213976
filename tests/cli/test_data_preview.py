"""``data preview`` as a user runs it, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    (document,) = json.loads(result.stdout)["rows"]
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
        return [document["source"] for document in json.loads(result.stdout)["rows"]]

    assert sources() == ["in.jsonl:1", "in.jsonl:2", "in.jsonl:3"]
    sample = sources("--sample", "5")
    assert len(set(sample)) == 5 and sample == sources("--sample", "5") != sources("--sample", "5", "--seed", "1")
    none = localsft("data", "preview", "in.jsonl", "--model", "model.gguf", "--row", "99")
    assert none.returncode == 2 and "no row starts on line 99" in none.stderr
    assert sources("--row", "4", "--row", "2") == ["in.jsonl:2", "in.jsonl:4"]


def test_where_packing_and_sharing_cut_the_rows(localsft: Localsft, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "model.gguf")
    system = "Answer from the policy, and from nothing else."
    turns = [[("system", system), ("user", f"{name} is the question"), ("assistant", "yes")] for name in "abc"]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in row]}) for row in turns]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ("data", "preview", "in.jsonl", "--model", "model.gguf", "--json")
    result = localsft(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("user\n✂3→1 ") == 3
    document = json.loads(result.stdout)
    (pack,) = document["packs"]
    examples = [row["examples"][0] for row in document["rows"]]
    shared = examples[0]["shared"]
    assert f"  {shared} tokens, computed once for 3 examples\n" in result.stderr
    assert pack["tokens"] == shared + sum(example["parts"][1]["end"] - shared for example in examples)
    assert f"step 1, pack 1: {pack['tokens']} tokens for 3 examples ({pack['alone']} without sharing)" in result.stderr
    for example in examples:
        assert (example["step"], example["pack"]) == (1, 1)
        assert [(part["begin"], part["end"], part["examples"]) for part in example["parts"]] == [
            (0, shared, 3),
            (shared, last_target(example), 1),  # which is predicted, and not computed
        ]
        before = [piece["text"] for piece, first in zip(example["pieces"], starts(example), strict=True) if first < shared]
        assert "".join(before).endswith("user\n")
    smaller = localsft(*arguments, "--tokens-per-pack", str(pack["tokens"] - 1), "--batch-size", "3")
    assert len(json.loads(smaller.stdout)["packs"]) == 2
    alone = localsft(*arguments, "--no-pack")
    assert "✂" not in alone.stderr and "each example alone" in alone.stderr and len(json.loads(alone.stdout)["packs"]) == 3
    apart = localsft(*arguments, "--no-share-prefix", "--batch-size", "2")
    assert "nothing shared" in apart.stderr
    assert [(pack["step"], pack["pack"], pack["tokens"] == pack["alone"]) for pack in json.loads(apart.stdout)["packs"]] == [
        (1, 1, True),
        (2, 1, True),
    ]


def starts(example: dict[str, Any]) -> list[int]:
    """The first token of each piece."""
    sizes = [len(piece["ids"]) for piece in example["pieces"]]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def last_target(example: dict[str, Any]) -> int:
    """The index of the last supervised token."""
    ends = [first + len(piece["ids"]) for piece, first in zip(example["pieces"], starts(example), strict=True) if piece["weight"]]
    return int(ends[-1]) - 1
