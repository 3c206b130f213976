"""Training beside TRL + PEFT (PyTorch, CPU) on the same rows; prints one JSON object.

    python bench/train.py DATA.jsonl --model MODEL.gguf --peer-python PATH --peer-model HF_FOLDER [--rows N] [--batch 8] [--rounds 3]

Both sides get the same tokens with the same ones supervised: the rows are rendered here, once, and the peer is given ids and labels.
With ``--same-order`` the peer also takes them in our order, batch by batch, so that losses can be compared; else it batches rows of
like length, which spares it padding. The two sides run in turn, each in a process of its own, so that a machine that slows down slows
both; medians, and the ratio pair by pair. tokens/s counts the tokens of an unpacked, unpadded run on both sides; loading and
rendering are not in it. ``--plain`` switches packing and prefix sharing off: then both sides compute the same tokens, but for the
peer's padding. ``--peer-rows`` gives the peer fewer rows than us, where it would take too long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from localsft.config import resolve
from localsft.data.pack import epoch_order
from localsft.doctor import processor_name
from localsft.session import load_examples, load_model

PEER = Path(__file__).parent / "peers" / "peer_trl.py"


def run(command: list[str]) -> dict[str, Any]:
    """The last line of stdout, a JSON object."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    last: dict[str, Any] = json.loads(done.stdout if done.stdout.lstrip().startswith("{\n") else done.stdout.strip().splitlines()[-1])
    return last


def ours(a: argparse.Namespace, data: Path, out: Path) -> dict[str, float]:
    command = [
        sys.executable, "-m", "localsft", "train", str(data), "--model", a.model, "--engine", "cpu", "--out", str(out),
        "--mask", "last", "--schedule", "constant", "--warmup", "0", "--batch-size", str(a.batch), "--epochs", str(a.epochs),
        "--rank", str(a.rank), "--alpha", str(2 * a.rank), "--learning-rate", str(a.lr), "--max-length", str(a.max_length),
        "--tokens-per-pack", str(a.tokens_per_pack), "--threads", str(a.threads), "--json",
        *(["--no-pack", "--no-share-prefix"] if a.plain else []), *(["--layers", str(a.layers)] if a.layers else []),
    ]  # fmt: skip
    result = run(command)
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record["loss"] for record in losses if "loss" in record]
    return {
        "tokens_per_second": result["tokens_per_second"],
        "seconds": result["train_seconds"],
        "peak_memory_mb": result["peak_memory_mb"],
        "tokens": result["tokens"],
        "tokens_computed": result["tokens_computed"],
        "examples_per_second": result["examples"] * a.epochs / result["train_seconds"],
        "last_epoch_loss": statistics.mean(steps[-(len(steps) // a.epochs) :]),
        "last_quarter_loss": statistics.mean(steps[-max(1, len(steps) // 4) :]),
    }


def write_tokens(a: argparse.Namespace, data: Path, to: Path) -> None:
    """What our side trains on as ids and labels; with ``--same-order`` the rows of all epochs in the order of our steps."""
    config = resolve({"data.path": str(data), "data.mask": "last", "data.max_length": a.max_length})
    examples = load_examples(config, load_model("base", Path(a.model))).train
    order = list(range(len(examples)))
    if a.same_order:
        order = [int(i) for epoch in range(a.epochs) for i in epoch_order(len(examples), config.seed, epoch)]
    rows = []
    for example in (examples[i] for i in order[: a.peer_rows or None]):
        labels = [token if weight else -100 for token, weight in zip(example.token_ids.tolist(), example.target_weights, strict=True)]
        rows.append(json.dumps({"input_ids": example.token_ids.tolist(), "labels": labels}))
    to.write_text("\n".join(rows) + "\n")


def theirs(a: argparse.Namespace, tokens: Path) -> dict[str, Any]:
    result = run([
        a.peer_python, str(PEER), a.peer_model, str(tokens), "--epochs", str(1 if a.same_order else a.epochs), "--batch", str(a.batch),
        "--rank", str(a.rank), "--lr", str(a.lr), "--max-len", str(a.max_length), "--dtype", a.peer_dtype,
        *(["--in-order"] if a.same_order else []),
    ])  # fmt: skip
    steps = len(result["losses"]) // a.epochs
    return {
        "tokens_per_second": result["tok_s"],
        "seconds": result["wall_s"],
        "peak_memory_mb": result["peak_rss_mb"] * 1.048576,
        "tokens": result["real_tokens"],
        "examples_per_second": result["examples_s"],
        "last_epoch_loss": statistics.mean(result["losses"][-steps:]),
        "last_quarter_loss": statistics.mean(result["losses"][-max(1, len(result["losses"]) // 4) :]),
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--peer-python")
    parser.add_argument("--peer-model")
    numbers = {"rows": 0, "batch": 8, "epochs": 1, "rank": 8, "rounds": 3, "threads": 2, "max-length": 2048, "layers": 0, "peer-rows": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens-per-pack", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--same-order", action="store_true")
    parser.add_argument("--peer-dtype", choices=["bf16", "f32"], default="bf16")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = a.data.read_text().splitlines()
        data = Path(folder) / "rows.jsonl"
        data.write_text("\n".join(rows[: a.rows] if a.rows else rows) + "\n")
        tokens = Path(folder) / "tokens.jsonl"
        write_tokens(a, data, tokens)
        us: list[dict[str, float]] = []
        them: list[dict[str, float]] = []
        for i in range(a.rounds):
            us.append(ours(a, data, Path(folder) / f"run{i}"))
            if a.peer_python:
                them.append(theirs(a, tokens))
    report: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(a).items()}, "cpu": processor_name(), "ours": medians(us)}
    if them:
        report["trl_peft"] = medians(them)
        report["speed_ratio"] = statistics.median(u["tokens_per_second"] / t["tokens_per_second"] for u, t in zip(us, them, strict=True))
        report["examples_ratio"] = statistics.median(
            u["examples_per_second"] / t["examples_per_second"] for u, t in zip(us, them, strict=True)
        )
        report["memory_ratio"] = report["ours"]["peak_memory_mb"] / report["trl_peft"]["peak_memory_mb"]
        for loss in ("last_epoch_loss", "last_quarter_loss"):
            report[f"{loss}_ratio"] = report["ours"][loss] / report["trl_peft"][loss]
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
