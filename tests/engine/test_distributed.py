"""Several processes on this machine as a team: the single machine's losses, rank 0 writes, a lost rank ends the run in order."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localsft.batch import Example
from localsft.engine.distributed import ALONE, Team, join_team
from localsft.errors import InputError

pytest.importorskip("mlx.core", reason="MLX carries the sums of a team")
MEMBER = Path(__file__).parent / "team_member.py"


def launch(size: int, engine: str, folder: Path, *arguments: str) -> list[tuple[int, str]]:
    """(exit code, stderr) of each rank."""
    sockets = [socket.socket() for _ in range(size)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]))
    for each in sockets:
        each.close()
    # float32 activations, so that other packing differs by rounding in float32 only.
    environment = {**os.environ, "LOCALSFT_ISA": "baseline", "MLX_HOSTFILE": str(hosts), "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(MEMBER), engine, str(folder), *arguments],
            env=environment | {"MLX_RANK": str(rank)} if size > 1 else environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    return [(rank.wait(timeout=240), rank.communicate()[1]) for rank in ranks]


def results(size: int, folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module", params=["cpu", pytest.param("mlx", marks=pytest.mark.slow)])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    assert launch(1, request.param, folder) == [(0, "")]
    return request.param, results(1, folder)[0]


@pytest.mark.parametrize("size", [2, 4])
def test_a_team_takes_the_single_machines_steps(alone: tuple[str, dict[str, Any]], size: int, tmp_path: Path) -> None:
    """Also with fewer examples than ranks in the last step of an epoch (17 by 5), and fewer in the validation set."""
    engine, expected = alone
    assert all(code == 0 for code, _ in launch(size, engine, tmp_path))
    ranks = results(size, tmp_path)
    for seen in ranks:
        assert seen["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert seen["norms"] == pytest.approx(expected["norms"], rel=1e-4)
        assert seen["valid"] == pytest.approx(expected["valid"], rel=1e-5)
        assert seen["adapter"] == ranks[0]["adapter"]
    assert np.abs(np.array(ranks[0]["adapter"]) - np.array(expected["adapter"])).max() < 1e-4  # a hundredth of one step of Adam
    assert sorted(path.name for path in (tmp_path / "run-0").iterdir()) == ["adapter", "checkpoints", "metrics.jsonl"]
    assert not any((tmp_path / "run-1").iterdir())


@pytest.mark.parametrize("size", [2, 4])
def test_a_lost_rank_ends_the_run_with_a_checkpoint(size: int, tmp_path: Path) -> None:
    *others, (died, _) = launch(size, "cpu", tmp_path, "3")
    assert died == 9
    for code, message in others:
        assert code == 1
        assert "TeamLost" in message and "step 3 is saved in" in message and "localsft resume" in message
    assert (tmp_path / "run-0" / "checkpoints" / "step-0000003" / "manifest.json").is_file()


def test_shares_are_even_and_whole() -> None:
    lengths = [5, 90, 3, 40, 41, 7, 60, 2]
    every = [Example(np.full(n, i, np.int32), np.ones(n, np.float32)) for i, n in enumerate(lengths)]
    shares = [Team(rank, 3).share(every) for rank in range(3)]
    assert sorted(int(example.token_ids[0]) for share in shares for example in share) == list(range(8))
    tokens = [sum(len(example.token_ids) for example in share) for share in shares]
    assert max(tokens) == 90  # one example alone; no split is better
    assert ALONE.share(every) == every
    assert [int(example.token_ids[0]) for example in shares[0]] == sorted(int(example.token_ids[0]) for example in shares[0])


def test_ranks_that_were_given_different_things_are_told() -> None:
    rows: list[Any] = []

    def team(rank: int) -> Team:
        return Team(rank, 2, gather=lambda row: np.stack(rows) if len(rows) == 2 else rows.append(row) or np.stack([row, row]))

    team(0).check_same({"base model": "a", "configuration": "x"})
    team(1).check_same({"base model": "a", "configuration": "y"})
    with pytest.raises(InputError, match="rank 1 of 2 has another configuration than rank 0"):
        team(0).check_same({"base model": "a", "configuration": "x"})


def test_a_process_by_itself_is_no_team() -> None:
    assert join_team({}) is ALONE
