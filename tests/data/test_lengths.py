"""Lengths of answers: the same figures and places as from a list of all of them, in memory that does not grow with rows."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from localsft.data.check.finding import SHOWN
from localsft.data.check.lengths import OUTLIER_LENGTH, AnswerLengths


def lengths_of(values: Sequence[int], first: int = 1) -> AnswerLengths:
    """Answers of these lengths, one a line from line ``first`` on."""
    lengths = AnswerLengths()
    for line, value in enumerate(values, first):
        lengths.add(value, line, f"f:{line}")
    return lengths


some = st.lists(st.integers(0, 30).map(lambda i: i * 40), max_size=80)


@given(some, some, st.integers(OUTLIER_LENGTH, 1300))
def test_they_are_those_of_the_list(one: list[int], other: list[int], limit: int) -> None:
    lengths = lengths_of(one)
    lengths.merge(lengths_of(other, len(one) + 1))
    values = one + other
    assert lengths.rows == len(values)
    for percent in (5, 50, 95):
        expected = np.percentile(values or [0], percent, method="inverted_cdf")
        assert lengths.percentile(percent) == expected
    long = [f"f:{line}: {value:,} characters" for line, value in enumerate(values, 1) if value > limit]
    findings = list(lengths.findings(limit))
    assert [(finding.count, finding.lines) for finding in findings] == ([(len(long), tuple(long[:SHOWN]))] if long else [])


def test_memory_does_not_grow_with_rows() -> None:
    values = [400 + i % 50 for i in range(1000)]
    few, many = lengths_of(values), lengths_of(values * 20)
    assert len(pickle.dumps(many)) < 1.05 * len(pickle.dumps(few))
