"""Logits that are asked for twice: the same values, made once, however much room there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from engine.dataset.parquet import flat
from engine.dataset.unit_result import UnitResult
from engine.scoring.scorer import Scorer
from engine.teacher.kept_logits import KeptLogits, LogitsStore
from tests.beam.test_compiled_search import scorer
from tests.push.test_compiled_rows import TEXTS
from tests.scoring.test_scorer import documents
from tests.support.tiers import one_of
from tests.support.vocabularies import needs_shared
from tests.teacher.test_pruning import scorer as pruned


class _Group:
    """What is asked of a group: some passages' contexts under one numbering."""

    def __init__(self, sizes: list[int]) -> None:
        self.passages: list[Any] = [None] * len(sizes)
        self.first_node = np.concatenate([[0], np.cumsum(sizes)])
        self.passage_of = np.repeat(np.arange(len(sizes)), sizes)
        self.evaluated = np.ones(sum(sizes), bool)


@pytest.mark.parametrize("rows", [0, 1, 7, 100])
def test_rows_are_those_of_the_head_whatever_is_kept(rows: int) -> None:
    """In any order, asked for again and again, changed by who has them, after contexts were added to every passage."""
    rng = np.random.default_rng(rows)
    weight = torch.randn(5, 11, dtype=torch.float64)
    store, seen = LogitsStore(rows * 11 * 8), 0

    def head(hidden_RD: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(hidden_RD)
        return hidden_RD @ weight

    for _ in range(3):  # the room serves one group after another
        kept, seen, asked = KeptLogits(head, store, 18), 0, 0
        sizes = [3, 8, 1, 6]
        hidden: Any = [torch.randn(n, 5, dtype=torch.float64) for n in sizes]
        for _ in range(3):
            group: Any = _Group([len(h) for h in hidden])
            whole = torch.cat(hidden)
            for nodes in np.array_split(rng.permutation(len(whole)), 4):
                found = kept.rows(group, nodes, whole)
                np.testing.assert_allclose(found, whole[nodes] @ weight, atol=1e-12)
                found.fill_(np.nan)  # the caller's own
                asked += len(nodes)
            hidden = [torch.cat([h, torch.randn(2, 5, dtype=torch.float64)]) for h in hidden]
        assert asked == 18 + 26 + 34
        first = 18  # there is room for the contexts of the first time; what is added is made each time
        assert seen == asked - 2 * min(rows, first)


@needs_shared
@pytest.mark.parametrize("max_length", one_of(2, [None, 64]))
def test_pruning_puts_every_context_through_the_head_once(max_length: int | None) -> None:
    """Rows as without room for any; the head sees each context once, and again only those that a second window holds."""
    made, plain = (pruned("vachan-gpt2-280K", 1e-4, "tokenizers/gpt2", max_length=max_length) for _ in range(2))
    plain._kept_logits = LogitsStore(0)
    teacher, seen = made.stages.teacher, [0]

    def head(hidden_RD: torch.Tensor) -> torch.Tensor:
        seen[0] += len(hidden_RD)
        return type(teacher).logits(teacher, hidden_RD)

    counted = replace(teacher, _logits=head)
    made.stages = replace(made.stages, teacher=counted)
    ours, twin = made.score_unit(documents(TEXTS)), plain.score_unit(documents(TEXTS))
    contexts = ours.stats["teacher_evaluations"]
    assert contexts == twin.stats["teacher_evaluations"] and not ours.quarantine
    assert seen[0] >= contexts
    if max_length is None:
        assert seen[0] <= contexts + len(TEXTS)  # the given ones
    for product in twin.products:
        assert ours.products[product].equals(twin.products[product]), product


@pytest.fixture(scope="module")
def beam() -> Iterator[tuple[Scorer, UnitResult, int]]:
    """A scorer, what one without room gives, and the contexts before the search, the given ones with them."""
    with pytest.MonkeyPatch.context() as patch:
        plain = scorer(patch, compiled=True, target_error=1e-4)
        plain._kept_logits = LogitsStore(0)
        fast = scorer(patch, compiled=True, regime="fast").score_unit(documents(TEXTS))
        first = int(fast.stats["teacher_evaluations"]) + len(TEXTS)
        yield scorer(patch, compiled=True, target_error=1e-4), plain.score_unit(documents(TEXTS)), first


@pytest.mark.parametrize("room", one_of(2, [30, 0, None]))
def test_a_beam_puts_every_context_through_the_head_once(
    beam: tuple[Scorer, UnitResult, int], room: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are the same with room for all, for some and for none; the head sees each context once, or twice without room."""
    made, twin, first = beam
    teacher, seen = made.stages.teacher, [0]
    width = teacher.vocab_rows * 4

    def head(hidden_RD: torch.Tensor) -> torch.Tensor:
        seen[0] += len(hidden_RD)
        return type(teacher).logits(teacher, hidden_RD)

    counted = replace(teacher, _logits=head)
    monkeypatch.setattr(made, "stages", replace(made.stages, teacher=counted))
    made._kept_logits = LogitsStore(None if room is None else room * width)
    ours = made.score_unit(documents(TEXTS))
    assert not ours.quarantine and not twin.quarantine
    contexts = int(ours.stats["teacher_evaluations"])
    assert contexts + len(TEXTS) > first  # something was spent
    print(contexts, first, seen[0])
    if room is None:
        assert seen[0] <= contexts + len(TEXTS)
    else:
        assert seen[0] >= contexts + first - (room + 1) * len(TEXTS)
    for product in twin.products:
        for name in ("gold_logp", "topk_logps", "err"):
            a, b = flat(ours.products[product], name), flat(twin.products[product], name)
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=f"{product} {name}")
