"""Certified intervals of the beam for every budget: the truth is inside, and no width grows with the budget."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.beam.test_search import MODES, finite_cases, targets_of
from tests.support.beams import score
from tests.support.pairs import STUDENT, cases, random_pair, stored
from tests.support.vocabularies import EFFORT

BUDGETS = (0.0, 0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize("mode", MODES)
def test_every_interval_holds_the_truth(mode: str, tmp_path: Path, record_property: Callable[[str, object], None]):
    """For budgets 0 to 4, few tokens of each row kept by themselves: |stored - truth| <= err for every token, total
    variation <= err, and err of each position falls or stays when the budget grows (what a smaller budget pays for, a
    larger one pays for, too). Where contexts were pruned the truth over the tree is one of those that err must hold."""
    rng = random.Random(f"bounds {mode}")
    proved = rows_seen = 0
    distance, width = {b: 0.0 for b in BUDGETS}, {b: 0.0 for b in BUDGETS}
    for case in finite_cases(rng, tmp_path, 18 * EFFORT, mode):
        found = targets_of(case)
        if found is None:
            continue
        proved += 1
        tolerance, top, least = rng.choice((0.0, 1e-3, 0.02)), rng.choice((2, 4, 1000)), rng.choice((0.0, 1e-4, 1e-2))
        before = np.ones(len(found))
        for budget in BUDGETS:
            made = score(case.pair, [case.doc], case.table, budget=budget, tolerance=tolerance, top=top, least=least)
            rows = made.rows[STUDENT]
            assert made.spent[0] <= budget * len(found)
            for k, (mass, _) in enumerate(found):
                where, total = f"{case} k {k} budget {budget}", float(mass.sum())
                if total == 0:
                    assert not rows.scored[k] or rows.err[k] > 1 - 1e-9, where
                    continue
                if not rows.scored[k]:  # all open leaves close to nothing
                    assert rows.err[k] == 1, where
                    continue
                q, p, err = stored(rows, k, case.pair.student.size), mass / total, float(rows.err[k])
                variation = float(abs(q - p).sum() / 2)
                assert abs(q - p).max() <= err + 1e-9 and variation <= err + 1e-9, where
                assert err <= before[k] + 1e-9, where
                before[k] = err
                distance[budget] += variation
                width[budget] += err
                rows_seen += budget == 0
    figures = {b: (round(distance[b] / rows_seen, 5), round(width[b] / rows_seen, 5)) for b in BUDGETS}
    record_property("budget -> mean total variation to the truth, mean width", figures)
    print(f"{mode}: {proved} documents, {rows_seen} rows; budget -> mean total variation, mean width: {figures}")
    assert proved >= 9 * EFFORT and rows_seen > 45 * EFFORT
    assert width[4.0] < 0.5 * width[0.0]


def test_a_larger_budget_pays_for_all_that_a_smaller_one_does(tmp_path: Path):
    """Longer documents: the contexts scored are nested, no position gets wider, and no budget is overspent."""
    grown = 0
    for case in cases(random.Random(31), tmp_path, 10 * EFFORT, random_pair, masked=0.0, longest=40):
        asked: set[tuple[int, ...]] = set()
        before, n = np.ones(len(case.doc.views[STUDENT].ids)), len(case.doc.views[STUDENT].ids)
        for budget in (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0):
            made = score(case.pair, [case.doc], case.table, budget=budget, tolerance=0.01)
            assert made.spent[0] <= budget * n
            assert asked <= set(made.asked), (str(case), budget)
            rows = made.rows[STUDENT]
            assert (rows.err <= before + 1e-12)[rows.scored].all(), (str(case), budget)
            grown += len(made.asked) > len(asked) > 0
            asked, before = set(made.asked), np.where(rows.scored, rows.err, 1.0)
    assert grown > 20 * EFFORT
