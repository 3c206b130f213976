"""Turns rows of the PyPI package `evals` into chat training data, for benchmarks on real rows.

    pip download --no-deps evals==3.0.1.post1 -d WHEELS
    python bench/peers/make_data.py WHEELS/evals-3.0.1.post1-py3-none-any.whl OUT_FOLDER [--all 100000]

Writes OUT_FOLDER/soc_codes.jsonl (1,998 short rows behind one system prompt) and OUT_FOLDER/population_span_extraction.jsonl (497 long
rows), each {"messages": [system, user, assistant]}; the assistant's text is the row's ``ideal``, unchanged. Both sets are under the
package's MIT licence (its LICENSE.md lists the exceptions). With --all N also OUT_FOLDER/all.jsonl, the first N chats of all sets by name.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

SETS = ("soc_codes", "population_span_extraction")


def chat_rows(wheel: zipfile.ZipFile, file: str) -> Iterator[dict]:
    """The rows of a data set that are chats and name one answer, each as a chat that ends with it. Some lines are no JSON."""
    for line in wheel.read(file).decode("utf-8").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("input"), list) and isinstance(row.get("ideal"), str):
            yield {"messages": [*row["input"], {"role": "assistant", "content": row["ideal"]}]}


def write(rows: Iterable[dict], path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path.stem}: {len(lines)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--all", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(args.wheel) as wheel:
        for name in SETS:
            write(chat_rows(wheel, f"evals/registry/data/{name}/samples.jsonl"), args.out / f"{name}.jsonl")
        if args.all:
            files = sorted(name for name in wheel.namelist() if name.startswith("evals/registry/data/") and name.endswith(".jsonl"))
            chats = (row for file in files for row in chat_rows(wheel, file))
            write(islice(chats, args.all), args.out / "all.jsonl")


if __name__ == "__main__":
    main()
