"""Commands that several machines carry out together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localsft.engine.distributed import Team


@contextmanager
def joined_team() -> Iterator[Team]:
    """The team that this process was launched into. What all ranks would say, only rank 0 says; errors come from each."""
    from localsft.engine.distributed import join_team

    team = join_team()
    if team.rank == 0:
        yield team
        return
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        yield team
