"""Draws against their definition: the inverse of the distribution function, counts, no bias, nothing but the key."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus.document import Document
from engine.dataset.invariants import check_rows
from engine.dataset.parquet import flat
from engine.targets.positions import TopK
from engine.targets.sampling import Sample, counted, key_of, row_keys, uniforms
from schemas.errors import IdentityError
from schemas.target import PAD_ID, row_schema
from tests.scoring.test_scorer import ASSETS, PLAIN, scorer
from tests.support.runs import score_here, write_run
from tests.support.tables import facts_of

MASK = 2**64 - 1


def splitmix(state: int) -> int:
    """The finaliser of SplitMix64 in plain integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


@given(st.integers(0, MASK), st.integers(1, 20))
def test_uniforms_are_splitmix64(key: int, n: int) -> None:
    wanted = [(splitmix((key + i * 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53 for i in range(1, n + 1)]
    assert uniforms(np.array([key], np.uint64), n)[0].tolist() == wanted


def test_uniforms_are_uniform_and_independent_between_rows() -> None:
    u = uniforms(row_keys(key_of(0, 1, 2, 3), 4000), 50)
    assert 0 <= u.min() and u.max() < 1
    share = np.histogram(u, 100, (0, 1))[0] / u.size
    assert abs(share - 0.01).max() < 6 * np.sqrt(0.01 / u.size)
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.01
    other = uniforms(row_keys(key_of(1, 1, 2, 3), 4000), 50)
    assert not np.intersect1d(u, other).size


@given(st.lists(st.lists(st.integers(0, 9), min_size=7, max_size=7), min_size=1, max_size=6))
def test_counted_is_a_histogram(drawn: list[list[int]]) -> None:
    ids, counts = counted(np.array(drawn))
    for row, found, count in zip(drawn, ids.tolist(), counts.tolist(), strict=True):
        wanted = sorted((-row.count(x), x) for x in set(row))
        assert found == [x for _, x in wanted] + [PAD_ID] * (7 - len(wanted))
        assert count == [-n for n, _ in wanted] + [0] * (7 - len(wanted))


def sampled(mass: np.ndarray, keys: np.ndarray, n: int, ids: np.ndarray | None = None) -> Sample:
    rows = Sample([np.zeros(len(mass), np.int64)], n, keys)
    rows.write("student/x", np.arange(len(mass)), torch.from_numpy(mass), mass.sum(1, dtype=np.float64), ids)
    return rows


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.booleans())
def test_draws_are_the_inverse_of_the_distribution_function(seed: int, some: bool) -> None:
    rng = np.random.default_rng(seed)
    mass = rng.exponential(size=(5, 11)) * (rng.random((5, 11)) < 0.6) + np.eye(5, 11)
    ids = np.sort(rng.choice(300_000, 11, replace=False)) if some else None
    keys, n = row_keys(key_of(seed), 5), 20
    rows = sampled(mass, keys, n, ids)
    for at, u in enumerate(uniforms(keys, n)):
        drawn = []
        for x in u:
            below = 0.0
            for token, weight in enumerate(mass[at]):
                below += weight
                if below > x * mass[at].sum():
                    drawn.append(token)
                    break
        names = np.arange(11) if ids is None else ids
        found = dict(zip(rows.ids[at].tolist(), rows.counts[at].tolist(), strict=True))
        found.pop(PAD_ID, None)
        assert found == {int(names[t]): drawn.count(t) for t in set(drawn)}
        covered = sum(mass[at][t] for t in set(drawn)) / mass[at].sum()
        assert rows.stored_mass[at] == pytest.approx(covered, abs=1e-12)


def test_the_expectation_is_the_distribution() -> None:
    rng = np.random.default_rng(0)
    p = rng.exponential(size=40) ** 3
    p /= p.sum()
    rows = sampled(np.tile(p, (40_000, 1)), row_keys(key_of(5), 40_000), 50)
    mean = np.zeros(40)
    np.add.at(mean, rows.ids[rows.counts > 0], rows.counts[rows.counts > 0] / 50 / 40_000)
    assert (np.abs(mean - p) <= 5 * np.sqrt(p * (1 - p) / 2e6) + 1e-9).all()
    unique = (rows.counts > 0).sum(1).mean()
    assert unique == pytest.approx((1 - (1 - p) ** 50).sum(), rel=0.01)


def test_ids_beyond_17_bits_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 262_144
    mass = np.full((6, size), 1e-9, np.float32)
    mass[np.arange(6), size - 1 - np.arange(6)] = 1.0
    keys = row_keys(key_of(3), 6)
    whole = sampled(mass, keys, 50)
    assert whole.ids[:, 0].tolist() == [size - 1 - i for i in range(6)]
    monkeypatch.setattr("engine.teacher.group.CELLS_AT_ONCE", size)
    np.testing.assert_array_equal(sampled(mass, keys, 50).ids, whole.ids)


@pytest.mark.parametrize("wrong", [np.nan, 0.7])
def test_a_total_that_is_not_the_sum_is_refused(wrong: float) -> None:
    rows = Sample([np.zeros(1, np.int64)], 5, row_keys(key_of(0), 1))
    mass = torch.tensor([[0.5, 0.25, 0.25]]) if wrong == 0.7 else torch.tensor([[0.5, wrong, 0.25]])
    with pytest.raises(IdentityError, match="student/x"):
        rows.write("student/x", np.array([0]), mass, np.array([wrong]))


def documents(texts: tuple[str, ...]) -> list[Document]:
    return [Document(f"d{i}", i, text, "corpus.jsonl", f"line {i + 1}") for i, text in enumerate(texts)]


def test_a_position_has_the_same_draws_in_any_company() -> None:
    students = {"sp": ASSETS / "student_sp", "same": ASSETS / "teacher"}
    made = scorer(ASSETS / "teacher", students, codec="sample", draws=30, seed=9, max_nodes_per_token=1.0)
    docs = documents(PLAIN)
    together = made.score_unit(docs)
    again = made.score_unit(docs[::-1])
    for product in ("student/sp", "student/same"):
        table = together.products[product]
        assert table.schema.equals(row_schema("sample"))
        facts = facts_of(0, made.stages.students[product].size, codec="sample", draws=30)
        check_rows(table, facts, where=product)
        by_name = {row["doc_id"]: row for row in again.products[product].to_pylist()}
        for row in table.to_pylist():
            assert row["sample_ids"] == by_name[row["doc_id"]]["sample_ids"]
            assert row["sample_counts"] == by_name[row["doc_id"]]["sample_counts"]
    top = scorer(ASSETS / "teacher", students, max_nodes_per_token=1.0).score_unit(docs)
    np.testing.assert_allclose(
        flat(together.products["student/sp"], "gold_logp"), flat(top.products["student/sp"], "gold_logp"), atol=1e-5
    )


@cache
def eight_draws() -> tuple[int, pa.Table]:
    """(size of the student's vocabulary, its rows)."""
    made = scorer(ASSETS / "teacher", {"bl": ASSETS / "student_bl"}, codec="sample", draws=8)
    table = made.score_unit(documents(("Anna has 3 apples.",))).products["student/bl"]
    return made.stages.students["student/bl"].size, table


@pytest.mark.parametrize(
    ("name", "at", "value", "says"),
    [
        ("sample_ids", 0, 600, "outside"),
        ("sample_ids", 0, PAD_ID, "outside"),
        ("sample_counts", 0, 3, "drawn, wanted 8"),
        ("scored", 0, False, "drawn, wanted 0"),
    ],
)
def test_broken_samples_are_found(name: str, at: int, value: int, says: str) -> None:
    size, table = eight_draws()
    facts = facts_of(0, 600, codec="sample", draws=8)
    facts = facts.model_copy(update={"vocab_size": size})
    check_rows(table, facts, where="here")
    column = table.column(name).combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).copy()
    values[at] = facts.vocab_size if value == 600 else value
    field = table.schema.field(name)
    rebuilt = pa.ListArray.from_arrays(column.offsets, pa.array(values), type=field.type)
    with pytest.raises(IdentityError, match=says):
        check_rows(table.set_column(table.schema.get_field_index(name), field, rebuilt), facts, where="here")


def test_a_run_of_draws_from_the_run_file(tmp_path) -> None:
    out = score_here(write_run(tmp_path, targets='codec = "sample"\ndraws = 50'))
    for file in sorted((out / "data/student/bl").glob("*.parquet")):
        meta = pq.read_metadata(file).metadata or {}
        assert (meta[b"targetsmith.codec"], meta[b"targetsmith.draws"]) == (b"sample", b"50")
        row = pq.read_table(file).to_pylist()[0]
        assert sum(row["sample_sizes"]) == len(row["sample_ids"])
        assert sum(row["sample_counts"]) == 50 * sum(row["scored"])


def test_top_k_of_the_same_masses_agrees_in_gold() -> None:
    mass = np.random.default_rng(1).exponential(size=(7, 30))
    gold = [np.arange(7)]
    a, b = TopK(gold, 4), Sample(gold, 10, row_keys(key_of(1), 7))
    for rows in (a, b):
        rows.write("p", np.arange(7), torch.from_numpy(mass), mass.sum(1))
    np.testing.assert_array_equal(a.gold_logp, b.gold_logp)
