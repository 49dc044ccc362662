"""Batches of `Targets`: packing, all codecs, products beside each other, files whose columns do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from engine.reader.collate import attention_mask, packed_layout, padded_layout, student_feed, student_inputs
from engine.reader.targets import Targets, TargetsError
from tests.support.codecs import DRAWS, HIDDEN, STATISTICS, TOP_K, write_output, write_shard

Documents = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Documents]:
    """3 units of 11 documents in row groups of 4, 4 and 3; all products."""
    out = tmp_path_factory.mktemp("loader") / "out"
    return out, write_output(out)


@pytest.fixture
def out(made: tuple[Path, Documents]) -> Path:
    return made[0]


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


def whole(lengths: np.ndarray) -> list[np.ndarray]:
    return [np.zeros(1, np.int64)] * len(lengths)


def test_first_fit_by_hand() -> None:
    lengths = np.array([6, 7, 3, 25, 2])  # rows of 10: [6, 3] [7], then 25 = 10 + 10 + 5
    one = packed_layout(lengths, whole(lengths), 2, 10, None, {}, last=True)
    assert one is not None and (one.consumed, one.piece) == (3, 0)
    assert one.document.tolist() == [0, 2, 1] and one.row.tolist() == [0, 0, 1] and one.column.tolist() == [0, 6, 0]
    two = packed_layout(lengths[3:], whole(lengths[3:]), 2, 10, None, {}, last=True)
    assert two is not None and (two.consumed, two.piece, two.length.tolist()) == (0, 2, [10, 10])
    three = packed_layout(lengths[3:], whole(lengths[3:]), 2, 10, None, {0: 2}, last=True)
    assert three is not None and (three.consumed, three.length.tolist(), three.start.tolist()) == (2, [5, 2], [20, 0])
    assert packed_layout(lengths[3:], whole(lengths[3:]), 2, 10, None, {0: 2}, last=False) is None
    cut = packed_layout(lengths, whole(lengths), 9, 10, 10, {}, last=True)
    assert cut is not None and cut.length.tolist() == [6, 3, 7, 2, 10]  # max_length 10: the rest of 25 is left out


def test_readings_by_hand() -> None:
    lengths, readings = np.array([6, 9]), [np.array([0]), np.array([0, 4])]
    rows = padded_layout(lengths, readings, None)
    assert rows.shape == (3, 6) and rows.consumed == 2 and rows.document.tolist() == [0, 1, 1]
    assert rows.start.tolist() == [0, 0, 4] and rows.length.tolist() == [6, 4, 5]
    assert padded_layout(lengths, readings, 4).length.tolist() == [4, 4, 4]
    packed = packed_layout(lengths, readings, 2, 10, None, {}, last=True)  # [6, 4] [5]
    assert packed is not None and packed.row.tolist() == [0, 0, 1] and packed.column.tolist() == [0, 6, 0]
    assert packed.start.tolist() == packed.origin.tolist() == [0, 0, 4]
    narrow = packed_layout(lengths, readings, 9, 3, None, {}, last=True)
    assert narrow is not None and sorted((narrow.start - narrow.origin).tolist()) == [0, 0, 0, 3, 3, 3]


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
    common = {"token_ids", "byte_end", "mask", "loss_mask", "flags", "lengths", "left_out", "doc_row"}
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
            assert batch["flags"][r].tolist() == padded([document["flags"]], width, 64)[0]
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


def break_sizes(table: pa.Table) -> pa.Table:
    """One unique id fewer in the last document than its lists hold."""
    sizes = table["sample_sizes"].to_pylist()
    sizes[-1][-1] = (sizes[-1][-1] or 2) - 1
    return replaced(table, "sample_sizes", sizes)


def cut_a_list(table: pa.Table) -> pa.Table:
    """A value too few in a document and one too many in the next: the sum is right."""
    values = table["topk_logps"].to_pylist()
    values[1].append(values[0].pop())
    return replaced(table, "topk_logps", values)


def with_a_null(table: pa.Table) -> pa.Table:
    values = table["gold_logp"].to_pylist()
    values[2][0] = None
    new = pa.array(values, pa.list_(pa.float32()))
    return table.set_column(table.schema.get_field_index("gold_logp"), "gold_logp", new)


def without_the_tail(table: pa.Table) -> pa.Table:
    return table.drop_columns(["tail_logp"])


def other_flags(table: pa.Table) -> pa.Table:
    return table.set_column(table.schema.get_field_index("flags"), "flags", table["flags"].cast(pa.list_(pa.float64())))


def replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


@pytest.mark.parametrize(
    ("product", "change", "text"),
    [
        ("student/drawn", break_sizes, r"row group 2: sample_(ids|counts) has \d+ values up to document 3"),
        ("student/small", cut_a_list, "row group 0: topk_logps has .* up to document 1 of the row group, wanted"),
        ("student/small", with_a_null, "row group 0: gold_logp has 1 nulls"),
        ("student/small", other_flags, r"flags has the type list<.*: double>, wanted list<item: uint8>"),
        ("student/small", without_the_tail, "no columns tail_logp, which the codec 'topk' has"),
    ],
)
def test_a_file_whose_columns_do_not_fit_is_refused(
    tmp_path: Path, product: str, change: Callable[[pa.Table], pa.Table], text: str
) -> None:
    """With right size, digest and footer: only the columns themselves can tell."""
    out = tmp_path / "out"
    write_output(out, units=1, products=(product,))
    manifest = json.loads((out / "_engine/manifest.json").read_text())
    record = manifest["shards"][0]["files"][product]
    table = change(pq.ParquetFile(out / record["name"]).read())
    manifest["shards"][0]["files"][product] = write_shard(out, record["name"], table, product, 0, 4)
    (out / "_engine/manifest.json").write_text(json.dumps(manifest))
    targets = Targets(out, product)
    for read in (lambda: list(targets.documents()), lambda: list(targets.batches(4, seed=0, pack_length=50))):
        with pytest.raises(TargetsError, match=text):
            read()


def test_files_with_other_columns_than_their_neighbours_are_refused(tmp_path: Path) -> None:
    """Unit 1 without statistics, as if its file came from a run without them."""
    out = tmp_path / "out"
    write_output(out, units=2, products=("teacher",))
    manifest = json.loads((out / "_engine/manifest.json").read_text())
    name = manifest["shards"][1]["files"]["teacher"]["name"]
    table = pq.ParquetFile(out / name).read().drop_columns(["logz", "roles"])
    manifest["shards"][1]["files"]["teacher"] = write_shard(out, name, table, "teacher", 1, 4)
    (out / "_engine/manifest.json").write_text(json.dumps(manifest))
    for seed in (None, 0):
        with pytest.raises(TargetsError, match="differ in the columns logz, roles"):
            list(Targets(out).batches(4, seed=seed))


def test_a_begin_token_that_is_there_is_fed_once() -> None:
    """Against loops: every row's logits have read exactly the tokens before it, behind one begin token."""
    bos, pad = 7, 0
    documents = [([7, 1, 2, 3], 2), ([5, 6, 7], 0), ([7], 1), ([7, 7, 4], 1), ([7, 3], 0)]  # (tokens, of these context)
    tokens, asked = torch.full((5, 4), pad), torch.zeros(5, 4, dtype=torch.bool)
    for b, (ids, context) in enumerate(documents):
        tokens[b, : len(ids)] = torch.tensor(ids)
        asked[b, context : len(ids)] = True
    packed = {
        "token_ids": tokens.reshape(1, -1),
        "loss_mask": asked.reshape(1, -1),
        "segments": torch.tensor(
            [[b + 1 if i < len(ids) else 0 for b, (ids, _) in enumerate(documents) for i in range(4)]]
        ),
    }
    for batch in ({"token_ids": tokens, "loss_mask": asked}, packed):
        inputs, at = (found.reshape(5, 4) for found in student_feed(batch, bos))
        for b, (ids, context) in enumerate(documents):
            own = context > 0 and ids[0] == bos
            for i in range(int(own), len(ids)):
                column = int(at[b, i]) - (4 * b if batch is packed else 0)
                read = inputs[b, : column + 1].tolist()
                assert read == (ids[:i] if own else [bos, *ids[:i]])
        with pytest.raises(ValueError, match="student_feed"):
            student_inputs(batch, bos)
        assert torch.equal(student_inputs(batch, 9), student_feed(batch, 9)[0])
