"""Checks of data: each finds a row that has the problem and leaves a close one alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localsft.data.check.private import is_card, is_iban
from localsft.data.check.run import CheckReport, check
from localsft.errors import InputError
from tests.cli.conftest import ROOT

THINGS = ("apples", "pears", "bridges", "violins", "rockets", "turtles", "windows", "candles", "ladders", "engines", "pillows", "hammers")


def ask(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], **more}


def sound(count: int = 12) -> list[dict[str, Any]]:
    return [ask(f"Where do the {thing} go that came in today?", f"Take the {thing} to hall {i}.") for i, thing in enumerate(THINGS[:count])]


def run(tmp_path: Path, rows: list[dict[str, Any]], holdout: list[dict[str, Any]] | None = None, **more: Any) -> CheckReport:
    for name, part in (("train", rows), ("valid", holdout or [])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return check(tmp_path / "train.jsonl", tmp_path / "valid.jsonl" if holdout else None, **more)


def found(report: CheckReport) -> dict[str, tuple[str, int]]:
    return {finding.code: (finding.severity, finding.count) for finding in report.findings}


def test_sound_rows_have_no_findings(tmp_path: Path) -> None:
    assert found(run(tmp_path, sound())) == {}


CASES = {
    "empty-answer": (ask("a question", " \n"), ask("a question", "."), "error"),
    "boilerplate": (ask("Who?", "As an AI language model, I can't."), ask("As an AI language model, who are you?", "Nobody."), "warning"),
    "mojibake": (ask("CafÃ© or not?", "Yes."), ask("Café, São Paulo, naïve, ÀÉ or not?", "Yes."), "warning"),
    "control-characters": (ask("a\u0007b", "Yes."), ask("a\tb\nc 👍🏽", "Yes."), "warning"),
    "secret": (ask("key?", "AKIAIOSFODNN7EXAMPLE"), ask("key?", "AKIA is how they begin; sk-short is none"), "error"),
    "e-mail": (ask("Who?", "Write to jane.roe@firm.de"), ask("Who?", "Write to jane@help.example or j@example.com"), "warning"),
    "phone": (ask("Who?", "Call +49 30 1234567"), ask("Who?", "Invoice 49-30-1234567, 2026-11-24, +5 points"), "warning"),
    "card": (ask("Which?", "4111 1111 1111 1112 0 or 4242 4242 4242 4242"), ask("Which?", "Order 4242 4242 4242 4243"), "warning"),
    "iban": (ask("Which?", "DE89 3704 0044 0532 0130 00"), ask("Which?", "DE88 3704 0044 0532 0130 00"), "warning"),
    "role-order": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]},
        "warning",
    ),
    "length-outlier": (ask("Tell me", "word " * 200), ask("Tell me", "word " * 60), "warning"),
}


@pytest.mark.parametrize("code", CASES)
def test_a_row_with_the_problem_is_found_and_a_close_one_is_not(code: str, tmp_path: Path) -> None:
    bad, good, severity = CASES[code]
    report = run(tmp_path, [*sound(), bad])
    assert found(report) == {code: (severity, 1)}
    assert report.findings[0].lines[0].startswith(f"{tmp_path / 'train.jsonl'}:13")
    assert found(run(tmp_path, [*sound(), good])) == {}


def test_an_empty_turn_out_of_the_loss_and_one_that_calls_a_tool_are_sound(tmp_path: Path) -> None:
    unweighted = ask("a question", "")
    unweighted["messages"][1]["weight"] = 0
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    calling = {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    later = ask("more", "yes")["messages"]
    assert "empty-answer" not in found(run(tmp_path, [*sound(), {"messages": unweighted["messages"] + later}, calling]))


def test_repeated_rows(tmp_path: Path) -> None:
    long = "The elevator of the northern tower stops between the fourth and the fifth floor every other morning, please send somebody. "
    rows = [*sound(), sound()[3], ask(long, "We will."), ask(long.upper() + "!", "We will.")]
    assert found(run(tmp_path, rows)) == {"duplicate": ("warning", 1), "near-duplicate": ("warning", 1)}


def test_one_prompt_with_two_answers_is_an_error_among_labels_only(tmp_path: Path) -> None:
    labels = [ask(f"Is {thing} fruit?", "yes" if i % 2 else "no") for i, thing in enumerate(THINGS)]
    assert found(run(tmp_path, [*labels, ask("Is apples fruit?", "yes")]))["contradiction"] == ("error", 1)
    free = [*sound(), ask("Where do the apples go that came in today?", "Into the cellar, as ever.")]
    assert found(run(tmp_path, free))["contradiction"] == ("warning", 1)
    other_system = ask("Is apples fruit?", "yes")
    other_system["messages"].insert(0, {"role": "system", "content": "Say the opposite."})
    assert "contradiction" not in found(run(tmp_path, [*labels, other_system]))


def test_labels_out_of_balance(tmp_path: Path) -> None:
    rows = [ask(f"Is number {i * 7919} {thing}?", "rare" if i == 3 else "common") for i, thing in enumerate(THINGS * 3)]
    assert found(run(tmp_path, rows))["label-imbalance"] == ("warning", 2)
    assert "label-imbalance" not in found(run(tmp_path, [*rows, *[ask(f"And {thing}, too?", "rare") for thing in THINGS]]))


def test_json_answers(tmp_path: Path) -> None:
    rows = [ask(f"Where are {thing}?", json.dumps({"hall": i, "floor": 1})) for i, thing in enumerate(THINGS)]
    assert found(run(tmp_path, rows)) == {}
    broken = found(run(tmp_path, [*rows, ask("Where is it?", '{"hall": 3, "floor": '), ]))  # fmt: skip
    assert broken == {"json-broken": ("error", 1)}
    assert found(run(tmp_path, [*rows, ask("Where is it?", '{"hall": 3}')])) == {"json-schema": ("warning", 1)}
    assert "json-broken" not in found(run(tmp_path, [*sound(), ask("Where?", "{not JSON, a set}")]))


def test_leakage_and_coverage(tmp_path: Path) -> None:
    tagged = [row | {"tags": ["hall"]} for row in sound()]
    holdout = [sound()[2] | {"tags": ["hall"]}, ask("Something else entirely", "Yes.", tags=["other"])]
    report = run(tmp_path, tagged, holdout)
    assert found(report) == {"leakage": ("error", 1), "not-covered": ("note", 1)}
    assert report.findings[0].lines == (f"{tmp_path}/valid.jsonl:1: the same as {tmp_path}/train.jsonl:3",)


def test_bad_rows_end_it_or_are_findings(tmp_path: Path) -> None:
    rows = [*sound(), {"messages": []}, *sound(1)]
    with pytest.raises(InputError, match=r"train.jsonl:13"):
        run(tmp_path, rows)
    assert found(run(tmp_path, rows, skip_bad=True)) == {"bad-row": ("error", 1), "duplicate": ("warning", 1)}


def test_the_fingerprint_is_of_the_rows_and_not_of_their_order(tmp_path: Path) -> None:
    one, other = run(tmp_path, sound()).fingerprint, run(tmp_path, sound()[::-1]).fingerprint
    assert one == other != run(tmp_path, [*sound(), sound()[0]]).fingerprint


def test_check_digits() -> None:
    assert is_card("4242424242424242") and is_card("3782 822463 10005") and is_card("5555-5555-5555-4444")
    assert not is_card("4242424242424241") and not is_card("0000000000000000") and not is_card("1234567812345670")
    assert is_iban("GB82 WEST 1234 5698 7654 32") and not is_iban("GB82 WEST 1234 5698 7654 33")


def test_the_shipped_example_has_no_errors() -> None:
    folder = ROOT / "examples" / "billing-support"
    report = check(folder / "train.jsonl", folder / "holdout.jsonl")
    assert report.rows == 186
    assert {finding.severity for finding in report.findings} <= {"note"}
