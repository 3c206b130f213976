"""docs/templates.md shows the table of supervised texts that the tests hold. ``python tests/data/test_template_table.py`` writes it."""

from __future__ import annotations

import json
from pathlib import Path

TABLE = Path(__file__).parent / "template_families.json"
PAGE = Path(__file__).parents[2] / "docs" / "templates.md"
HEAD = """# Chat templates, and what is supervised under each

The templates of {count} models render as jinja2 renders them, but for the few cases listed with their reason in
`tests/data/test_template_families.py`. Below stands for each what is supervised of one conversation: system, question, tool call, tool
result, "Sunny.", "Thanks", "You are welcome." Each line is one run of supervised tokens, as a JSON string; an empty line between
runs begins another example, where the template rewrites earlier turns once an answer follows and each turn is trained as the model
will see it. Where a template can't hold the conversation, the error is shown that `train` and `data check` give for such a row.
"""


def page(table: dict[str, dict[str, list[list[str]] | str]]) -> str:
    """The text of docs/templates.md."""
    parts = [HEAD.format(count=len(table))]
    for name, cases in table.items():
        found = cases["tools"]
        if isinstance(found, str):
            parts.append(f"**{name}**: {found}\n")
            continue
        examples = ["\n".join(json.dumps(run, ensure_ascii=False) for run in runs) for runs in found]
        parts.append(f"**{name}**\n\n```\n" + "\n\n".join(examples) + "\n```\n")
    return "\n".join(parts)


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(TABLE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(TABLE.read_text(encoding="utf-8"))), encoding="utf-8")
