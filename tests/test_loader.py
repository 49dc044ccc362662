"""The dataset of a trainer: every document once for any ranks and workers, exact resume, packing, all codecs."""

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

from engine.collate import attention_mask, packed_layout, student_inputs
from engine.loader import TargetsDataset
from engine.stream import Targets, TargetsError
from tests.codecs import DRAWS, HIDDEN, STATISTICS, TOP_K, write_output

# torchdata 0.11 calls a function of torch that warns; nothing that this project can change.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

Documents = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Documents]:
    """3 units of 11 documents in row groups of 4, 4 and 3; all products."""
    out = tmp_path_factory.mktemp("loader") / "out"
    return out, write_output(out)


@pytest.fixture
def out(made: tuple[Path, Documents]) -> Path:
    return made[0]


def rows_of(dataset: TargetsDataset, workers: int = 0) -> list[int]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return [row for batch in loader for row in batch["doc_row"].tolist()]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one.dtype == other.dtype and torch.equal(one, other)


# ---- order and shares ----


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
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


@pytest.mark.parametrize("pack_length", [None, 16, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_step_gives_the_same_rest(out: Path, workers: int, pack_length: int | None) -> None:
    def loader() -> StatefulDataLoader:
        dataset = TargetsDataset(Targets(out, "small"), 3, seed=2, pack_length=pack_length, pool_groups=2)
        dataset.set_epoch(1)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    whole = list(loader())
    steps = range(0, len(whole) + 1, 1 if workers == 0 else max(1, len(whole) // 3))
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


# ---- packing ----


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("pack_length", [5, 17, 64])
@pytest.mark.parametrize("max_length", [None, 17])
def test_packing_changes_no_value(
    made: tuple[Path, Documents], pack_length: int, batch_size: int, max_length: int | None
) -> None:
    """Every segment is a stretch of one document; put together again, they are the documents."""
    out, documents = made
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for batch in Targets(out, "teacher").batches(batch_size, seed=3, pack_length=pack_length, max_length=max_length):
        assert batch["token_ids"].shape[1] == pack_length and batch["token_ids"].shape[0] <= batch_size
        for r in range(len(batch["lengths"])):
            segments = batch["segments"][r]
            assert int((segments > 0).sum()) == int(batch["lengths"][r]) > 0
            assert not batch["mask"][r][segments == 0].any() and (batch["doc_row"][r][segments == 0] == -1).all()
            assert (batch["logps"][r][segments == 0] == -torch.inf).all()
            assert sorted(set(segments[segments > 0].tolist())) == list(range(1, int(segments.max()) + 1))
            for number in range(1, int(segments.max()) + 1):
                at = torch.nonzero(segments == number).ravel()
                assert torch.equal(at, torch.arange(int(at[0]), int(at[-1]) + 1))  # in one piece
                assert len(set(batch["doc_row"][r, at].tolist())) == 1
                for i in at.tolist():
                    place = found.setdefault(int(batch["doc_row"][r, i]), {})
                    assert int(batch["positions"][r, i]) not in place
                    place[int(batch["positions"][r, i])] = {
                        key: batch[key][r, i].tolist() for key in ("token_ids", "logps", "ids", "logz", "roles", "err")
                    }
    assert sorted(found) == list(range(33))
    for row, places in found.items():
        document = documents["teacher"][row]
        length = min(len(document["token_ids"]), max_length or 10**9)
        assert sorted(places) == list(range(length))
        for i in range(length):
            assert places[i]["token_ids"] == document["token_ids"][i]
            assert places[i]["logps"] == document["topk_logps"][i * TOP_K : (i + 1) * TOP_K]
            assert places[i]["ids"] == [max(n, 0) for n in document["topk_ids"][i * TOP_K : (i + 1) * TOP_K]]
            assert (places[i]["logz"], places[i]["roles"]) == (document["logz"][i], document["roles"][i])


def test_first_fit_by_hand() -> None:
    lengths = np.array([6, 7, 3, 25, 2])  # rows of 10: [6, 3] [7], then 25 = 10 + 10 + 5
    one = packed_layout(lengths, 2, 10, None, 0, last=True)
    assert one is not None and (one.consumed, one.piece) == (3, 0)
    assert one.document.tolist() == [0, 2, 1] and one.row.tolist() == [0, 0, 1] and one.column.tolist() == [0, 6, 0]
    two = packed_layout(lengths[3:], 2, 10, None, 0, last=True)
    assert two is not None and (two.consumed, two.piece, two.length.tolist()) == (0, 2, [10, 10])
    three = packed_layout(lengths[3:], 2, 10, None, 2, last=True)
    assert three is not None and (three.consumed, three.length.tolist(), three.start.tolist()) == (2, [5, 2], [20, 0])
    assert packed_layout(lengths[3:], 2, 10, None, 2, last=False) is None
    cut = packed_layout(lengths, 9, 10, 10, 0, last=True)
    assert cut is not None and cut.length.tolist() == [6, 3, 7, 2, 10]  # max_length 10: the rest of 25 is left out


def test_attention_mask_and_inputs_against_loops(out: Path) -> None:
    for batch in Targets(out, "small").batches(2, pack_length=24):
        segments, inputs = batch["segments"], student_inputs(batch, bos_id=7)
        mask = attention_mask(segments)
        assert mask.shape == (len(segments), 1, 24, 24)
        both = attention_mask(segments, causal=False)
        for r in range(len(segments)):
            for i in range(24):
                for j in range(24):
                    mates = segments[r, i] == segments[r, j] and segments[r, i] > 0
                    assert mask[r, 0, i, j] == ((mates and j <= i) or i == j)
                    assert both[r, 0, i, j] == (mates or i == j)
                begins = i == 0 or segments[r, i] != segments[r, i - 1]
                assert inputs[r, i] == (7 if begins else batch["token_ids"][r, i - 1])
    padded = next(Targets(out, "small").batches(3))
    assert torch.equal(student_inputs(padded, 7)[:, 1:], padded["token_ids"][:, :-1])


# ---- codecs and products beside ----


def padded(values: list[list[Any]], width: int, pad: Any) -> list[list[Any]]:
    return [row + [pad] * (width - len(row)) for row in values]


@pytest.mark.parametrize("seed", [None, 6])
def test_sample_codec_by_hand(made: tuple[Path, Documents], seed: int | None) -> None:
    out, documents = made
    targets = Targets(out, "drawn")
    assert (targets.codec, targets.draws) == ("sample", DRAWS)
    seen = 0
    for batch in targets.batches(5, seed=seed):
        assert not {"logps", "tail_logp", "logz"} & batch.keys()
        assert batch["ids"].shape == batch["counts"].shape and batch["counts"].dtype == torch.int64
        widest = 0
        for r, row in enumerate(batch["doc_row"].tolist()):
            document, start = documents["student/drawn"][row], 0
            for i, size in enumerate(document["sample_sizes"]):
                ids, counts = (document[f"sample_{key}"][start : start + size] for key in ("ids", "counts"))
                rest = [0] * (batch["ids"].shape[2] - size)
                assert batch["ids"][r, i].tolist() == ids + rest and batch["counts"][r, i].tolist() == counts + rest
                start, widest = start + size, max(widest, size)
            assert not batch["counts"][r, len(document["token_ids"]) :].any()
        assert batch["ids"].shape[2] == widest
        assert torch.equal(batch["counts"].sum(-1) == DRAWS, batch["mask"])
        seen += len(batch["lengths"])
    assert seen == 33
    for document, stored in zip(targets.documents(), documents["student/drawn"], strict=True):
        assert document.extra["sample_ids"].tolist() == stored["sample_ids"] and document.logps.shape[1] == 0
        assert document.ids[document.ids >= 0].tolist() == stored["sample_ids"]


def test_keys_of_all_products(made: tuple[Path, Documents]) -> None:
    """Contract of the batch keys: byte ends, loss mask, statistics, hidden states, dtypes and paddings."""
    out, documents = made
    common = {"token_ids", "byte_end", "mask", "loss_mask", "lengths", "left_out", "doc_row"}
    topk = {"gold_logp", "err", "ids", "logps", "tail_logp"}
    assert next(Targets(out, "small").batches(2)).keys() == common | topk
    assert next(Targets(out, "teacher").batches(2)).keys() == common | topk | {*STATISTICS, "roles"}
    assert next(Targets(out, "hidden").batches(2)).keys() == common | {"hidden"}
    for batch in Targets(out, "teacher").batches(5, seed=1):
        for r, row in enumerate(batch["doc_row"].tolist()):
            document, width = documents["teacher"][row], batch["token_ids"].shape[1]
            for key in ("byte_end", *STATISTICS, "roles"):
                assert batch[key][r].tolist() == padded([document[key]], width, 0)[0], key
            wanted = [flag & 64 == 0 for flag in document["flags"]]
            assert batch["loss_mask"][r].tolist() == padded([wanted], width, False)[0]
        assert batch["byte_end"].dtype == batch["roles"].dtype == torch.int64 and batch["logz"].dtype == torch.float32
    for batch in Targets(out, "hidden").batches(5):
        assert batch["hidden"].dtype == torch.bfloat16 and batch["hidden"].shape[2] == HIDDEN
        for r, row in enumerate(batch["doc_row"].tolist()):
            bits = batch["hidden"][r, : int(batch["lengths"][r])].contiguous().view(torch.uint16)
            assert bits.ravel().tolist() == documents["hidden"][row]["hidden"]
            assert not batch["hidden"][r, int(batch["lengths"][r]) :].any()


def test_flag_64_leaves_the_loss_mask(tmp_path: Path) -> None:
    out = tmp_path / "out"
    documents = write_output(out, units=1, products=("student/small",), context=True)["student/small"]
    assert any(flag & 64 for document in documents for flag in document["flags"])
    for batch in Targets(out).batches(4):
        for r, row in enumerate(batch["doc_row"].tolist()):
            wanted = [flag & 64 == 0 for flag in documents[row]["flags"]]
            assert batch["loss_mask"][r, : len(wanted)].tolist() == wanted


@pytest.mark.parametrize("seed", [None, 8])
def test_products_beside_are_the_same_documents(out: Path, seed: int | None) -> None:
    alone = {
        name: {
            row: {key: value[r, : int(batch["lengths"][r])] for key, value in batch.items() if value.ndim > 1}
            for batch in Targets(out, name).batches(4)
            for r, row in enumerate(batch["doc_row"].tolist())
        }
        for name in ("small", "drawn", "teacher", "hidden")
    }
    targets = Targets(out, "small", beside=("drawn", "teacher", "hidden"))
    rows = []
    for batch in targets.batches(5, seed=seed):
        for name in alone:
            own = batch if name == "small" else batch[name]
            assert torch.equal(own["doc_row"], batch["doc_row"])
            for r, row in enumerate(batch["doc_row"].tolist()):
                for key, value in alone[name][row].items():
                    got = own[key][r, : int(own["lengths"][r])]
                    width = min([value.shape[-1], got.shape[-1]]) if value.ndim > 1 else None  # U differs by batch
                    assert torch.equal(got[..., :width], value[..., :width]), (name, key)
        rows += batch["doc_row"].tolist()
    assert sorted(rows) == list(range(33))
    with pytest.raises(ValueError, match="other positions"):
        list(targets.batches(2, pack_length=32))


def test_products_beside_of_the_same_positions_are_packed_alike(tmp_path: Path) -> None:
    write_output(tmp_path / "out", products=("teacher", "hidden"), same_lengths=True)
    for batch in Targets(tmp_path / "out", "teacher", beside=("hidden",)).batches(2, pack_length=32, seed=0):
        assert torch.equal(batch["segments"], batch["hidden"]["segments"]) and batch["hidden"]["hidden"].shape[:2] == (
            batch["segments"].shape
        )


def test_products_beside_of_another_run_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_output(first, products=("student/small", "teacher"))
    write_output(second, products=("student/small", "teacher"), group_rows=5)
    manifests = [json.loads((out / "_engine/manifest.json").read_text()) for out in (first, second)]
    for shard, other in zip(*(manifest["shards"] for manifest in manifests), strict=True):
        shard["files"]["teacher"] = other["files"]["teacher"]
        name = shard["files"]["teacher"]["name"]
        (first / name).write_bytes((second / name).read_bytes())
    (first / "_engine/manifest.json").write_text(json.dumps(manifests[0]))
    with pytest.raises(TargetsError, match="files of different runs"):
        list(Targets(first, "small", beside=("teacher",)).batches(4))
    with pytest.raises(ValueError, match="different products"):
        Targets(first, "small", beside=("student/small",))


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
