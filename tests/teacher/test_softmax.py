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
        assert found.tolist() == pytest.approx([math.fsum(row) for row in x_RV[:, :size].tolist()], rel=SLACK / 2)
        exact = row_sums(x_RV[:, :size].double())
        assert exact.tolist() == pytest.approx([math.fsum(row) for row in x_RV[:, :size].tolist()], rel=1e-13)


def test_a_sharp_distribution_of_a_large_vocabulary_sums_to_one() -> None:
    """What a teacher gives that was trained on the task: a sum of 152,000 float32 terms was 1e-6 off, which is all the slack
    that the identities have."""
    x_RV = torch.randn((64, QWEN), generator=torch.Generator().manual_seed(1)) * 3
    x_RV[:, 7] = 25.0
    e_RV = (x_RV - x_RV.amax(1, keepdim=True)).exp()
    prob_RV = e_RV * (1 / row_sums(e_RV)).float()[:, None]
    assert (prob_RV.double().sum(1) - 1).abs().max() < SLACK / 3


def test_what_is_no_number_stays_so() -> None:
    for at in (0, 70):  # among the blocks and behind them
        x_RV = torch.ones((2, 71))
        x_RV[1, at] = math.nan
        assert row_sums(x_RV).isnan().tolist() == [False, True]
