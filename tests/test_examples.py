"""The shipped examples are what their README says: strict rows, one system prompt, no copies, every holdout tag trained."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "billing-support"


def rows(name: str) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


TRAIN, HOLDOUT = rows("train.jsonl"), rows("holdout.jsonl")


def turns(row: dict, role: str) -> list[str]:  # type: ignore[type-arg]
    return [message["content"] for message in row["messages"] if message["role"] == role]


def normalised(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def grams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = normalised(text).split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_there_are_enough_of_them() -> None:
    assert len(TRAIN) >= 160 and len(HOLDOUT) >= 40


@pytest.mark.parametrize("row", TRAIN + HOLDOUT, ids=lambda row: normalised(turns(row, "user")[0])[:40])
def test_rows_are_well_formed(row: dict) -> None:  # type: ignore[type-arg]
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system"] + ["user", "assistant"] * (len(roles) // 2)
    assert all(message["content"].strip() for message in row["messages"])
    assert row["tags"]
    assert not any(set(text) - set(map(chr, range(32, 127))) - set("£€") for text in turns(row, "assistant"))


def test_one_system_prompt() -> None:
    assert len({text for row in TRAIN + HOLDOUT for text in turns(row, "system")}) == 1


def test_no_holdout_wording_is_a_copy() -> None:
    trained = [text for row in TRAIN for text in turns(row, "user")]
    held = [text for row in HOLDOUT for text in turns(row, "user")]
    assert not Counter(map(normalised, trained)).keys() & set(map(normalised, held))
    known = [grams(text) for text in trained]
    for text in held:
        mine = grams(text)
        assert all(len(mine & other) < 0.5 * max(1, len(mine | other)) for other in known), text


def test_every_holdout_tag_is_trained() -> None:
    counts = Counter(tag for row in TRAIN for tag in row["tags"])
    assert all(counts[tag] >= 3 for row in HOLDOUT for tag in row["tags"])
