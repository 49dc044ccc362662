"""The beam on a real small model: the rounds over the cache against plain forward passes of each context alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from engine.alignment.passage import Passage
from engine.scoring.prepare import whole_passage
from engine.scoring.scorer import Scorer
from engine.targets.positions import TopK
from engine.teacher.evaluate import hidden_states
from engine.teacher.incremental import IncrementalTrees, OpenBatch, RescoredTrees
from engine.teacher.model import Teacher
from engine.teacher.packing import Window
from tests.scoring.test_scorer import documents, scorer
from tests.support.vocabularies import EFFORT, SHARED, needs_shared

pytestmark = needs_shared
STUDENT = "student/gpt2"
TEXTS = (
    "Once upon a time, there was a little girl named Lily. She had 12 dogs.",
    'Tom said, "I don\'t know!"\n\n  He ran  to the park.',
)


class Alone(Teacher):
    """A teacher that scores every context by itself: no tree, no cache, no batch."""

    def hidden(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        out = []
        for window in windows:
            paths: list[tuple[int, ...]] = []
            for token, parent in zip(
                np.asarray(window.token).tolist(), np.asarray(window.parent).tolist(), strict=True
            ):
                paths.append((*(paths[parent] if parent >= 0 else ()), token))
            out.append(torch.stack([_last_state(self.model, path) for path in paths]))
        return out

    def open_trees(self, windows: list[Window]) -> IncrementalTrees:
        return RescoredTrees(self.hidden, windows)


_KNOWN: dict[tuple[int, ...], torch.Tensor] = {}


def _last_state(model: Any, path: tuple[int, ...]) -> torch.Tensor:
    if path not in _KNOWN:
        with torch.inference_mode():
            _KNOWN[path] = model.model(input_ids=torch.tensor([path]), use_cache=False).last_hidden_state[0, -1]
    return _KNOWN[path]


def rows_of(made: Scorer, docs: list[Passage]) -> tuple[TopK, int]:
    """What Scorer._score_group does, before anything is rounded: rows, and the evaluations spent on splits."""
    assert made.stages.beam_search is not None
    batches: list[OpenBatch] = []
    hidden = hidden_states(made.stages.teacher, docs, made.stages.run.teacher, made.stages.pruner, open_batches=batches)
    spent = made.stages.beam_search.search(docs, hidden, batches, made.stages.teacher.logits)
    return cast(TopK, made.stages.emitter.emit(docs, hidden, made.stages.teacher.logits)[STUDENT]), int(spent.sum())


def alone(made: Scorer) -> Scorer:
    values = {f.name: getattr(made.stages.teacher, f.name) for f in dataclasses.fields(Teacher)}
    made.stages = dataclasses.replace(made.stages, teacher=Alone(**values))
    return made


@pytest.mark.parametrize("semantics", ["canonical-context", "canonical-masked"])
def test_split_rows_are_those_of_plain_forward_passes(semantics: str):
    """Budget 8, every probability that counts from a pass of its own: the same rows to 1e-5."""
    made = scorer(
        SHARED / "models/stories260K",
        {"gpt2": SHARED / "tokenizers/gpt2"},
        top_k=1024,
        max_nodes_per_token=8.0,
        tolerance=0.02,
        semantics=semantics,
    )
    ours, spent = rows_of(made, [whole_passage(made.stages, d) for d in documents(TEXTS)])
    theirs, again = rows_of(alone(made), [whole_passage(made.stages, d) for d in documents(TEXTS)])
    assert abs(spent - again) <= 2 and spent > 100  # a tie at the end of the budget may fall the other way
    assert ours.scored.all() and (ours.scored == theirs.scored).all()
    for k in range(len(ours.scored)):
        p, q = (
            {int(i): float(np.exp(v)) for i, v in zip(r.ids[k], r.logps[k], strict=True) if i >= 0}
            for r in (ours, theirs)
        )
        for token in p.keys() & q.keys():
            assert p[token] == pytest.approx(q[token], abs=1e-5), k
        assert all(v < 1e-4 for t, v in (p | q).items() if (t in p) != (t in q)), k  # the last of the 1024
    np.testing.assert_allclose(np.exp(ours.gold_logp), np.exp(theirs.gold_logp), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.err, theirs.err, rtol=0, atol=1e-5)


def test_widths_of_a_real_pair_fall_with_the_budget(record_property: Any):
    """Position by position: what a smaller budget pays for, a larger one does, too."""
    before, means = None, {}
    for budget in (0.0, 1.0, 2.0, 4.0, 8.0) if EFFORT > 1 else (0.0, 1.0, 8.0):
        made = scorer(
            SHARED / "models/stories260K",
            {"gpt2": SHARED / "tokenizers/gpt2"},
            max_nodes_per_token=budget,
            tolerance=0.02,
        )
        rows, spent = rows_of(made, [whole_passage(made.stages, d) for d in documents(TEXTS)])
        assert spent <= budget * len(rows.scored) + 1e-9
        assert before is None or (rows.err <= before + 1e-5)[rows.scored].all()
        before, means[budget] = rows.err, round(float(rows.err[rows.scored].mean()), 4)
    record_property("budget -> mean width", means)
    print(f"stories260K, gpt2: budget -> mean width {means}")
    assert means[8.0] < means[0.0] / 2
