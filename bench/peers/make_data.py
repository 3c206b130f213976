"""Turns rows of the PyPI package `evals` into chat training data, for benchmarks on real rows.

    pip download --no-deps evals==3.0.1.post1 -d WHEELS
    python bench/peers/make_data.py WHEELS/evals-3.0.1.post1-py3-none-any.whl OUT_FOLDER

Writes OUT_FOLDER/soc_codes.jsonl (1,998 short rows behind one system prompt) and OUT_FOLDER/population_span_extraction.jsonl (497 long
rows), each {"messages": [system, user, assistant]}; the assistant's text is the row's ``ideal``, unchanged. Both sets are under the
package's MIT licence (its LICENSE.md lists the exceptions).
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

SETS = ("soc_codes", "population_span_extraction")


def chat_rows(wheel: zipfile.ZipFile, name: str) -> list[dict]:
    """Every row of a data set as a chat that ends with the expected answer."""
    lines = wheel.read(f"evals/registry/data/{name}/samples.jsonl").decode("utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    return [{"messages": [*row["input"], {"role": "assistant", "content": row["ideal"]}]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(args.wheel) as wheel:
        for name in SETS:
            rows = chat_rows(wheel, name)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (args.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
            print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
