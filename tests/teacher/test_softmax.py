"""Sums of whole vocabularies: near enough for the identities, however sharp a distribution is."""

from __future__ import annotations

import math

import pytest
import torch

from engine.targets.positions import SLACK
from engine.teacher.softmax import row_sums

QWEN = 151_936


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 50_257, QWEN])
@pytest.mark.parametrize("tail", [1e-4, 4e-3, 0.3, 300.0])
def test_sums_are_those_of_single_terms(size: int, tail: float) -> None:
    """Rows with one large term anywhere and a tail of many that are small beside it. Twin: math.fsum."""
    random = torch.Generator().manual_seed(size)
    for columns in (size, size + 37):  # an lm_head may have more rows than there are tokens
        x_RV = torch.rand((3, columns), generator=random) * 2 * tail / size
        x_RV[torch.arange(3), torch.randint(size, (3,), generator=random)] = 1.0
        found = row_sums(x_RV[:, :size])
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx([math.fsum(row) for row in x_RV[:, :size].tolist()], rel=SLACK)
        exact = row_sums(x_RV[:, :size].double())
        assert exact.tolist() == pytest.approx([math.fsum(row) for row in x_RV[:, :size].tolist()], rel=1e-13)


@pytest.mark.parametrize("at", [0, 5, 70_000])
def test_what_is_lost_beside_a_large_term_is_bounded(at: int) -> None:
    """Terms just below half a unit in the last place of the largest: 15 of them at most are lost, 4.5e-7, in whatever order a
    machine adds. A float32 sum loses 8.5e-7 here, as it did with a teacher that was trained on its task."""
    x_RV = torch.full((1, QWEN), 2.9e-8)
    x_RV[0, at] = 1.0
    assert row_sums(x_RV).item() == pytest.approx(x_RV.double().sum().item(), rel=SLACK / 2)


def test_what_is_no_number_stays_so() -> None:
    for at in (0, 70):  # among the blocks and behind them
        x_RV = torch.ones((2, 71))
        x_RV[1, at] = math.nan
        assert row_sums(x_RV).isnan().tolist() == [False, True]
