"""Splits: no order, no near duplicates across, shares kept."""

from __future__ import annotations

import random
from collections import Counter

from localsft.data.conversation import Conversation, Message
from localsft.data.split import split

WORDS = "invoice refund card charge account plan month renew cancel credit receipt address bank transfer tax seat upgrade team"


def rows(count: int, tags: tuple[str, ...] = ("a", "b", "c")) -> list[Conversation]:
    source = random.Random(5)
    made = []
    for i in range(count):
        prompt = " ".join(f"{source.choice(WORDS.split(' '))}{source.randrange(99)}" for _ in range(25))
        made.append(Conversation((Message("user", prompt), Message("assistant", f"answer {i}")), tags=(tags[i % len(tags)],), line=i + 1))
    return made


def prompts(conversations: list[Conversation], parts: list[str], part: str) -> set[str | None]:
    return {row.messages[0].content for row, own in zip(conversations, parts, strict=True) if own == part}


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    one = rows(120)
    other = one.copy()
    random.Random(9).shuffle(other)
    fractions = {"valid": 0.2, "test": 0.1}
    parts = split(one, fractions)
    assert prompts(one, parts, "valid") == prompts(other, split(other, fractions), "valid")
    assert prompts(one, parts, "valid") != prompts(one, split(one, fractions, seed=1), "valid")


def test_every_stratum_gets_its_share() -> None:
    data = rows(300)
    parts = split(data, {"valid": 0.2, "test": 0.1})
    counts = Counter((row.tags[0], part) for row, part in zip(data, parts, strict=True))
    for tag in "abc":
        assert abs(counts[tag, "valid"] - 20) <= 1
        assert abs(counts[tag, "test"] - 10) <= 1


def test_near_duplicates_and_equal_prompts_stay_together() -> None:
    data = rows(60)
    copies = []
    for row in data:
        text = row.messages[0].content or ""
        copies.append(Conversation((Message("user", text.upper() + " please"), Message("assistant", "x")), tags=("z",)))
        copies.append(Conversation((Message("user", text), Message("assistant", "another")), tags=("y",)))
    parts = split(data + copies, {"valid": 0.3})
    assert 0.2 < parts.count("valid") / len(parts) < 0.4
    for i, part in enumerate(parts[:60]):
        assert parts[60 + 2 * i] == parts[61 + 2 * i] == part


def test_few_short_answers_are_labels() -> None:
    source = rows(100, ("t",))
    data = [Conversation((row.messages[0], Message("assistant", "yes" if i % 10 else "no")), line=row.line) for i, row in enumerate(source)]
    parts = split(data, {"valid": 0.2})
    assert Counter(row.messages[1].content for row, part in zip(data, parts, strict=True) if part == "valid") == {"yes": 18, "no": 2}


def test_a_small_fraction_still_gets_a_row_and_one_group_stays_in_train() -> None:
    assert split(rows(5), {"valid": 0.01}).count("valid") == 1
    assert split([rows(1)[0]] * 4, {"valid": 0.5}).count("train") in (0, 4)
    assert split([], {"valid": 0.5}) == []
