"""Pruning: nothing of eps or more is left out, and what is left out is inside the bound that every row carries."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.corpus.document import Document
from engine.dataset.unit_result import UnitResult
from engine.scoring.scorer import Scorer
from schemas.runfile import parse_run
from schemas.target import FLAG_BOUNDED, FLAG_EXACT
from tests.support.vocabularies import SHARED, needs_shared

TEXTS = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine.",
    'Tom said, "I don\'t know!"\n\n  He ran  to the park   and saw 12 big dogs.\n',
    "x",
    "The naïve café — déjà vu? 日本 👩\u200d👧 ok.",
)
MODELS = ("stories260K", "vachan-gpt2-280K")


def scorer(model: str, eps: float, student: str, *, max_length: int | None = None, attention: str = "auto") -> Scorer:
    """The byte product in full and one student, every token stored."""
    teacher: dict[str, object] = {"model": str(SHARED / "models" / model), "attention": attention}
    if max_length:
        teacher |= {"max_length": max_length, "overlap": max_length // 3}
    targets = {"bytes": True, "bytes_top_k": 257, "eps": eps, "top_k": 1024}
    table = {
        "output": "unused",
        "teacher": teacher,
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": "s", "tokenizer": str(SHARED / student)}],
        "targets": targets,
    }
    return Scorer(parse_run(table, base_dir=Path.cwd()))


@cache
def scored(
    model: str, eps: float, student: str, *, max_length: int | None = None, attention: str = "auto"
) -> UnitResult:
    """All texts; none of them is refused."""
    made = scorer(model, eps, student, max_length=max_length, attention=attention)
    documents = [Document(str(i), i, text, "texts", f"row {i}") for i, text in enumerate(TEXTS)]
    result = made.score_unit(documents)
    assert not result.quarantine
    return result


def column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def dense(table: pa.Table, size: int) -> np.ndarray:
    """[positions, size] probabilities; what is not stored is 0."""
    ids = column(table, "topk_ids").reshape(len(column(table, "flags")), -1)
    q = np.zeros((len(ids), size))
    row, at = np.nonzero(ids >= 0)
    q[row, ids[row, at]] = np.exp(column(table, "topk_logps").reshape(ids.shape)[row, at].astype(np.float64))
    return q


def close(pruned: pa.Table, whole: pa.Table, size: int) -> tuple[float, int]:
    """Checks every row of an exact product against the unpruned one: (largest difference, rows with a bound)."""
    here = column(whole, "scored")
    assert (column(pruned, "scored") <= here).all()
    here &= column(pruned, "scored")
    gap = np.abs(dense(pruned, size) - dense(whole, size))[here].max(1)
    err, flags = column(pruned, "err")[here], column(pruned, "flags")[here]
    assert (gap <= err + 1e-5).all(), (gap - err).max()
    assert (((flags & FLAG_EXACT) > 0) == (err == 0)).all() and (((flags & FLAG_BOUNDED) > 0) == (err > 0)).all()
    return float(gap.max()), int((err > 0).sum())


@needs_shared
@pytest.mark.parametrize("model", MODELS)
def test_pruned_rows_hold_the_exact_ones_within_their_bound(model: str):
    whole = scored(model, 0.0, f"models/{model}")
    assert (column(whole.products["bytes"], "err") <= 0).sum() == column(whole.products["bytes"], "scored").sum()
    evaluations, bounded = [whole.stats["teacher_evaluations"]], []
    for eps in (1e-6, 1e-3, 1e-1):
        pruned = scored(model, eps, f"models/{model}")
        evaluations.append(pruned.stats["teacher_evaluations"])
        bounded.append(close(pruned.products["bytes"], whole.products["bytes"], 257)[1])
        same = [column(r.products["teacher"], "topk_logps") for r in (pruned, whole)]  # the trunk is never pruned
        np.testing.assert_allclose(same[0], same[1], atol=2e-4)
    assert evaluations == sorted(evaluations, reverse=True) and evaluations[-1] < evaluations[0]
    assert bounded == sorted(bounded) and bounded[-1] > 5


@needs_shared
def test_a_small_eps_changes_little_and_a_large_one_is_bounded():
    """The mass given up per row is of the order of eps on most rows."""
    pruned = scored("stories260K", 1e-4, "models/stories260K").products["bytes"]
    assert np.median(column(pruned, "pruned_mass")[column(pruned, "scored")]) <= 1e-4


@needs_shared
@pytest.mark.parametrize("attention", ["tree", "paths"])
def test_windows_and_paths_prune_alike(attention: str):
    """Long documents in windows, and teachers without tree attention: the same rows as one pass."""
    whole = scored("stories260K", 0.0, "models/stories260K", max_length=24)
    pruned = scored("stories260K", 1e-2, "models/stories260K", max_length=24, attention=attention)
    assert close(pruned.products["bytes"], whole.products["bytes"], 257)[1] > 0


@needs_shared
def test_a_student_of_the_fast_regime_is_pruned_too():
    """A pruned context is missing mass for a foreign student as well: its rows stay within the wider interval."""
    whole = scored("stories260K", 0.0, "tokenizers/gpt2").products["student/s"]
    pruned = scored("stories260K", 1e-1, "tokenizers/gpt2").products["student/s"]
    here = column(whole, "scored") & column(pruned, "scored")
    assert (column(pruned, "pruned_mass") > column(whole, "pruned_mass")).sum() > 5
    size = 50257
    low_high = []
    for table in (whole, pruned):
        ids = column(table, "topk_ids").reshape(len(here), -1)
        assert ids.max() < size
        low_high.append(dense(table, size)[here])
    gap = np.abs(low_high[0] - low_high[1]).max(1)
    width = column(whole, "err")[here] + column(pruned, "err")[here]
    assert (gap <= width + 2e-3).all()


@needs_shared
def test_a_teacher_of_extreme_logits_is_bounded_not_broken():
    """Weights hundreds of nats apart: the bound may be everything, and is a number."""
    student = "tokenizers/gpt2"
    made = scorer("stories260K", 1e-2, student)
    plain = made.stages.teacher._logits
    object.__setattr__(made.stages.teacher, "_logits", lambda hidden: plain(hidden) * 1e4)
    result = made.score_unit([Document("0", 0, TEXTS[0], "texts", "row 0")])
    assert not result.quarantine
    for product in ("bytes", "student/s"):
        for name in ("err", "pruned_mass", "open_mass"):
            values = column(result.products[product], name)
            assert ((values >= 0) & (values <= 1)).all(), (product, name)
