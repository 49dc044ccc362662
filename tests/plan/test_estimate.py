"""The arithmetic of a plan: which documents are tried, and how what was seen of them is carried over to the whole."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from engine.plan.estimate import PEAK_TFLOPS, Cluster, OtherBytes, Trial, estimate, trial_rows, worked_out_rate

STATS = {
    "text_bytes": 4000.0,
    "teacher_tokens": 1000.0,
    "teacher_evaluations": 1500.0,
    "student/s.positions": 1200.0,
    "student/s.scored": 1100.0,
    "student/s.stored_mass_sum": 990.0,
    "student/s.err_sum": 110.0,
    "student/s.open_mass_sum": 55.0,
    "beam.boundaries": 1000.0,
    "beam.expected_tv_sum": 2.0,
    **{f"beam.expected_tv_at_{budget}_sum": 20.0 / (1 + budget) for budget in (0, 1, 2)},
    **{f"beam.open_at_{budget}_sum": 300.0 / (1 + budget) for budget in (0, 1, 2)},
}
TRIAL = Trial(
    documents=10,
    refused={"too_long": 2},
    text_bytes=5000,
    stats=STATS,
    data_bytes={"student/s": 50_000},
    group_bytes={"student/s": 1_000},
    file_bytes={"student/s": 8_000},
    other=OtherBytes({"vocabularies": 290_000, "teacher's lm_head": 0}, 5_000),
    start_s=30.0,
    cold_s=20.0,
    cold_tokens=400,
    warm_s=12.0,
    warm_tokens=600,
    actors=2,
    device="a machine",
)
HERE = Cluster(actors=2)


def test_what_grows_with_the_text_is_carried_over_by_bytes() -> None:
    """100 documents of 60,000 bytes are twelve times the trial, a fifth of whose bytes are in quarantine."""
    found = estimate([64, 36], 60_000, {"student/s": "beam"}, TRIAL, HERE)
    assert (found.documents, found.teacher_tokens, found.quarantined) == (100, 12_000, {"too_long": 20})
    product = found.products["student/s"]
    assert product.positions == 14_400 and product.text_bytes_per_token == pytest.approx(4000 / 1200)
    assert product.bytes == 12 * 49_000 + 2 * 1_000 + 2 * 8_000  # two units of one row group each
    assert product.bytes_per_position == pytest.approx(product.bytes / 14_400)
    assert found.other_bytes == {"vocabularies": 290_000, "records of units": 10_000}, (
        "without what there is nothing of"
    )
    assert found.disk_bytes == product.bytes + 300_000
    assert (product.stored_mass, product.width, product.open_mass) == pytest.approx((0.9, 0.1, 0.05))
    assert found.evaluations_per_token == 1.5
    assert found.expected_tv == pytest.approx({"0": 0.02, "1": 0.01, "2": 0.02 / 3, "spent": 0.002})
    assert found.open_share == pytest.approx({"0": 0.3, "1": 0.15, "2": 0.1})


def test_time_is_start_and_cold_units_and_the_rest_at_the_warm_speed() -> None:
    """50 tokens/s of a warm actor; 400 tokens took 20 s cold, 12 s longer than warm, 6 s for each of two actors."""
    found = estimate([10] * 10, 60_000, {"student/s": "beam"}, TRIAL, HERE)
    assert found.tokens_per_s == 100.0
    assert found.hours == pytest.approx((30 + 6 + 12_000 / 100) / 3600)
    assert found.gpu_hours == 0 and found.price is None
    only_cold = replace(TRIAL, warm_s=0.0, warm_tokens=0)
    assert only_cold.tokens_per_s == 20.0 and only_cold.cold_extra_s == 0.0
    one_unit = estimate(
        [100], 60_000, {"student/s": "beam"}, TRIAL, Cluster(8, gpus=8.0, tokens_per_s=1000.0, price=2.0)
    )
    assert one_unit.actors == 1, "a unit is one actor's"
    assert one_unit.hours == pytest.approx((30 + 6 + 12) / 3600)
    assert one_unit.gpu_hours == pytest.approx(8 * (48 / 3600)) and one_unit.price == pytest.approx(16 * (48 / 3600))


def test_a_speed_that_is_not_known_gives_no_hours() -> None:
    still = replace(TRIAL, cold_s=0.0, cold_tokens=0, warm_s=0.0, warm_tokens=0)
    found = estimate([100], 60_000, {"student/s": "beam"}, still, Cluster(2, price=3.0))
    assert (found.hours, found.gpu_hours, found.price, found.how) == (None, None, None, "not known")


def test_nothing_scored_says_why() -> None:
    with pytest.raises(ValueError, match=r"none of 2 documents.*too_long"):
        estimate([10], 100, {}, replace(TRIAL, documents=2), HERE)


def test_the_slower_of_gpu_and_host_decides() -> None:
    large, how = worked_out_rate("h100", 1, 70_000_000_000, 1.0, 1)
    assert large == pytest.approx(0.35 * 989e12 / 140e9) and "the GPU holds it back" in how
    assert worked_out_rate("h100", 2, 70_000_000_000, 1.0, 1)[0] == pytest.approx(2 * large)
    small, how = worked_out_rate("h100", 1, 100_000_000, 1.0, 3)
    assert small == pytest.approx(1 / 225e-6) and "the host holds it back" in how
    assert worked_out_rate("a100", 1, 7_000_000_000, 2.0, 1)[0] < worked_out_rate("h100", 1, 7_000_000_000, 2.0, 1)[0]
    assert set(PEAK_TFLOPS) == {name.lower() for name in PEAK_TFLOPS}


def test_trial_rows_are_of_the_corpus() -> None:
    """In order, none twice, about as many as asked for, from units over the whole of it."""
    rng = random.Random(7)
    for _ in range(300):
        sizes = [rng.randint(1, 40) for _ in range(rng.randint(1, 30))]
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        documents, actors = rng.randint(1, 100), rng.randint(1, 4)
        rows = trial_rows(list(zip(firsts, sizes, strict=True)), documents, actors)
        assert rows == sorted(set(rows)) and 0 <= rows[0] and rows[-1] < sum(sizes)
        assert 1 <= len(rows) < documents + max(actors, max(sizes))
        units = {max(i for i, first in enumerate(firsts) if first <= row) for row in rows}
        assert len(units) >= min(len(sizes), actors, documents)
        assert all(firsts[unit] in rows for unit in units), "each from its beginning"
    assert trial_rows([(2 * i, 2) for i in range(5)], 99, 2) == list(range(10)), "all there is"
    assert trial_rows([], 10, 2) == [] == trial_rows([(0, 5)], 0, 2)
    assert trial_rows([(32 * i, 32) for i in range(7)], 64, 2) == [*range(32, 64), *range(160, 192)]
