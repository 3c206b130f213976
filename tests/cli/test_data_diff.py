"""``data diff`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from localsft.cli.data_diff import words_changed
from tests.cli.conftest import Localsft

OLD = [
    ("Where is my invoice for March?", "It is under Billing."),
    ("Can I pay by bank transfer from abroad?", "Yes, in euros."),
    ("How do I cancel the whole contract today?", "Open Settings and press cancel."),
    ("Twice the same", "Yes."),
    ("Twice the same", "Yes."),
    ("Something that will go away soon", "Indeed."),
]
NEW = [
    ("Twice the same", "Yes."),
    ("How do I cancel the whole contract today, please?", "Open Settings and press cancel."),
    ("Where is my invoice for March?", "It is under Settings, Billing."),
    ("A question that nobody asked so far", "Well."),
    ("Can I pay by bank transfer from abroad?", "Yes, in euros."),
]


def test_rows_are_added_removed_edited_or_unchanged(localsft: Localsft, tmp_path: Path) -> None:
    for name, rows in (("a", OLD), ("b", NEW)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    result = localsft("data", "diff", "a.jsonl", "b.jsonl", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["unchanged"] == 2
    assert document["added"] == ["b.jsonl:4"]
    assert document["removed"] == ["a.jsonl:5", "a.jsonl:6"]
    assert document["edited"] == [
        {"before": "a.jsonl:3", "after": "b.jsonl:2", "changed": "prompt"},
        {"before": "a.jsonl:1", "after": "b.jsonl:3", "changed": "answer"},
    ]
    text = localsft("data", "diff", "a.jsonl", "b.jsonl").stdout
    assert "1 added, 2 removed, 2 edited, 2 unchanged" in text
    assert "It is under {+Settings,+} Billing." in text
    same = json.loads(localsft("data", "diff", "a.jsonl", "a.jsonl", "--json").stdout)
    assert same["unchanged"] == 6 and not same["added"] + same["removed"] + same["edited"]
    assert same["fingerprints"][0] == same["fingerprints"][1] == document["fingerprints"][0] != document["fingerprints"][1]


def test_changed_words() -> None:
    assert words_changed("a b c", "a x c") == "a [-b-]{+x+} c"
    assert words_changed("1 2 3 4 5 6 7 8 9 end", "1 2 3 4 5 6 7 8 9") == "1 2 3 … 7 8 9 [-end-]"
