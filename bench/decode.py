"""Generation beside llama.cpp (node-llama-cpp): the same GGUF, threads and lengths; prints one JSON object.

    python bench/decode.py MODEL.gguf --node-folder FOLDER [--threads 2] [--tokens 64] [--rounds 5]

FOLDER holds node_modules with node-llama-cpp (bench/peers/llama_decode.mjs says how to get it). The sides run in turn, each in a
process of its own. tokens/s once the prompt of 32 tokens is read; medians. Neither side has an adapter. For 16 sequences
at once only ours is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PEER = Path(__file__).resolve().parent / "peers" / "llama_decode.mjs"
SERVE = """
import json, sys
from pathlib import Path
from localsft.benchmark import decoding_rates
from localsft.answer import NO_ADAPTER
from localsft.config import OptimConfig
from localsft.engine import open_engine
from localsft.weights.load import load_base
model, threads, tokens, rounds = sys.argv[1], *map(int, sys.argv[2:5])
base = load_base(Path(model))
engine = open_engine("cpu", base, NO_ADAPTER, OptimConfig(), threads=threads)
rates = {n: decoding_rates(engine, n, base.config.vocab_size, tokens, rounds) for n in (1, 16)}
print(json.dumps({"isa": engine.info.isa, "one": rates[1], "sixteen": rates[16]}))
"""


def run(command: list[str], folder: Path | None = None) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--node-folder", type=Path)
    for name, default in {"threads": 2, "tokens": 64, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    model, numbers = str(a.model.resolve()), [str(a.threads), str(a.tokens)]
    one, sixteen, theirs, isa = [], [], [], ""
    for _ in range(a.rounds):
        ours = run([sys.executable, "-c", SERVE, model, *numbers, "1"])
        isa = ours["isa"]
        one += ours["one"]
        sixteen += ours["sixteen"]
        if a.node_folder:
            theirs += run(["node", str(PEER), model, *numbers, "1"], a.node_folder)["rates"]
    report: dict[str, Any] = {
        "settings": {key: str(value) for key, value in vars(a).items()},
        "isa": isa,
        "one": statistics.median(one),
        "sixteen": statistics.median(sixteen),
        "sixteen_to_one": statistics.median(x / y for x, y in zip(sixteen, one, strict=True)),
    }
    if theirs:
        report["llama_cpp"] = statistics.median(theirs)
        report["ratio"] = statistics.median(x / y for x, y in zip(one, theirs, strict=True))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
