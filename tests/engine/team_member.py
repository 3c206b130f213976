"""One rank of a team, for test_distributed: trains the tiny golden llama and writes what it saw.

python team_member.py ENGINE FOLDER [die-at-step] [valid]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from localsft.batch import Example
from localsft.checkpoint import BaseRef
from localsft.config import resolve
from localsft.engine import open_engine
from localsft.engine.distributed import join_team
from localsft.errors import LocalsftError
from localsft.runs import Run
from localsft.train import Step, Trainer, Validated
from localsft.weights.load import load_base

GOLDENS = Path(__file__).parents[1] / "goldens"


def examples(count: int) -> list[Example]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        n = int(random.integers(6, 24))
        made.append(Example(random.integers(0, 211, n).astype(np.int32), (np.arange(n) > 3).astype(np.float32) * 0.5))
    return made


def main() -> None:
    engine_name, folder = sys.argv[1], Path(sys.argv[2])
    die_at = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    team = join_team()
    config = resolve({"steps": 6, "batch_size": 5, "lora.rank": 4, "optim.learning_rate": 0.01, "save_every": 2, "eval_every": 3})
    base = load_base(GOLDENS / "tiny_tied")
    engine = open_engine(engine_name, base, config.lora, config.optim, seed=team.rank, threads=1)  # rank 0's adapter is the start
    run = folder / f"run-{team.rank}"
    run.mkdir()
    trainer = Trainer(engine, config, examples(17), examples(3), Run(run), BaseRef("tiny", base.hash, 3), team=team)
    seen: dict[str, list[float]] = {"losses": [], "norms": [], "valid": [], "computed": []}
    try:
        for event in trainer.events():
            if isinstance(event, Step):
                seen["losses"].append(event.loss)
                seen["norms"].append(event.grad_norm)
                seen["computed"].append(event.computed)
                if event.step == die_at and team.rank == team.size - 1:
                    os._exit(9)
            elif isinstance(event, Validated):
                seen["valid"].append(event.score.loss)
    except LocalsftError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    adapter = np.concatenate([value.ravel() for value in engine.adapter().values()])
    (folder / f"rank-{team.rank}.json").write_text(json.dumps(seen | {"adapter": adapter.tolist()}))


if __name__ == "__main__":
    main()
