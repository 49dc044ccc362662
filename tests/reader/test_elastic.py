"""A pass that goes on with other ranks and workers: every document of the epoch once, however often it was interrupted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from engine.reader import Blend, Targets, TargetsDataset
from engine.reader.spans import Spans
from tests.support.codecs import write_output

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 documents of up to 40 positions."""
    out = tmp_path_factory.mktemp("elastic") / "out"
    write_output(out, products=("student/small",))
    return out


def positions_of(batch: dict[str, Any]) -> list[tuple[int, int]]:
    """(document, position) of all that a batch has."""
    if "segments" in batch:
        kept = batch["segments"] > 0
        return list(zip(batch["doc_row"][kept].tolist(), batch["positions"][kept].tolist(), strict=True))
    rows, lengths = batch["doc_row"].tolist(), batch["lengths"].tolist()
    return [(row, i) for row, length in zip(rows, lengths, strict=True) for i in range(length)]


JOBS = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.integers(0, 6), min_size=5, max_size=5)), min_size=1, max_size=3
)


@settings(max_examples=30, deadline=None)
@given(
    jobs=JOBS,
    last=st.integers(1, 4),
    batch_size=st.integers(1, 4),
    pack=st.sampled_from([None, 7, 16, 64]),
    seed=st.sampled_from([None, 3]),
)
def test_any_ranks_after_any_ranks_give_each_position_once(
    out: Path, jobs: list[tuple[int, list[int]]], last: int, batch_size: int, pack: int | None, seed: int | None
) -> None:
    """Several jobs one behind another, each rank stopped after some batches of its own; the last job goes on to the end."""
    targets = Targets(out, "small")
    wanted = Counter((d.doc_row, i) for d in targets.documents() for i in range(len(d.token_ids)))
    seen: Counter[tuple[int, int]] = Counter()
    states: list[dict[str, Any]] = []
    for world_size, steps in [*jobs, (last, [10**9] * 5)]:
        new = []
        for rank in range(world_size):
            dataset = TargetsDataset(
                targets, batch_size, seed=seed, pack_length=pack, rank=rank, world_size=world_size, pool_groups=2
            )
            dataset.set_epoch(2)
            if states:
                dataset.resume(states)
            for step, batch in enumerate(dataset):
                if step == steps[rank]:
                    break
                seen.update(positions_of(batch))
            # what the loop took beyond its steps was not trained on: the state before it is the one that counts
            new.append((dataset, steps[rank]))
        states = [_state_after(dataset, states, count) for dataset, count in new]
    assert seen == wanted


def _state_after(dataset: TargetsDataset, states: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """The state of a rank behind so many batches, made anew."""
    dataset.set_epoch(2)
    if states:
        dataset.resume(states)
    iterator = iter(dataset)
    for _ in range(min(count, 10**6)):
        if next(iterator, None) is None:
            break
    return json.loads(json.dumps(dataset.state_dict()))


@pytest.mark.parametrize("pack", [None, 16])
def test_workers_of_a_loader_become_others(out: Path, pack: int | None) -> None:
    """2 ranks with 2 workers, stopped; then 3 ranks with 1; then one without workers. Then a whole epoch."""
    targets = Targets(out, "small")
    seen: Counter[tuple[int, int]] = Counter()
    states: list[Any] = []
    loaders: list[Any] = []
    for world_size, workers, steps in ((2, 2, 3), (3, 1, 2), (1, 0, 10**9)):
        loaders = []
        for rank in range(world_size):
            dataset = TargetsDataset(targets, 2, seed=1, rank=rank, world_size=world_size, pack_length=pack)
            if states:
                dataset.resume(states)
            loaders.append(StatefulDataLoader(dataset, batch_size=None, num_workers=workers))
        for loader in loaders:
            for step, batch in enumerate(loader, 1):
                seen.update(positions_of(batch))
                if step == steps:
                    break
        states = [loader.state_dict() for loader in loaders]
    assert seen == Counter((d.doc_row, i) for d in targets.documents() for i in range(len(d.token_ids)))
    loaders[0].dataset.set_epoch(1)
    assert {row for batch in loaders[0] for row in batch["doc_row"].flatten().tolist()} >= {*range(targets.rows)}


def test_the_same_ranks_go_on_from_a_resumed_pass_with_the_same_batches(out: Path) -> None:
    """load_state_dict within a pass that had begun with `resume`."""
    targets = Targets(out, "small")
    first = [TargetsDataset(targets, 2, seed=5, rank=rank, world_size=3) for rank in range(3)]
    for rank, dataset in enumerate(first):
        iterator = iter(dataset)
        for _ in range(rank + 1):
            next(iterator)
    states = [dataset.state_dict() for dataset in first]
    for rank in range(2):
        made = [TargetsDataset(targets, 2, seed=5, rank=rank, world_size=2) for _ in range(2)]
        made[0].resume(states)
        iterator = iter(made[0])
        next(iterator)
        made[1].load_state_dict(json.loads(json.dumps(made[0].state_dict())))
        rest = [batch["doc_row"].tolist() for batch in iterator]
        assert rest and [batch["doc_row"].tolist() for batch in made[1]] == rest


def test_drop_last_gives_all_ranks_as_many_batches_after_a_change(out: Path) -> None:
    targets = Targets(out, "small")
    first = [TargetsDataset(targets, 2, seed=5, rank=rank, world_size=2, drop_last=True) for rank in range(2)]
    for dataset in first:
        next(iter(dataset))
    counts = []
    for rank in range(4):
        dataset = TargetsDataset(targets, 2, seed=5, rank=rank, world_size=4, drop_last=True)
        dataset.resume([one.state_dict() for one in first])
        counts.append(len([*dataset]))
    assert counts == [(33 - 4) // 4 // 2] * 4


def test_states_that_are_not_those_of_one_job_are_refused(out: Path) -> None:
    targets = Targets(out, "small")

    def states(world_size: int, **more: Any) -> list[dict[str, Any]]:
        made = [
            TargetsDataset(targets, 4, **{"seed": 0, **more}, rank=r, world_size=world_size) for r in range(world_size)
        ]
        for dataset in made:
            next(iter(dataset))
        return [dataset.state_dict() for dataset in made]

    dataset = TargetsDataset(targets, 4, seed=0)
    three = states(3)
    later = [{**state, "epoch": 1} for state in three]
    for these, text in (
        (three[:2], "wanted each of 3 ranks with 1 workers once.*lost"),
        ([*three, three[0]], "wanted each of 3 ranks"),
        ([*three[:2], later[2]], "2 different jobs or epochs"),
        ([*three, *states(2)], "2 different jobs or epochs"),
        (states(3, seed=1), "seed: state 1, here 0"),
        (states(3, pack_length=9), "pack_length"),
        ([], "0 different jobs"),
        ([{"_steps_since_snapshot": 3, "_snapshot": {}}], "3 batches older.*snapshot_every_n_steps=1"),
    ):
        with pytest.raises(ValueError, match=text):
            dataset.resume(these)
    with pytest.raises(ValueError, match="world_size.*`resume` with the states of all ranks"):
        dataset.load_state_dict(three[0])
    dataset.resume(three[::-1])
    assert sum(len(batch["lengths"]) for batch in dataset) == 33 - 12


def test_a_state_of_0_6_goes_on(out: Path) -> None:
    """It counted documents from the beginning of the order, not of the share."""
    dataset = TargetsDataset(Targets(out, "small"), 4, seed=0, rank=1, world_size=2)
    iterator = iter(dataset)
    next(iterator)
    state = {key: value for key, value in dataset.state_dict().items() if key not in ("spans", "begun")}
    state["document"] += 33 // 2
    fresh = TargetsDataset(Targets(out, "small"), 4, seed=0, rank=1, world_size=2)
    fresh.load_state_dict(state)
    assert [b["doc_row"].tolist() for b in fresh] == [b["doc_row"].tolist() for b in iterator]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.data())
def test_spans_are_sets_of_places(kept: list[bool], data: st.DataObject) -> None:
    places = [i for i, keep in enumerate(kept) if keep]
    spans = Spans.joined(Spans(((i, i + 1),)) for i in data.draw(st.permutations(places)))
    assert [i for a, b in spans.bounds for i in range(a, b)] == places and spans.size == len(places)
    assert all(b[0] > a[1] for a, b in zip(spans.bounds, spans.bounds[1:], strict=False))
    numbers = spans.numbers(np.arange(45)).tolist()
    assert numbers == [places.index(i) if i in places else -1 for i in range(45)]
    first = data.draw(st.integers(0, len(places)))
    last = data.draw(st.integers(first, len(places)))
    assert [i for a, b in spans.cut(first, last).bounds for i in range(a, b)] == places[first:last]
    assert Spans.from_json(**json.loads(json.dumps(spans.to_json()))) == spans
    if places:
        with pytest.raises(ValueError, match="stand in two of the parts"):
            Spans.joined([spans, Spans(((places[0], places[0] + 1),))])


def test_a_blend_resumes_with_other_ranks(tmp_path: Path) -> None:
    for name, units in (("a", 3), ("b", 1)):
        write_output(tmp_path / name, units=units, products=("student/small",))
    blend = Blend([Targets(tmp_path / "a"), Targets(tmp_path / "b")], [2, 1], until="last")
    whole = Counter(
        (o, r)
        for b in blend.batches(4, seed=1)
        for o, r in zip(b["output"].tolist(), b["doc_row"].tolist(), strict=True)
    )
    seen: Counter[tuple[int, int]] = Counter()
    states: list[dict[str, Any]] = []
    for world_size, steps in ((3, 2), (2, 1), (4, 10**9)):
        new = []
        for rank in range(world_size):
            dataset = TargetsDataset(blend, 2, seed=1, rank=rank, world_size=world_size)
            if states:
                dataset.resume(states)
            iterator = iter(dataset)
            for _ in range(steps):
                if (batch := next(iterator, None)) is None:
                    break
                seen.update(zip(batch["output"].tolist(), batch["doc_row"].tolist(), strict=True))
            new.append(json.loads(json.dumps(dataset.state_dict())))
        states = new
    assert seen == whole and sum(whole.values()) == blend.rows
