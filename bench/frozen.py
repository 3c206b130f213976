"""Training the last layers only, with and without the disk cache of the frozen ones; prints one JSON object.

    python bench/frozen.py MODEL.gguf DATA.jsonl [--layers 8] [--epochs 3] [--rows 64] [--rounds 3]

Both sides train the same steps in this process, step by step in turn, since machines change their speed within seconds; the cache is
empty at the start of each round. ``ratio`` is of the time of all steps, the first epoch's filling of the cache included;
``ratio_later_epochs`` of those after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localsft.config import resolve
from localsft.engine.cpu.engine import CpuEngine
from localsft.runs import create
from localsft.session import load_examples, load_model, make_trainer
from localsft.train import Plan, Step


def steps(a: argparse.Namespace, model: Any, examples: Any, folder: Path, cached: bool) -> Iterator[Step]:
    trainer = make_trainer(a.config, model, examples, lambda: create(str(folder / "run"), "bench"), folder / "cache" if cached else None)
    yield from (event for event in trainer.events() if isinstance(event, Step))
    assert isinstance(trainer.engine, CpuEngine)
    if trainer.engine.model.frozen is not None:
        trainer.engine.model.frozen.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    for name, default in {"layers": 8, "epochs": 3, "rows": 64, "rounds": 3, "threads": 2, "batch-size": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "rows.jsonl"
        data.write_text("\n".join(a.data.read_text().splitlines()[: a.rows]) + "\n")
        a.config = resolve({
            "data.path": str(data), "lora.layers": a.layers, "epochs": a.epochs, "engine": "cpu", "threads": a.threads,
            "batch_size": a.batch_size,
        })  # fmt: skip
        model = load_model("base", a.model)
        examples = load_examples(a.config, model)
        rounds = [
            list(zip(*(steps(a, model, examples, Path(temporary) / f"{i}{cached}", cached) for cached in (False, True)), strict=True))
            for i in range(a.rounds)
        ]
    first = Plan.of(len(examples.train), a.config).per_epoch
    largest = max(abs(plain.loss / cached.loss - 1) for round in rounds for plain, cached in round)
    ratio, later = (statistics.median(seconds(round[start:], 0) / seconds(round[start:], 1) for round in rounds) for start in (0, first))
    print(
        json.dumps(
            {
                "settings": {key: str(value) for key, value in vars(a).items() if key != "config"},
                "seconds_plain": statistics.median(seconds(round, 0) for round in rounds),
                "seconds_cached": statistics.median(seconds(round, 1) for round in rounds),
                "ratio": ratio,
                "ratio_later_epochs": later,
                "largest_relative_difference_of_a_loss": largest,
            },
            indent=2,
        )
    )


def seconds(pairs: list[tuple[Step, Step]], side: int) -> float:
    return sum(pair[side].seconds for pair in pairs)


if __name__ == "__main__":
    main()
