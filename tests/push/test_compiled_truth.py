"""Truth first, compiled push-forwards: random toy pairs beside brute force, and beside the slow twin where no leaf is split.

Every row's certified interval holds the truth (lemma 10), whatever folds and splits lemma 21 made of open leaves; without
splits rows are those of the slow rules.
TARGETSMITH_EFFORT=n multiplies the number of random cases by n.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import engine.push.passage_arrays as passage_arrays
from engine.alignment.passage import Passage
from engine.bpe.segmenter import build_segmenter
from engine.compiled.pair import compile_pair
from engine.compiled.walk import StudentWalk
from engine.push.compiled_push import CompiledPush
from engine.push.push_tables import TableStore
from tests.beam.test_search import MODES, finite_cases, targets_of
from tests.support.pairs import STUDENT, Pair, cases, nfc_pair, random_pair, stored
from tests.support.tiers import one_of
from tests.support.vocabularies import EFFORT


class Compiled:
    """One pair's compiled functions: the walk, and an emitter whose student is made by them."""

    def __init__(self, pair: Pair, *, least: float) -> None:
        book = pair.aligner.book
        merges = (build_segmenter(pair.teacher).merges, book.segmenter.merges)
        made = compile_pair(pair.teacher, pair.student, merges=merges, splitter=book.splitter)
        self.pair, self.walk = pair, StudentWalk(made, pair.aligner)
        assert pair.teacher.eos_id is not None
        ends = [pair.teacher.eos_id]
        others = sorted(i for i in pair.teacher.specials if i not in ends)
        store = TableStore(made, pair.teacher.size)
        self.push = CompiledPush(store, np.array(ends), np.array(others, np.int64), least=least, threads=1)
        self.emitter = dataclasses.replace(pair.emitter, compiled={STUDENT: self.push})

    def view(self, doc: Passage, text: str) -> np.ndarray:
        """Give a passage the arrays of its boundaries. bool [K], those that go by the slow rules."""
        view = self.walk.view(doc.tree, text.encode(), *self.pair.student.encode(text))
        doc.views[STUDENT].student = view
        return view.slow_K

    @property
    def folds(self) -> np.ndarray:
        """int64 [2]: folds, and tokens that were asked one by one, so far."""
        return sum((made.work.counts[2:4] for made in self.push.workers.made), np.zeros(2, np.int64))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(1 * EFFORT))
@pytest.mark.parametrize("make_pair", one_of(2, [random_pair, nfc_pair]))
def test_intervals_hold_the_truth(make_pair: Callable[..., Pair], seed: int, mode: str, tmp_path: Path) -> None:
    """Each token's probability is within err of the truth, with every token asked and with only the heavy ones."""
    rng = random.Random(f"fold {seed} {mode}")
    rows_seen, quick, made, folds = 0, 0, None, np.zeros(2, np.int64)
    for case in finite_cases(rng, tmp_path, 20, mode, make_pair=make_pair):
        found = targets_of(case)
        if found is None:
            continue
        if made is None or made.pair is not case.pair:
            folds += made.folds if made else 0
            made = Compiled(case.pair, least=rng.choice((0.0, 1e-4, 0.1)))
        slow = made.view(case.doc, case.text)
        rows = case.pair.emit([case.doc], case.table, emitter=made.emitter)[STUDENT]
        for k, (mass, _) in enumerate(found):
            where, total = f"{case} k {k} slow {slow[k]}", float(mass.sum())
            if total == 0 or not rows.scored[k]:
                assert not rows.scored[k] or rows.err[k] == pytest.approx(1), where
                continue
            q = stored(rows, k, case.pair.student.size)
            assert np.abs(q - mass / total).max() <= rows.err[k] + 1e-9, where
            rows_seen += 1
            quick += not slow[k]
    folds += made.folds if made else 0
    print(f"{rows_seen} rows, {quick} compiled, folds and tokens asked {folds}")
    assert quick > 40 and folds[0] > 8


@pytest.mark.parametrize("seed", range(1 * EFFORT))
@pytest.mark.parametrize("make_pair", one_of(2, [nfc_pair, random_pair]))
def test_rows_without_splits_are_those_of_the_slow_rules(
    make_pair: Callable[..., Pair], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passage_arrays, "HORIZON_BYTES", 0)
    rng = random.Random(f"rows {seed}")
    made, quick = None, 0
    for case in cases(rng, tmp_path, 50, make_pair):
        if made is None or made.pair is not case.pair:
            made = Compiled(case.pair, least=rng.choice((0.0, 1e-4, 0.1)))
        slow = made.view(case.doc, case.text)
        old = case.pair.emit([case.doc], case.table)[STUDENT]
        new = case.pair.emit([case.doc], case.table, emitter=made.emitter)[STUDENT]
        np.testing.assert_array_equal(new.scored, old.scored, err_msg=str(case))
        words = bool(case.pair.aligner.book.segmenter.whole_words)
        if words:  # the slow rules keep leaves open before words that cannot begin where the pre-token does
            assert (new.err <= old.err + 1e-9).all() and (new.open_mass <= old.open_mass + 1e-9).all(), str(case)
        else:
            np.testing.assert_array_equal(new.flags, old.flags, err_msg=str(case))
        wide = () if words else ("err", "open_mass")
        for name in (*wide, "stored_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
            x, y = getattr(new, name), getattr(old, name)
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-9, err_msg=f"{case} {name}")
        for k in np.flatnonzero(old.scored).tolist():
            size = case.pair.student.size
            np.testing.assert_allclose(stored(new, k, size), stored(old, k, size), rtol=0, atol=1e-9, err_msg=str(case))
        np.testing.assert_allclose(np.exp(new.gold_logp), np.exp(old.gold_logp), rtol=0, atol=1e-9, err_msg=str(case))
        quick += int((old.scored & ~slow[: len(old.scored)]).sum())
    assert quick > 60
