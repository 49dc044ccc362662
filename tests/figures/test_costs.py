"""The same text costs the same: exactly where the mathematics says so, and a difference is found where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.figures import collect, open_published
from engine.figures.costs import CostOfDocument, add_cost, difference_of
from tests.support.runs import score_here, write_run, write_subset


def test_exact_products_agree(tmp_path: Path) -> None:
    """canonical-masked, nothing pruned: teacher, subset and bytes are the same number (docs/format.md, Regimes)."""
    run_file = write_run(
        tmp_path,
        students={"sub": write_subset(tmp_path / "subset")},
        targets='top_k = 16\nbytes = true\nsemantics = "canonical-masked"',
    )
    figures = collect(open_published(score_here(run_file)))
    assert {one.product for one in figures.differences} == {"student/sub", "bytes"}
    for one in figures.differences:
        assert (one.against, one.documents, one.left_out, one.finding) == ("teacher", 5, 0, False)
        assert one.difference_bits_per_byte == pytest.approx(0, abs=2e-3)  # rounding of stored logarithms
        assert all(abs(apart) < 5e-3 for _, _, apart in one.largest)


def test_a_beam_that_settles_all_agrees(tmp_path: Path) -> None:
    """Its excluded mass has no token boundary at the row, and costs the text nothing: the row before gave it to other tokens."""
    targets = 'top_k = 16\nsemantics = "canonical-masked"\ntolerance = 0.0\nmax_nodes_per_token = 6'
    figures = collect(open_published(score_here(write_run(tmp_path, targets=targets))))
    assert {one.product for one in figures.differences} == {"student/bl", "student/sp"}
    for one in figures.differences:
        made = figures.products[one.product]
        assert made.facts.regime == "beam" and made.mean_excluded_mass is not None and made.mean_excluded_mass > 0.05
        assert one.difference_bits_per_byte == pytest.approx(0, abs=2e-3)  # rounding of stored logarithms


def costs(bits: float, count: int = 4) -> dict[int, CostOfDocument]:
    return {row: CostOfDocument(f"d{row}", bits, 10, 0, (0, 40, 40, 1)) for row in range(count)}


@pytest.mark.parametrize(("bits", "finding"), [(40.0, False), (41.5, False), (42.5, True), (37.0, True)])
def test_a_difference_is_found(bits: float, finding: bool) -> None:
    made = difference_of("student/x", costs(bits), "teacher", costs(40))
    assert made.finding is finding and made.documents == 4
    assert made.difference_bits_per_byte == pytest.approx((bits - 40) / 40)


def test_only_the_same_text_is_compared() -> None:
    ours, theirs = costs(40), costs(80)
    ours[0] = replace(ours[0], scored=(1, 40, 39, 1))  # the first token is given
    ours[1] = replace(ours[1], impossible=1)
    del ours[3]
    made = difference_of("student/x", ours, "teacher", theirs)
    assert (made.documents, made.left_out, made.text_bytes) == (1, 2, 40)
    assert made.largest == ((2, "d2", -1.0),)
    none = difference_of("student/x", {}, "teacher", theirs)
    assert none.difference_bits_per_byte is None and not none.finding


def test_sums() -> None:
    made = add_cost(costs(40).values())
    assert made is not None and (made.bits, made.text_bytes, made.bits_per_byte, made.tokens_per_byte) == (
        160,
        160,
        1,
        0.25,
    )
    assert add_cost([]) is None
