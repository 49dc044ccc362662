"""The dataset of a trainer: every document once for any ranks and workers, and exact resume."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from engine.reader.targets import Targets, TargetsError
from engine.reader.torch_dataset import TargetsDataset
from tests.support.codecs import write_output

# torchdata 0.11 calls a function of torch that warns; nothing that this project can change.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 units of 11 documents in row groups of 4, 4 and 3."""
    out = tmp_path_factory.mktemp("loader") / "out"
    write_output(out, products=("student/small",))
    return out


def rows_of(dataset: TargetsDataset, workers: int = 0) -> list[int]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return [row for batch in loader for row in batch["doc_row"].tolist()]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one.dtype == other.dtype and torch.equal(one, other)


# ---- order and shares ----


@pytest.mark.parametrize(
    ("world_size", "workers"),
    [
        *((world_size, 0) for world_size in (1, 2, 3, 5)),
        (2, 1),
        (3, 2),
        *(pytest.param(*pair, marks=pytest.mark.thorough) for pair in ((1, 1), (1, 2), (2, 2), (3, 1), (5, 1), (5, 2))),
    ],
)
def test_every_document_once_for_any_world(out: Path, world_size: int, workers: int) -> None:
    targets = Targets(out, "small")
    shares = [
        rows_of(TargetsDataset(targets, 3, seed=4, rank=rank, world_size=world_size), workers)
        for rank in range(world_size)
    ]
    assert Counter(row for share in shares for row in share) == Counter(range(33))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if workers == 0:  # the ranks' parts behind each other are the one order of the epoch
        assert [row for share in shares for row in share] == rows_of(TargetsDataset(targets, 3, seed=4))


def test_more_ranks_than_row_groups_and_than_documents(tmp_path: Path) -> None:
    write_output(tmp_path / "out", units=1, rows=5, group_rows=5, products=("student/small",))
    targets = Targets(tmp_path / "out")
    shares = [rows_of(TargetsDataset(targets, 2, seed=0, rank=rank, world_size=8)) for rank in range(8)]
    assert sorted(row for share in shares for row in share) == [0, 1, 2, 3, 4]
    assert sorted(map(len, shares)) == [0, 0, 0, 1, 1, 1, 1, 1]


def test_order_depends_on_seed_and_epoch_alone(out: Path) -> None:
    targets = Targets(out, "small")

    def order(seed: int | None, epoch: int, batch_size: int = 4) -> list[int]:
        dataset = TargetsDataset(targets, batch_size, seed=seed, pool_groups=2)
        dataset.set_epoch(epoch)
        return rows_of(dataset)

    assert order(None, 0) == order(None, 7) == list(range(33))
    assert order(1, 0) == order(1, 0, 7) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert sorted(order(1, 0)) == list(range(33))


def test_shuffle_mixes_files_and_row_groups(tmp_path: Path) -> None:
    """64 row groups in 8 files: neighbours in the order come from different files, places are uncorrelated."""
    write_output(tmp_path / "out", units=8, rows=32, group_rows=4, products=("student/small",), longest=3)
    order = np.array(rows_of(TargetsDataset(Targets(tmp_path / "out"), 8, seed=0)))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.2
    assert (order[1:] // 32 != order[:-1] // 32).mean() > 0.6
    assert len(set((order[:32] // 4).tolist())) == 8  # a pool is 8 row groups, all of them at once


def test_a_rank_reads_only_its_row_groups(tmp_path: Path) -> None:
    """With the other files gone, the rank whose part lies elsewhere still reads."""
    write_output(tmp_path / "out", units=4, rows=8, group_rows=4, products=("student/small",))
    targets = Targets(tmp_path / "out")
    dataset = TargetsDataset(targets, 4, rank=1, world_size=4)
    for index in (0, 2, 3):
        targets.files[index].unlink()
    assert rows_of(dataset) == list(range(8, 16))


def test_drop_last_gives_each_rank_the_same_number_of_batches(out: Path) -> None:
    targets = Targets(out, "small")
    for workers in (0, 2):
        counts = []
        for rank in range(5):
            dataset = TargetsDataset(targets, 2, seed=1, rank=rank, world_size=5, drop_last=True)
            batches = list(DataLoader(dataset, batch_size=None, num_workers=workers))
            assert all(len(batch["lengths"]) == 2 for batch in batches)
            counts.append(len(batches))
        assert len(set(counts)) == 1 and counts[0] == (3 if workers == 0 else 2)


def test_rank_and_world_size_come_from_torch_distributed(out: Path, tmp_path: Path) -> None:
    targets = Targets(out, "small")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        dataset = TargetsDataset(targets, 4)
        assert (dataset.rank, dataset.world_size) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
    assert (TargetsDataset(targets, 4).rank, TargetsDataset(targets, 4, rank=2, world_size=3).rank) == (0, 2)


# ---- resume ----


@pytest.mark.parametrize(
    ("workers", "pack_length"),
    [(0, None), (0, 16), (0, 64), (2, None), (2, 16), pytest.param(2, 64, marks=pytest.mark.thorough)],
)
def test_resume_at_every_step_gives_the_same_rest(out: Path, workers: int, pack_length: int | None) -> None:
    def loader() -> StatefulDataLoader:
        dataset = TargetsDataset(Targets(out, "small"), 3, seed=2, pack_length=pack_length, pool_groups=2)
        dataset.set_epoch(1)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    whole = list(loader())
    steps = range(0, len(whole) + 1, 1 if workers == 0 else max(1, len(whole) // 2))
    for step in steps:
        first = loader()
        iterator = iter(first)
        for batch in whole[:step]:
            assert same(next(iterator), batch)
        state = json.loads(json.dumps(first.state_dict())) if workers == 0 else first.state_dict()
        second = loader()
        second.load_state_dict(state)
        rest = list(second)
        if step < len(whole) or workers == 0:
            assert len(rest) == len(whole) - step and all(map(same, rest, whole[step:])), step
    assert len(steps) > 2


def test_a_state_between_epochs_is_the_beginning_of_the_next(out: Path) -> None:
    dataset = TargetsDataset(Targets(out, "small"), 4, seed=0, rank=1, world_size=2)
    before = dataset.state_dict()
    assert len(rows_of(dataset)) == 17
    dataset.set_epoch(1)
    fresh = TargetsDataset(Targets(out, "small"), 4, seed=0, rank=1, world_size=2)
    fresh.load_state_dict(dataset.state_dict())
    assert fresh.epoch == 1 and rows_of(fresh) == rows_of(dataset)
    fresh.load_state_dict(before)
    dataset.set_epoch(0)
    assert fresh.epoch == 0 and rows_of(fresh) == rows_of(dataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_one_after_another_with_a_resume_in_the_second(out: Path, workers: int) -> None:
    """As a trainer does it: set_epoch before each pass; the state of the middle of epoch 1 goes on there, then epoch 2."""

    def loader() -> tuple[TargetsDataset, StatefulDataLoader]:
        dataset = TargetsDataset(Targets(out, "small"), 3, seed=2)
        return dataset, StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    def train(dataset: TargetsDataset, loader: StatefulDataLoader, first: int, stop: int | None) -> Iterator[list[int]]:
        for epoch in range(first, 3):
            dataset.set_epoch(epoch)
            for step, batch in enumerate(loader):
                yield batch["doc_row"].tolist()
                if epoch == 1 and step == stop:
                    return

    whole = list(train(*loader(), 0, None))
    assert Counter(row for rows in whole for row in rows) == Counter(3 * list(range(33)))
    dataset, first = loader()
    begun = list(train(dataset, first, 0, 4))
    fresh, second = loader()
    second.load_state_dict(first.state_dict())
    assert begun + list(train(fresh, second, 1, None)) == whole


def test_the_state_is_plain_json_and_survives_the_epoch(out: Path) -> None:
    dataset = TargetsDataset(Targets(out, "small"), 4, seed=0)
    dataset.set_epoch(3)
    iterator = iter(dataset)
    next(iterator)
    state = json.loads(json.dumps(dataset.state_dict()))
    rest = [batch["doc_row"].tolist() for batch in iterator]
    fresh = TargetsDataset(Targets(out, "small"), 4, seed=0)
    fresh.load_state_dict(state)
    fresh.set_epoch(3)  # the same epoch: goes on
    assert fresh.state_dict() == state
    assert [batch["doc_row"].tolist() for batch in fresh] == rest
    assert len([row for batch in fresh for row in batch["doc_row"]]) == 33  # the next pass is whole
    fresh.load_state_dict(state)
    fresh.set_epoch(4)  # another one: begins anew
    assert len([row for batch in fresh for row in batch["doc_row"]]) == 33


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 1, "world_size": 2}, "world_size: state 1, here 2"),
        ({"seed": 9}, "seed"),
        ({"pack_length": 8}, "pack"),
    ],
)
def test_a_state_of_other_settings_is_refused(out: Path, change: dict[str, int], named: str) -> None:
    dataset = TargetsDataset(Targets(out, "small"), 4, seed=0)
    next(iter(dataset))
    other = TargetsDataset(Targets(out, "small"), 4, **{"seed": 0, **change})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=named):
        other.load_state_dict(dataset.state_dict())


def test_workers_that_live_on_see_the_new_epoch(out: Path) -> None:
    dataset = TargetsDataset(Targets(out, "small"), 4, seed=0)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append([row for batch in loader for row in batch["doc_row"].tolist()])
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("version", [2, 3, 4])
def test_versions(tmp_path: Path, version: int) -> None:
    write_output(tmp_path / "out", units=1, products=("student/small",), version=version)
    if version < 4:
        assert len(rows_of(TargetsDataset(Targets(tmp_path / "out"), 4))) == 11
    else:
        with pytest.raises(TargetsError, match=r"schema .* 4.*versions 2, 3"):
            Targets(tmp_path / "out")


def test_wrong_arguments_say_so(out: Path) -> None:
    targets = Targets(out, "small")
    for arguments, text in (
        ({"rank": 1}, "give both"),
        ({"rank": 3, "world_size": 3}, "wanted 0 <= rank < world_size"),
        ({"pool_groups": 0}, "pool_groups 0"),
    ):
        with pytest.raises(ValueError, match=text):
            TargetsDataset(targets, 4, **arguments)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="pack_length 0"):
        list(TargetsDataset(targets, 4, pack_length=0))
    with pytest.raises(ValueError, match="epoch -1"):
        TargetsDataset(targets, 4).set_epoch(-1)
