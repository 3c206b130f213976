"""Leakage: a repeated row is found, exactly or nearly; rows that only share instructions are not."""

from __future__ import annotations

from localsft.data.conversation import Conversation, Message
from localsft.data.leakage import find_leaks

FORM = "Name the occupation code of the following job title, one code only, and nothing else. " * 5


def row(line: int, prompt: str, answer: str, file: str = "train.jsonl") -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)), file=file, line=line)


TRAIN = [
    row(1, FORM + "A painter of houses who works for a company on the coast", "47-2141"),
    row(
        2,
        FORM + "Someone who repairs bicycles in a small shop near the old station of a town that has more bicycles than people",
        "49-3091",
    ),
]


def test_the_same_row_is_found() -> None:
    (leak,) = find_leaks(TRAIN, [row(9, *(message.content or "" for message in TRAIN[1].messages), file="valid.jsonl")])
    assert leak.exact
    assert str(leak) == "valid.jsonl:9 is the same as train.jsonl:2"


def test_a_row_with_other_case_and_one_more_letter_is_found() -> None:
    near = row(
        3,
        FORM + "someone who repairs bicycles in a small shop near the old station of a town that has more bicycles than peoples",
        "49-3091",
        "valid.jsonl",
    )
    (leak,) = find_leaks(TRAIN, [near])
    assert not leak.exact
    assert leak.train == "train.jsonl:2"
    assert 0.9 <= leak.similarity < 1


def test_rows_that_share_only_the_form_are_not_leaks() -> None:
    jobs = ("roofer", "diver", "baker", "nurse", "pilot", "clerk", "judge", "miner", "tailor", "farmer", "welder", "smith", "actor")
    train = [row(i, FORM + job, f"{i}") for i, job in enumerate(jobs, 1)]
    assert not find_leaks(train, [row(3, FORM + "plumber", "99", "valid.jsonl")])
    assert find_leaks(train, [row(3, FORM + "Farmer!", "10", "valid.jsonl")])


def test_another_answer_to_the_same_prompt_is_not_the_same_row() -> None:
    prompt = "What is it?"
    assert not find_leaks([row(1, prompt, "It is a bank transfer from March.")], [row(1, prompt, "A refund to a card.", "valid.jsonl")])


def test_nothing_to_compare_is_no_leak() -> None:
    assert find_leaks([], TRAIN) == []
    assert find_leaks(TRAIN, []) == []
