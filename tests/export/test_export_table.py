"""The table of docs/export/README.md says what the exporters' own tables say."""

from __future__ import annotations

from pathlib import Path

from localsft.export.families import FAMILIES
from localsft.weights.names import MODEL_TYPES

PAGE = Path(__file__).parents[2] / "docs" / "export" / "README.md"
COLUMNS = ["family", "mlx", "peft", "gguf-lora", "merged", "merged-gguf, ollama"]
EXPERTS = {"mixtral", "granitemoe", "qwen2_moe", "qwen3_moe", "phimoe", "olmoe"}  # stacked, which PEFT can't express
FROM_GGUF = {*MODEL_TYPES.values(), "mistral"}  # mistral is "llama" in a GGUF


def table() -> dict[str, dict[str, str]]:
    """Family -> column -> cell; AssertionError where a family stands twice."""
    section = PAGE.read_text(encoding="utf-8").partition("## What each target can express")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    assert rows[0] == COLUMNS
    found: dict[str, dict[str, str]] = {}
    for row in rows[2:]:
        for family in row[0].split(", "):
            assert family not in found, f"{family} stands twice"
            found[family] = dict(zip(COLUMNS[1:], row[1:], strict=True))
    return found


def test_the_table_names_every_family_and_no_other() -> None:
    named = set(table())
    assert named - {"all others that mlx-lm trains"} == set(FAMILIES)


def test_the_cells_are_what_the_exporters_do() -> None:
    cells = table()
    for family, entry in FAMILIES.items():
        row = cells[family]
        assert row["mlx"] == "yes", family
        assert row["peft"] == ("attention only" if family in EXPERTS else "yes"), family
        assert row["gguf-lora"] == ("yes, q and k rows permuted" if entry.permuted else "yes"), family
        assert row["merged-gguf, ollama"] == ("from a GGUF base" if family in FROM_GGUF else "no"), family
    others = cells["all others that mlx-lm trains"]
    assert (others["peft"], others["gguf-lora"], others["merged-gguf, ollama"]) == ("refused by name", "refused by name", "no")
