"""The pool: every task of every run is done once and before the run returns, whoever comes too late to help."""

from __future__ import annotations

import threading

import numpy as np

from localsft import _core


def test_more_threads_than_cores_lose_and_repeat_nothing() -> None:
    """Thousands of short runs, of which most are over before the system lets every worker begin. An addition that was done twice, or not
    yet, shows in the sum."""
    ctx = _core.Context("baseline", 16)
    rows, out = np.arange(64, dtype=np.int32), np.zeros((64, 1024), np.float32)
    x = np.ones((64, 1024), np.float32)
    for run in range(1, 3001):
        _core.scatter_add_rows(ctx, x, rows, out)
        if run % 100 == 0:
            assert (out == run).all(), run


def test_pools_of_several_owners_do_not_meet() -> None:
    """Two contexts at work at the same time, each with its own pool."""
    sums: list[np.ndarray] = []

    def work() -> None:
        ctx = _core.Context("baseline", 4)
        out = np.zeros((64, 1024), np.float32)
        for _ in range(500):
            _core.scatter_add_rows(ctx, np.ones((64, 1024), np.float32), np.arange(64, dtype=np.int32), out)
        sums.append(out)

    owners = [threading.Thread(target=work) for _ in range(2)]
    for owner in owners:
        owner.start()
    for owner in owners:
        owner.join()
    assert len(sums) == 2 and all((out == 500).all() for out in sums)
