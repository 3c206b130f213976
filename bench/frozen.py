"""Training the last layers only, with and without the disk cache of the frozen ones; prints one JSON object.

    python bench/frozen.py MODEL.gguf DATA.jsonl [--layers 8] [--epochs 3] [--rows 64] [--rounds 3]

Both sides train the same steps in this process, in turn, the cache empty at the start of each round. ``ratio`` is of the time of
all steps, the first epoch's filling of the cache included; ``ratio_later_epochs`` of those after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from localsft.config import resolve
from localsft.engine.cpu.engine import CpuEngine
from localsft.runs import create
from localsft.session import load_examples, load_model, make_trainer
from localsft.train import Step


def train(a: argparse.Namespace, model: Any, examples: Any, folder: Path, cached: bool) -> dict[str, Any]:
    trainer = make_trainer(a.config, model, examples, lambda: create(str(folder / "run"), "bench"), folder / "cache" if cached else None)
    steps = [event for event in trainer.events() if isinstance(event, Step)]
    assert isinstance(trainer.engine, CpuEngine)
    if trainer.engine.model.frozen is not None:
        trainer.engine.model.frozen.close()
    first = trainer.plan.per_epoch
    return {
        "seconds": sum(step.seconds for step in steps),
        "later": sum(step.seconds for step in steps[first:]),
        "losses": [step.loss for step in steps],
    }


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
        plain, cached = [], []
        for i in range(a.rounds):
            plain.append(train(a, model, examples, Path(temporary) / f"plain{i}", False))
            cached.append(train(a, model, examples, Path(temporary) / f"cached{i}", True))
    pairs = list(zip(plain, cached, strict=True))
    largest = max(abs(x / y - 1) for p, c in pairs for x, y in zip(p["losses"], c["losses"], strict=True))
    print(
        json.dumps(
            {
                "settings": {key: str(value) for key, value in vars(a).items() if key != "config"},
                "seconds_plain": statistics.median(p["seconds"] for p in plain),
                "seconds_cached": statistics.median(c["seconds"] for c in cached),
                "ratio": statistics.median(p["seconds"] / c["seconds"] for p, c in pairs),
                "ratio_later_epochs": statistics.median(p["later"] / c["later"] for p, c in pairs),
                "largest_relative_difference_of_a_loss": largest,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
