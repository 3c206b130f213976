"""Checks of data: each finds a row that has the problem and leaves a close one alone."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from localsft.data.check import coverage
from localsft.data.check.private import is_card, is_iban
from localsft.data.check.repeats import RepeatChecks, RepeatRows
from localsft.data.check.run import CheckReport, check
from localsft.data.check.tokens import TokenRules
from localsft.data.conversation import Conversation, Message
from localsft.data.languages import language_of
from localsft.data.template import ChatTemplate
from localsft.errors import InputError
from tests.cli.conftest import ROOT
from tests.tiny_vocab import CHATML, tiny_tokenizer

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
    "secret": (ask("key?", "AKIA2Q7VJ4TZK5MWXR3N"), ask("key?", "AKIAIOSFODNN7EXAMPLE; sk-short is none"), "error"),
    "e-mail": (ask("Who?", "Write to jane.roe@firm.de"), ask("Who?", "Write to jane@help.example or j@example.com"), "warning"),
    "phone": (ask("Who?", "Call +49 30 1234567"), ask("Who?", "Invoice 49-30-1234567, 2026-11-24, +5 points"), "warning"),
    "card": (
        ask("Which?", "4111 1111 1111 1112 0 or 4012 8888 8888 1881"),
        ask("Which?", "Order 4012 8888 8888 1882, the test card 4242 4242 4242 4242"),
        "warning",
    ),
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


def test_few_is_how_many_rows_a_tag_should_have(tmp_path: Path) -> None:
    tagged = [row | {"tags": ["hall"]} for row in sound(3)] + sound()[3:]
    assert found(run(tmp_path, tagged))["rare-tag"] == ("note", 1)
    assert "rare-tag" not in found(run(tmp_path, tagged, few=3))
    holdout = [ask("Something else entirely", "Yes.", tags=["hall"])]
    assert "not-covered" in found(run(tmp_path, tagged, holdout)) and "not-covered" not in found(run(tmp_path, tagged, holdout, few=3))


def test_leakage_and_coverage(tmp_path: Path) -> None:
    tagged = [row | {"tags": ["hall"]} for row in sound()]
    holdout = [sound()[2] | {"tags": ["hall"]}, ask("Something else entirely", "Yes.", tags=["other"])]
    report = run(tmp_path, tagged, holdout)
    assert found(report) == {"leakage": ("error", 1), "not-covered": ("note", 1)}
    assert report.findings[0].lines == (f"{tmp_path}/valid.jsonl:1: the same as {tmp_path}/train.jsonl:3",)


def test_holdout_prompts_that_no_training_prompt_is_near_to_are_named(tmp_path: Path) -> None:
    holdout = [ask(f"How do I get the spoons of order {i} back to you, and what do I have to pay?", "So.") for i in range(30)]
    report = run(tmp_path, prose(40), holdout)
    assert "no-neighbour" not in found(report)
    assert report.coverage is not None
    assert (report.coverage.holdout_rows, report.coverage.holdout_alone) == (30, 0)
    strange = ask("Mein Hund bellt nachts, weil er Katzen hört.", "Fenster zu.")
    report = run(tmp_path, prose(40), [*holdout[:12], strange, *holdout[12:]])
    assert found(report)["no-neighbour"] == ("note", 1)
    assert report.coverage is not None and report.coverage.holdout_alone == 1
    (line,) = next(finding for finding in report.findings if finding.code == "no-neighbour").lines
    assert line.startswith(f"{tmp_path}/valid.jsonl:13: cosine 0.0") and "'Mein Hund bellt" in line
    assert found(run(tmp_path, prose(40), [*holdout[:12], strange]))["no-neighbour"] == ("warning", 1)


def test_groups_of_few_like_prompts_are_named_whatever_the_order(tmp_path: Path) -> None:
    hounds = ("Mein Hund bellt nachts, weil er Katzen hört.", "Mein Hund bellt tags, weil er Katzen hört.", "Warum bellt mein Hund nachts?")
    odd = [ask(text, "Fenster zu.") for text in hounds]
    assert "rare-group" not in found(run(tmp_path, prose(40)))
    report = run(tmp_path, [*odd[:2], *prose(40), odd[2]])
    assert found(report)["rare-group"] == ("note", 1)
    assert report.coverage is not None and (report.coverage.small_groups, report.coverage.alone) == (1, 0)
    (line,) = next(finding for finding in report.findings if finding.code == "rare-group").lines
    assert ": 3 rows (also " in line and " bellt " in line
    other = run(tmp_path, [*prose(40)[::-1], *odd[::-1]])
    (same,) = next(finding for finding in other.findings if finding.code == "rare-group").lines
    assert same.rpartition(": ")[2] == line.rpartition(": ")[2]
    broken = run(tmp_path, [{"messages": []}, *odd[:2], *prose(40), odd[2]], skip_bad=True)
    (shown,) = next(finding for finding in broken.findings if finding.code == "rare-group").lines
    assert shown.rpartition(": ")[2] == line.rpartition(": ")[2]
    assert "rare-group" not in found(run(tmp_path, [*odd, *prose(40)], few=3))
    assert run(tmp_path, prose(29)).coverage is None


def test_prompts_that_say_too_little_and_data_of_pairs_have_no_coverage_findings(tmp_path: Path) -> None:
    report = run(tmp_path, [*prose(40), ask("Grüezi!", "So."), ask("Grüezi", "So.")], [ask("Привет!", "So.")])
    assert not {"rare-group", "no-neighbour"} & found(report).keys()
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(80)]
    pairs = [ask(f"{words[i]} {words[i + 40]} {way}", "So.") for i in range(40) for way in ("once", "twice")]
    report = run(tmp_path, pairs)
    assert report.coverage is not None and report.coverage.small_groups is not None and report.coverage.small_groups > 20
    assert "rare-group" not in found(report)


def test_of_very_many_rows_a_part_is_compared_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "MOST", 35)
    monkeypatch.setattr(coverage, "MOST_HOLDOUT", 10)
    report = run(tmp_path, prose(40), [ask(f"What of the {thing} {i}?", "So.") for thing in THINGS for i in range(3)])
    assert report.coverage is not None and (report.coverage.rows, report.coverage.holdout_rows) == (35, 10)
    assert report.coverage.small_groups is None


def test_bad_rows_end_it_or_are_findings(tmp_path: Path) -> None:
    rows = [*sound(), {"messages": []}, *sound(1)]
    with pytest.raises(InputError, match=r"train.jsonl:13"):
        run(tmp_path, rows)
    assert found(run(tmp_path, rows, skip_bad=True)) == {"bad-row": ("error", 1), "duplicate": ("warning", 1)}


def test_the_fingerprint_is_of_the_rows_and_not_of_their_order(tmp_path: Path) -> None:
    one, other = run(tmp_path, sound()).fingerprint, run(tmp_path, sound()[::-1]).fingerprint
    assert one == other != run(tmp_path, [*sound(), sound()[0]]).fingerprint


def test_rows_are_laid_end_to_end_once_and_not_for_every_finding() -> None:
    with closing(RepeatChecks("f", 5)) as repeats:
        for line in (1, 2):
            repeats.merge(RepeatRows([Conversation((Message("user", "a"), Message("assistant", "b")), line=line)]))
        assert repeats.rows() is repeats.rows() and repeats.rows()["line"].tolist() == [1, 2]


def test_check_digits() -> None:
    assert is_card("4012888888881881") and is_card("3782 822463 10005") and is_card("5105-1051-0510-5100")
    wrong = ("4012888888881882", "4242424242424242", "0000000000000000", "1234567812345670")
    assert not any(is_card(number) for number in wrong)
    assert is_iban("GB82 WEST 1234 5698 7654 32") and not is_iban("GB82 WEST 1234 5698 7654 33")


def test_the_shipped_example_has_no_errors() -> None:
    folder = ROOT / "examples" / "billing-support"
    report = check(folder / "train.jsonl", folder / "holdout.jsonl")
    assert report.rows == 186
    assert {finding.code for finding in report.findings} <= {"not-covered", "rare-tag", "no-neighbour"}
    assert report.coverage is not None and report.coverage.holdout_alone in (0, 1) and report.coverage.small_groups == 0


# --- style and language -----------------------------------------------------------------------------------------------------


def prose(count: int, start: str = "Please") -> list[dict[str, Any]]:
    """Rows whose answers are English prose, each with an opening of its own."""
    return [
        ask(
            f"How do I get the {thing} of order {i * 7919} back to you, and what is it that I have to pay for this?",
            f"{start} {i * 31} times send the {thing} to hall {i}, and we will see to it that you have the money in your account by then.",
        )
        for i, thing in enumerate(THINGS * 4)
    ][:count]


def test_a_few_answers_with_markdown_are_named(tmp_path: Path) -> None:
    assert "markdown-mixed" not in found(run(tmp_path, prose(40)))
    odd = ask("Where?", "- send it to the hall of the town, and then\n- wait for the money that you are to get")
    report = run(tmp_path, [*prose(40), odd])
    assert found(report)["markdown-mixed"] == ("note", 1)
    assert report.style.markdown == pytest.approx(1 / 41)


def test_an_opening_that_most_answers_have_is_named(tmp_path: Path) -> None:
    rows = [ask(row["messages"][0]["content"], "I am sorry, " + row["messages"][1]["content"]) for row in prose(40)]
    assert found(run(tmp_path, rows))["one-opening"] == ("note", 40)
    assert "one-opening" not in found(run(tmp_path, prose(40)))


def test_an_answer_in_another_language_than_its_prompt_is_named(tmp_path: Path) -> None:
    german = "Bitte senden Sie das Paket an uns, und wir werden es mit der nächsten Rechnung für Sie auf das Konto buchen."
    asked = prose(1)[0]["messages"][0]["content"].replace("order", "parcel")
    report = run(tmp_path, [*prose(40), ask(asked, german)])
    assert found(report)["answer-language"] == ("warning", 1)
    assert report.style.languages == {"English": 40, "German": 1}
    question = "Wie bekomme ich das Geld für die Bestellung zurück, und was ist mit der Rechnung, die ich von Ihnen habe?"
    assert found(run(tmp_path, [*prose(40), ask(question, german)]))["mixed-languages"] == ("note", 1)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the address that I have to send this to, and how long will it be on the way?", "English"),
        ("Où est la facture que vous avez envoyée pour le mois de mai, et qui est dans la liste ?", "French"),
        ("Где находится счёт за май?", "Cyrillic"),
        ("請問帳單在哪裡可以看到", "Han"),
        ("請求書はどこで見られますか", "Japanese"),
        ("for i in range(10): print(i)", ""),
        ("yes", ""),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


# --- with a base model's template and vocabulary ----------------------------------------------------------------------------


def rules(max_length: int = 10_000) -> TokenRules:
    tokenizer = tiny_tokenizer()
    bos, eos = (tokenizer.token_bytes(token).decode() for token in (tokenizer.bos_id or 0, tokenizer.eos_id or 0))
    return TokenRules(tokenizer, ChatTemplate(CHATML, bos=bos, eos=eos), "assistant", max_length)


def test_tokens_are_counted_and_sound_rows_stay_sound(tmp_path: Path) -> None:
    report = run(tmp_path, sound(), tokens=rules())
    assert found(report) == {}
    assert report.tokens is not None and report.tokens["over_long"] == 0 and 0 < report.tokens["supervised"] < report.tokens["tokens"]
    assert run(tmp_path, sound()).tokens is None


def test_a_row_without_a_target_is_an_error(tmp_path: Path) -> None:
    silent = ask("a question", "an answer")
    silent["messages"][1]["weight"] = 0
    assert found(run(tmp_path, [*sound(), silent], tokens=rules()))["no-target"] == ("error", 1)


def test_over_long_rows_say_what_each_way_to_shorten_them_loses(tmp_path: Path) -> None:
    plain = run(tmp_path, sound(1), tokens=rules()).tokens
    assert plain is not None
    limit = plain["tokens"] + 40
    long_answer = ask("Where do the apples go?", "Take them to the hall. " * 60)
    two_turns = {"messages": sound(1)[0]["messages"] + ask("And then?", "Take them to the cellar. " * 60)["messages"]}
    report = run(tmp_path, [*sound(1), long_answer, two_turns], tokens=rules(limit))
    assert found(report)["too-long"] == ("warning", 1) and found(report)["cut-off"] == ("warning", 1)
    assert report.tokens is not None and report.tokens["over_long"] == 2
    lost = report.tokens["lost"]
    whole = run(tmp_path, [long_answer, two_turns], tokens=rules()).tokens
    assert whole is not None
    assert lost["rows left out"]["tokens"] == whole["tokens"] and lost["rows left out"]["supervised"] == whole["supervised"]
    assert lost["the end cut off"] == {
        "tokens": whole["tokens"] - 2 * limit,
        "supervised": lost["the end cut off"]["supervised"],
        "ends": 2,
    }
    assert lost["whole turns"]["ends"] == 0
    assert "rows left out" in next(finding for finding in report.findings if finding.code == "cut-off").message


def test_the_name_of_a_control_token_is_pointed_out(tmp_path: Path) -> None:
    report = found(run(tmp_path, [*sound(), ask("What does <|im_end|> mean?", "The end.")], tokens=rules()))
    assert report == {"control-token": ("note", 1)}
