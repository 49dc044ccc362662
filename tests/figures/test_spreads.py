"""Histograms hold every value once; what lies nowhere is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.figures.spreads import PROBABILITY_EDGES, bits_edges, count_edges, probability_edges, spread_of
from schemas.errors import IdentityError


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0, 1 + 1e-6), min_size=1, max_size=50))
def test_probabilities(values: list[float]) -> None:
    array = np.array(values)
    spread = spread_of(array, probability_edges(array))
    assert spread is not None and spread.count == len(values) == sum(spread.counts)
    for low, high, count in zip(spread.edges, spread.edges[1:], spread.counts, strict=False):
        last = high == spread.edges[-1]
        assert count == sum(low <= value < high or (last and value == high) for value in array.tolist())
    assert (
        spread.least <= spread.quantiles["p05"] <= spread.quantiles["p50"] <= spread.quantiles["p99"] <= spread.largest
    )
    assert all(value in array.tolist() for value in spread.quantiles.values())


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(-1e-7, 200), min_size=1, max_size=50))
def test_bits(values: list[float]) -> None:
    array = np.array(values)
    spread = spread_of(array, bits_edges(array))
    assert spread is not None and sum(spread.counts) == len(values)
    assert list(spread.edges) == sorted(set(spread.edges))


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 100), min_size=1, max_size=50))
def test_counts(values: list[int]) -> None:
    array = np.array(values, np.int32)
    spread = spread_of(array, count_edges(array))
    assert spread is not None and sum(spread.counts) == len(values)
    for n in range(min(16, len(spread.counts))):
        assert spread.counts[n] == values.count(n) or n == len(spread.counts) - 1


def test_nothing_is_no_spread() -> None:
    assert spread_of(np.empty(0, np.float32), PROBABILITY_EDGES) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 1.5])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(IdentityError, match="1 of 3 values"):
        spread_of(np.array([0.5, bad, 0.1]), PROBABILITY_EDGES)
