"""Several machines, or processes, that train one adapter together: each takes its share of every step's examples.

Gradients and target weights are summed over the team before the optimizer, so N ranks take the steps that one machine would, up
to rounding. What carries the sums is MLX's distributed package (TCP rings, MPI, RDMA over Thunderbolt), whichever engine computes;
``mlx.launch`` or ``mpirun`` starts the processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsft.batch import Example
from localsft.engine.adapter import split_like
from localsft.engine.base import Engine
from localsft.errors import InputError, LocalsftError, MissingPart

# What mlx.launch and the usual MPI launchers tell a process of a team.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


class TeamLost(LocalsftError):
    """Another rank has gone; nothing can be summed any more."""


def _mine_alone(values: NDArray[Any]) -> NDArray[Any]:
    return values


@dataclass(frozen=True, slots=True)
class Team:
    """Who computes; ``ALONE`` is one machine by itself. ``sum``: a flat float32 or float64 array -> its sum over the ranks, the
    same bits on each; ``gather``: a row of bytes -> (size, n). Both raise TeamLost when a rank has gone."""

    rank: int = 0
    size: int = 1
    sum: Callable[[NDArray[Any]], NDArray[Any]] = _mine_alone
    gather: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = np.atleast_2d

    def share(self, examples: Sequence[Example]) -> list[Example]:
        """This rank's part: the longest example goes to the rank with the fewest tokens so far, and so on; in their order."""
        if self.size == 1:
            return list(examples)
        tokens = np.zeros(self.size, np.int64)
        mine: list[int] = []
        for i in sorted(range(len(examples)), key=lambda i: -len(examples[i].token_ids)):
            rank = int(tokens.argmin())
            tokens[rank] += len(examples[i].token_ids)
            if rank == self.rank:
                mine.append(i)
        return [examples[i] for i in sorted(mine)]

    def total(self, *values: float) -> list[float]:
        """Each value summed over the team, in float64."""
        return [float(value) for value in self.sum(np.array(values, np.float64))]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return self.total(float(flag))[0] > 0

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Raises InputError, on every rank, where a rank has another fact than rank 0: other data, another base, other settings."""
        digests = b"".join(hashlib.sha256(fact.encode()).digest() for fact in facts.values())
        rows = self.gather(np.frombuffer(digests, np.uint8)).reshape(self.size, len(facts), -1)
        for rank in range(1, self.size):
            for name, mine, first in zip(facts, rows[rank], rows[0], strict=True):
                if not np.array_equal(mine, first):
                    raise InputError(f"rank {rank} of {self.size} has another {name} than rank 0; give every machine the same")

    def follow_rank_0(self, engine: Engine) -> None:
        """Give every rank the adapter and the optimizer state of rank 0."""
        if self.size == 1:
            return
        adapter, state = engine.adapter(), engine.optimizer_state()
        adapter, state = self._from_rank_0(adapter), self._from_rank_0(state)
        engine.load_adapter(adapter)
        engine.load_optimizer_state(state)

    def _from_rank_0(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = sorted(tensors)
        flat = np.concatenate([np.asarray(tensors[name], np.float32).ravel() for name in names])
        flat = self.sum(flat if self.rank == 0 else np.zeros_like(flat))
        return dict(zip(names, split_like(flat, [np.asarray(tensors[name]) for name in names]), strict=True))


ALONE = Team()


def join_team(environment: Mapping[str, str] | None = None) -> Team:
    """The team that this process was launched into; by itself where it was not.

    Raises MissingPart where the process is one of several but MLX is not installed, LocalsftError where the others can't be reached.
    """
    environment = os.environ if environment is None else environment
    if not any(name in environment for name in _LAUNCHED):
        return ALONE
    if find_spec("mlx") is None:
        raise MissingPart("training on several machines needs MLX's distributed package on each of them: run pip install 'localsft[mlx]'")
    import mlx.core as mx

    try:
        group = mx.distributed.init(strict=False)
    except RuntimeError as error:
        raise LocalsftError(
            f"the other machines can't be reached ({error}); check the hostfile and that they can see each other"
        ) from error
    if group.size() == 1:
        return ALONE

    def over_the_wire(operation: Callable[..., Any], values: NDArray[Any]) -> NDArray[Any]:
        try:
            with mx.stream(mx.cpu):
                result = operation(mx.array(values, _dtype(values)), group=group)
                mx.eval(result)
                return np.array(result)
        except RuntimeError as error:
            raise TeamLost(f"rank {group.rank()} of {group.size()} has lost another machine of its team ({error})") from error

    def _dtype(values: NDArray[Any]) -> Any:
        return {"float32": mx.float32, "float64": mx.float64, "uint8": mx.uint8}[values.dtype.name]

    return Team(
        group.rank(),
        group.size(),
        lambda values: over_the_wire(mx.distributed.all_sum, values),
        lambda row: over_the_wire(mx.distributed.all_gather, row[None]),
    )
