"""Values hang on the document alone: not on its group, the batches, the order of units, or near ties of the beam."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.determinism import ASSETS, BOUND_NATS, demo_documents, demo_scorer, gaps, score
from engine.beam.frontier import Frontier, OpenLeaf, Spending
from engine.scoring.scorer import Scorer
from tests.support.runs import write_subset

COUNT = 6


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """All regimes at once: own, same, subset, bytes, beam."""
    subset = write_subset(tmp_path_factory.mktemp("subset") / "subset")
    students = {"sp": ASSETS / "student_sp", "bl": ASSETS / "student_bl", "same": ASSETS / "teacher", "sub": subset}
    return demo_scorer(students=students, bytes=True, teacher_stats=True, hidden=True)


@pytest.fixture(scope="module")
def whole(ready: Scorer) -> dict[str, pa.Table]:
    return score(ready, demo_documents(COUNT), COUNT)


def with_batches(scorer: Scorer, batch_tokens: int) -> None:
    """The same scorer with another operational setting: the weights and rules need not be loaded again."""
    teacher = scorer.stages.run.teacher.model_copy(update={"batch_tokens": batch_tokens})
    scorer.stages = dataclasses.replace(scorer.stages, run=scorer.stages.run.model_copy(update={"teacher": teacher}))


@pytest.mark.parametrize(
    ("group", "batch_tokens", "backwards"), [(1, 8192, False), (5, 64, True)], ids=["alone", "small batches, backwards"]
)
def test_grouping_batches_and_order_change_nothing_beyond_rounding(
    ready: Scorer, whole: dict[str, pa.Table], group: int, batch_tokens: int, backwards: bool
) -> None:
    with_batches(ready, batch_tokens)
    again = score(ready, demo_documents(COUNT), group, backwards=backwards)
    with_batches(ready, 8192)
    assert {ready.stages.regimes[p] for p in ready.stages.students} == {"beam", "same", "subset"} and {
        "bytes",
        "hidden",
    } <= set(again)
    for product, table in again.items():
        for name, gap in gaps(whole[product], table).items():
            # a state is rounded to 8 bits of mantissa: a last bit may fall either way
            bound = 2.0**-4 if name == "hidden" else BOUND_NATS
            assert gap.max(initial=0) <= bound, (product, name, int(gap.argmax()), float(gap.max()))


def test_the_comparison_sees_what_it_should(ready: Scorer, whole: dict[str, pa.Table]) -> None:
    """A teacher that is off by 1e-3 nats is off in every product: the test above could fail."""
    plain = ready.stages.teacher
    shift = torch.linspace(-1e-3, 1e-3, plain.vocab_rows)
    ready.stages = dataclasses.replace(
        ready.stages, teacher=dataclasses.replace(plain, _logits=lambda hidden: plain.logits(hidden) + shift)
    )
    again = score(ready, demo_documents(COUNT), COUNT)
    ready.stages = dataclasses.replace(ready.stages, teacher=plain)
    for product, table in again.items():
        found = gaps(whole[product], table)
        assert product == "hidden" or found["topk_logps"].max() > 10 * BOUND_NATS


def test_draws_are_the_same_but_on_a_border() -> None:
    """Codec sample: hangs on seed, student, document and row. A probability that moves by 1e-6 can move the one draw that
    falls on a border of two tokens: of 50 draws at each position, hardly ever."""
    scorer = demo_scorer(codec="sample", teacher=False)
    documents = demo_documents(COUNT)
    first, again = score(scorer, documents, COUNT), score(scorer, documents, 1, backwards=True)
    for product, table in first.items():
        sizes = [np.array(t["sample_sizes"].combine_chunks().flatten()) for t in (table, again[product])]
        ids = [np.array(t["sample_ids"].combine_chunks().flatten()) for t in (table, again[product])]
        assert np.mean(sizes[0] != sizes[1]) < 1e-3 and len(sizes[0]) > 250
        if len(ids[0]) == len(ids[1]):
            assert np.mean(ids[0] != ids[1]) < 1e-3


def frontier(leaves: list[OpenLeaf], boundaries: int) -> Frontier:
    """Open leaves without anything behind them: what `choose` needs."""
    made = Frontier.__new__(Frontier)
    made.leaves, made.spending = leaves, Spending(tolerance=0.02, per_token=6.0, least=1e-4)
    made.open = np.zeros(boundaries)
    for leaf in leaves:
        made.open[leaf.k] += leaf.mass
    made.nothing, made.budget_left, made.boundaries_with_mass = np.zeros(boundaries), 6.0 * boundaries, boundaries
    return made


@pytest.mark.parametrize("seed", range(20))
def test_near_ties_of_the_beam_fall_the_same_way(seed: int) -> None:
    """Leaves of equal mass, with the rounding of another batch and listed in another order: the same are chosen."""
    rng = np.random.default_rng(seed)
    leaves = [(k, token, float(rng.choice([0.31, 0.17, 0.05]))) for k in range(8) for token in range(4)]

    def chosen(noise: float, order: np.ndarray) -> list[tuple[int, int]]:
        items = [
            OpenLeaf(k, 10 + k, 10 + k, token, mass, mass * (1 + noise * rng.uniform(-1, 1)), bytes([token]))
            for k, token, mass in (leaves[i] for i in order)
        ]
        return [(leaf.k, leaf.token) for leaf in frontier(items, 8).choose(2, lambda leaf: True)]

    wanted = chosen(0.0, np.arange(len(leaves)))
    assert 0 < len(wanted) < len(leaves)
    for _ in range(5):
        assert chosen(1e-6, rng.permutation(len(leaves))) == wanted
