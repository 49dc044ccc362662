"""Compiled push-forwards against the slow twin: equal rows where no leaf is split, and intervals that agree where some are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.push.passage_arrays as passage_arrays
import engine.scoring.stages as stages_module
from engine.beam.search import BeamSearch
from engine.scoring.scorer import Scorer
from schemas.runfile import parse_run
from schemas.target import FLAG_EXACT
from tests.scoring.test_scorer import documents
from tests.support.vocabularies import EFFORT

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "jobs" / "demo_assets"
TEXTS = (
    "Ann buys 12 boxes of 24 eggs for $3 each. How much does she pay? She pays 12*24 = 288 dollars.",
    "don't  stop\n\n  if x:\n\t\treturn 'a  b'   \n",
    "naïve café — “quotes” ’tis 漢字! 1234567",
    "A train is 150 m long and 8 cars have 40 seats each.\nHow many seats are there? There are 8*40 = 320 seats.",
)


def scorer(monkeypatch: pytest.MonkeyPatch, *, compiled: bool, **targets: Any) -> Scorer:
    """The demo's teacher and both its students. compiled: by compiled functions, however small the vocabularies are."""
    monkeypatch.setattr(
        stages_module, "is_compiled", lambda targets, regime, *vocabularies: compiled and regime == "fast"
    )
    run = {
        "output": "out",
        "teacher": {"model": str(ASSETS / "teacher"), "device": "cpu", "dtype": "float32"},
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": name, "tokenizer": str(ASSETS / f"student_{name}")} for name in ("sp", "bl")],
        "targets": {"top_k": 24, "regime": "fast", "calibration_documents": 0, **targets},
    }
    return Scorer(parse_run(run, base_dir=ROOT))


def flat(table: Any, name: str) -> np.ndarray:
    return np.concatenate([np.asarray(row) for row in table.column(name).to_pylist()])


def is_slow(made: Scorer, product: str) -> np.ndarray:
    """bool, for each position: it went by the slow rules."""
    from engine.scoring.prepare import prepare

    found = []
    for document in documents(TEXTS):
        for part in prepare(made.stages, document).parts:
            view = part.views[product]
            assert view.student is not None
            found.append(view.student.slow_K[: len(view.ids)])
    return np.concatenate(found)


@pytest.mark.parametrize(
    "targets", [{}, {"semantics": "canonical-masked"}, pytest.param({"eps": 1e-3}, marks=pytest.mark.thorough)]
)
def test_rows_without_splits_are_those_of_the_slow_rules(
    monkeypatch: pytest.MonkeyPatch, targets: dict[str, Any]
) -> None:
    monkeypatch.setattr(passage_arrays, "HORIZON_BYTES", 0)  # no leaf is followed
    fast = scorer(monkeypatch, compiled=True, **targets)
    new = fast.score_unit(documents(TEXTS))
    monkeypatch.setattr(BeamSearch, "search", lambda self, docs, *rest: np.zeros(len(docs), np.int64))
    old = scorer(monkeypatch, compiled=False, **targets).score_unit(documents(TEXTS))
    assert not new.quarantine and not old.quarantine
    for product in ("student/sp", "student/bl"):
        a, b = new.products[product], old.products[product]
        use = flat(a, "scored")
        assert np.array_equal(use, flat(b, "scored")) and use.sum() > 100
        assert (~is_slow(fast, product)).sum() > 100
        for name in ("err", "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass"):
            assert np.abs(flat(a, name) - flat(b, name))[use].max() < 1e-6, name
        for name in ("gold_logp", "tail_logp"):
            x, y = flat(a, name)[use], flat(b, name)[use]
            assert np.array_equal(np.isfinite(x), np.isfinite(y))
            assert np.abs(np.exp(x) - np.exp(y)).max() < 1e-6, name
        x, y = (np.exp(flat(t, "topk_logps")).reshape(-1, 24)[use] for t in (a, b))
        assert np.abs(x - y).max() < 1e-6
        assert np.array_equal(flat(a, "flags") & FLAG_EXACT, flat(b, "flags") & FLAG_EXACT)


def test_split_rows_hold_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lemma 10 for folded leaves (lemma 21): each probability is within both widths of that of a deep beam."""
    texts = TEXTS if EFFORT > 1 else TEXTS[:2]
    new = scorer(monkeypatch, compiled=True).score_unit(documents(texts))
    deep = {"regime": "beam", "tolerance": 0.001, "max_nodes_per_token": 40.0}
    truth = scorer(monkeypatch, compiled=False, **deep).score_unit(documents(texts))
    old = scorer(monkeypatch, compiled=False).score_unit(documents(texts))
    for product in ("student/sp", "student/bl"):
        a, b, c = new.products[product], truth.products[product], old.products[product]
        use = flat(a, "scored")
        width = flat(a, "err") + flat(b, "err")
        gold = np.exp(flat(a, "gold_logp")) - np.exp(flat(b, "gold_logp"))
        assert (np.abs(gold) <= width + 1e-6)[use].all()
        best = [dict(zip(*pair, strict=True)) for pair in rows_of(b)]
        for row, (ids, logps) in enumerate(rows_of(a)):
            for token, logp in zip(ids, logps, strict=True):
                if use[row] and token in best[row]:
                    assert abs(np.exp(logp) - np.exp(best[row][token])) <= width[row] + 1e-6
        # splits are worth what they are to the slow search: no wider in the mean, but for leaves that it asks string by string
        assert flat(a, "err")[use].mean() < 1.1 * flat(c, "err")[use].mean() + 1e-3


def rows_of(table: Any) -> list[tuple[list[int], list[float]]]:
    """(ids, log-probabilities) of each position."""
    ids, logps = flat(table, "topk_ids").reshape(-1, 24), flat(table, "topk_logps").reshape(-1, 24)
    return [(i.tolist(), p.tolist()) for i, p in zip(ids, logps, strict=True)]


def test_draws_and_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec that wants whole distributions; a teacher in float64 goes through functions of their own."""
    made = scorer(monkeypatch, compiled=True, codec="sample", draws=20, seed=3)
    one, two = (made.score_unit(documents(TEXTS)).products["student/bl"] for _ in range(2))
    assert one.equals(two) and flat(one, "scored").sum() > 100
