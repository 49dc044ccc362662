"""Lists of columns that may not follow a token: what stands behind a list in memory is none of its entries."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from engine.push.split_kernels import holds
from tests.push.test_compiled_truth import Compiled
from tests.support.pairs import STUDENT, cases, random_pair
from tests.support.vocabularies import EFFORT


def test_a_column_is_looked_for_inside_its_list_only() -> None:
    rng = random.Random(0)
    for _ in range(300):
        columns = np.array([rng.randrange(9) for _ in range(12)], np.int32)
        begin = rng.randrange(13)
        end = rng.randint(begin, 12)
        columns[begin:end].sort()
        for column in range(9):
            found = holds(columns, np.int64(begin), np.int64(end), np.int64(column))
            assert found == (column in columns[begin:end].tolist()), (columns, begin, end, column)


@pytest.mark.parametrize("seed", range(1 * EFFORT))
def test_rows_do_not_hang_on_what_is_left_in_memory(seed: int, tmp_path: Path) -> None:
    """Widths of folded leaves did: an open share of up to .19 of a toy's boundary, .000012 of one seen in a run of the tests."""
    rng, made, compared = random.Random(f"sums {seed}"), None, 0
    for case in cases(rng, tmp_path, 24, random_pair):
        if made is None or made.pair is not case.pair:
            made = Compiled(case.pair, least=0.0)
        made.view(case.doc, case.text)
        work = made.push.workers.scratch(0, 64).work
        found = []
        for left in (-1, *range(len(made.push.store.pair.columns))):
            work.illegal[:], work.illegal_at[:], work.counts[0] = left, -1, 0
            found.append(case.pair.emit([case.doc], case.table, emitter=made.emitter)[STUDENT])
        for rows in found[1:]:
            np.testing.assert_array_equal(rows.err, found[0].err, err_msg=str(case))
            np.testing.assert_array_equal(rows.open_mass, found[0].open_mass, err_msg=str(case))
        compared += len(found) * int(found[0].scored.sum())
    assert compared > 500
