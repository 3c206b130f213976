"""Rows a second and memory of the data path: read, render, tokenize, check, pack. Prints one JSON document.

    python bench/data.py MODEL.gguf [--rows 1000000]

The rows are made here, always the same: a system prompt that all share, a question and an answer of random words of the
billing-support example, about 100 tokens in all. "render_tokenize" is the file on disk to examples on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[1] / "examples" / "billing-support" / "train.jsonl"
SYSTEM = "You are a helpful support agent. Answer briefly and politely, only from the policy."


def write_rows(file: Path, count: int) -> None:
    """``count`` rows of about 100 tokens."""
    source = random.Random(1)
    rows = [json.loads(line) for line in EXAMPLE.read_text().splitlines()]
    words = " ".join(message["content"] for row in rows for message in row["messages"][1:]).split()
    with file.open("w") as stream:
        for _ in range(count):
            question, answer = (" ".join(source.choices(words, k=k)) for k in (16, 32))
            turns = (("system", SYSTEM), ("user", question), ("assistant", answer))
            stream.write(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n")


def timed(task: Callable[[], Any], rows: int) -> tuple[dict[str, float], Any]:
    """Wall and CPU seconds (children's too) and rows a second of a task, and what it returned."""
    start, before = time.perf_counter(), sum(os.times()[:4])
    result = task()
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(sum(os.times()[:4]) - before, 2),
        "rows_per_second": round(rows / seconds),
    }, result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()

    from localsft.data.load import load_file
    from localsft.data.pack import pack_step
    from localsft.data.render import chat_template
    from localsft.tokenizer import load_tokenizer
    from localsft.weights.gguf import open_gguf

    with open_gguf(arguments.model) as gguf:
        tokenizer = load_tokenizer(gguf.metadata, str(arguments.model))
    template = chat_template(tokenizer)
    out: dict[str, Any] = {
        "rows": arguments.rows,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, arguments.rows)
        cache = Path(folder) / "cache"

        def load() -> Any:
            return load_file(file, tokenizer, template, mask="assistant", max_length=2048, cache=cache)

        def pack() -> int:
            return sum(
                batch.n_tokens
                for first in range(0, len(examples), 8)
                for batch in pack_step(examples[first : first + 8], tokens_per_pack=2048)
            )

        out["render_tokenize"], part = timed(load, arguments.rows)
        out["from_cache"], part = timed(load, arguments.rows)
        examples = part.examples
        out["tokens_per_row"] = round(part.report.tokens / arguments.rows, 1)
        out["pack"], out["tokens_computed"] = timed(pack, arguments.rows)
    own, children = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    out |= {"peak_memory_mb": round(own), "largest_worker_mb": round(children)}
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
