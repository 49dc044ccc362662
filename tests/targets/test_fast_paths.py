"""What is fast in the fast regime against its slow twin: the push-forward leaf by leaf, boundaries without memory, top-k over
all columns."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

import engine.alignment.boundaries
import engine.alignment.rules
import engine.targets.pushforward
from engine.alignment.boundaries import Aligner
from engine.targets.positions import TopK
from engine.targets.pushforward import Job, PushForward, StudentMass
from schemas.errors import BadDocument
from tests.support.pairs import STUDENT, cases, random_pair
from tests.support.toys import random_text
from tests.support.vocabularies import EFFORT


def push_slowly(push: PushForward, prob_RV: torch.Tensor, job: Job) -> tuple[np.ndarray, float, float, float]:
    """(q [Vs], excluded, open, decided) of one boundary, every leaf by itself."""
    mass, excluded, open_, decided = np.zeros(push.student_size), 0.0, 0.0, 0.0
    ends, others = push.end_ids.tolist(), push.other_ids.tolist()

    def add(value: float, first: int, is_open: bool) -> None:
        nonlocal excluded, open_, decided
        open_ += value * is_open
        if first < 0:
            excluded += value
        else:
            mass[first] += value
            decided += value * (not is_open)

    for row, weight, rule in job.leaves:
        tokens, first, undecided, _ = push.book.resolved(rule, job.boundary.last)
        for token, begun, is_open in zip(tokens.tolist(), first.tolist(), undecided.tolist(), strict=True):
            if token not in job.skip.get(row, ()):
                add(float(prob_RV[row, token]) * weight, begun, is_open)
    if job.extra is not None:
        for begun, value, is_open in zip(*(a.tolist() for a in job.extra), strict=True):
            add(value, begun, is_open)
    for row, weight in job.at:
        counts = job.boundary.end_counts and push.end_id is not None
        add(float(prob_RV[row, ends].sum()) * weight, push.end_id if counts and push.end_id is not None else -1, False)
        add(float(prob_RV[row, others].sum()) * weight, -1, False)
    return mass, excluded, open_, decided


@pytest.mark.parametrize("seed", range(2 * EFFORT))
@pytest.mark.parametrize("limit", [0, 3, 2048])
def test_the_push_forward_is_the_sum_over_all_leaves(
    seed: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whichever rules count as large; on what the engine really asks, with splits, specials and several documents."""
    monkeypatch.setattr(engine.targets.pushforward, "_DENSE", limit)
    fast, seen, narrow = PushForward.push, 0, 0

    def push(self: PushForward, prob_RV: torch.Tensor, jobs: list[Job], where: str) -> StudentMass:
        nonlocal seen, narrow
        found = fast(self, prob_RV, jobs, where)
        assert (np.diff(found.ids) > 0).all() and found.mass.shape == (len(jobs), len(found.ids))
        for j, job in enumerate(jobs):
            mass, excluded, open_, decided = push_slowly(self, prob_RV, job)
            dense = np.zeros(self.student_size)
            dense[found.ids] = found.mass[j].numpy()
            np.testing.assert_allclose(dense, mass, rtol=1e-12, atol=0)
            for got, wanted in ((found.excluded, excluded), (found.open, open_), (found.decided, decided)):
                assert got[j] == pytest.approx(wanted, rel=1e-12, abs=1e-300)
            assert found.valid[j] == pytest.approx(mass.sum(), rel=1e-12, abs=1e-300)
        seen, narrow = seen + len(jobs), narrow + (len(found.ids) < self.student_size)
        return found

    monkeypatch.setattr(PushForward, "push", push)
    for case in cases(random.Random(500 + seed), tmp_path, 25, random_pair):
        case.pair.emit([case.doc], case.table)
    assert seen > 100 and (narrow > 0 or limit < 2048)


def test_what_an_aligner_remembers_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One aligner over many texts, with rules given up all the time or not, against a fresh one for each text."""
    rng, compared, forgotten = random.Random(77), 0, 0
    for number in range(12 * EFFORT):
        pair = random_pair(rng, tmp_path / str(number))
        assert pair.teacher.bos_id is not None
        monkeypatch.setattr(engine.alignment.rules, "_MOST_KEPT", (60_000_000, 40)[number % 2])
        monkeypatch.setattr(engine.alignment.boundaries, "_MOST_LEFTS", (100_000, 3, 100_000)[number % 3])
        book = pair.aligner.book
        for _ in range(8):
            text = random_text(rng, pair.chars, 12)
            try:
                doc = pair.prepare(text, (pair.teacher.bos_id,))
            except BadDocument:
                continue
            ids, ends = pair.student.encode(text)
            fresh = Aligner(
                engine.alignment.rules.RuleBook(book.teacher, book.segmenter),
                pair.teacher.prefix_bytes,
            )
            ours = doc.views[STUDENT].boundaries
            assert ours is not None
            theirs = fresh.boundaries(doc.tree, text.encode(), ids, ends)
            for a, b in zip(ours, theirs, strict=True):
                names = ("place", "last", "skip", "at", "fringe", "end_counts")
                assert [getattr(a, n) for n in names] == [getattr(b, n) for n in names], text
                for (node, rule), (other, again) in zip(a.leaves, b.leaves, strict=True):
                    assert node == other
                    for name in ("tokens", "action", "first", "open"):
                        np.testing.assert_array_equal(getattr(rule, name), getattr(again, name))
                    for at, token in enumerate(rule.tokens.tolist()):
                        assert book.place_of(rule, token) == at
                    compared += 1
        forgotten += book.cleared
    assert compared > 1_000 and forgotten > 10


@pytest.mark.parametrize("seed", range(20))
def test_rows_from_few_columns_are_rows_from_all(seed: int):
    """Columns without mass left out: the same top-k, tail and gold, also where the gold token has no column."""
    rng = np.random.default_rng(seed)
    size, k, count = int(rng.integers(5, 60)), int(rng.integers(1, 12)), 9
    ids = np.flatnonzero(rng.random(size) < rng.choice([0.2, 0.6, 1.0]))
    if not len(ids):
        ids = np.array([size - 1])
    mass = rng.exponential(size=(count, len(ids)))
    dense = np.zeros((count, size))
    dense[:, ids] = mass
    gold, total, at = rng.integers(0, size, count), mass.sum(1), rng.permutation(count)
    narrow, wide = TopK([gold], k), TopK([gold], k)
    narrow.write("x", at, torch.from_numpy(mass), total, ids)
    wide.write("x", at, torch.from_numpy(dense), total)
    np.testing.assert_array_equal(narrow.ids, wide.ids)
    np.testing.assert_array_equal(narrow.logps, wide.logps)
    np.testing.assert_array_equal(narrow.gold_logp, wide.gold_logp)
    np.testing.assert_allclose(np.exp(narrow.tail_logp), np.exp(wide.tail_logp), rtol=1e-12, atol=0)
