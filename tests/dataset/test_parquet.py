"""Rounding against its definition, and the bytes of a shard, written and opened."""

from __future__ import annotations

import io
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.beam.calibration_file import schema_of
from engine.dataset import parquet
from engine.dataset.layout import REMAKE
from engine.dataset.parquet import (
    flat,
    lengths_of,
    open_shard,
    round_logps,
    round_nearest,
    round_rows,
    round_up,
    rounding_error_nats,
    row_groups,
    table_to_parquet_bytes,
)
from schemas.errors import IdentityError, OutputError
from schemas.target import MANTISSA_BITS
from tests.support.codecs import product_table
from tests.support.tables import targets_table

# ---- rounding --------------------------------------------------------------------------------------------------------


def round_slowly(value: float, bits: int = MANTISSA_BITS) -> float:
    """Round to bits + 1 significant binary digits, ties to even, by the definition; beyond 32 to steps of 2**-6."""
    if value == 0 or np.isinf(value):
        return value
    if abs(value) > 32 and bits == MANTISSA_BITS:
        return float(np.round(np.float64(np.float32(value)) * 64) / 64)
    fraction, exponent = np.frexp(np.float64(np.float32(value)))
    scale = 2.0 ** (bits + 1)
    return float(np.ldexp(np.round(fraction * scale) / scale, exponent))  # np.round: ties to even


normal_logps = st.floats(-1e4, 0, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)


@given(st.lists(normal_logps | st.just(-np.inf), max_size=50))
def test_round_logps_is_the_definition(values: list[float]) -> None:
    rounded = round_logps(np.array(values, np.float32))
    assert rounded.tolist() == [round_slowly(value) for value in values]
    assert round_logps(rounded).tolist() == rounded.tolist()
    order = np.sort(np.array(values, np.float32))
    assert (np.diff(round_logps(order)[np.isfinite(order)]) >= 0).all()


@given(st.lists(st.floats(0, 1, width=32).filter(lambda x: x == 0 or x > 1e-30), max_size=50), st.integers(3, 12))
def test_round_nearest_is_the_definition(values: list[float], bits: int) -> None:
    rounded = round_nearest(np.array(values, np.float32), bits)
    assert rounded.tolist() == [round_slowly(value, bits) for value in values]


def test_rounding_error_is_below_a_hundredth_of_a_nat() -> None:
    values = np.random.default_rng(0).uniform(-200, 0, 1_000_000).astype(np.float32)
    error = np.abs(round_logps(values) - values)
    assert error.max() <= 2.0**-7
    assert (error <= 2.0**-11 * np.abs(values)).all()
    assert error.max() > 0.005  # the bound is nearly met: the rounding does happen


@given(st.lists(st.floats(0, 1), max_size=50))
def test_round_up_never_shrinks_and_never_exceeds_one(values: list[float]) -> None:
    wanted = np.array(values, np.float64)
    rounded = round_up(wanted)
    assert (rounded >= wanted).all() and (rounded <= 1).all()
    assert (rounded <= wanted * (1 + 2.0**-MANTISSA_BITS) + 2.0**-126).all()
    assert np.array_equal(round_up(rounded), rounded)


@pytest.mark.parametrize("bad", [-1e-9, 1.0000001, np.nan])
def test_round_up_refuses_what_is_no_probability(bad: float) -> None:
    with pytest.raises(IdentityError):
        round_up(np.array([0.5, bad]))


# ---- bytes of a shard ------------------------------------------------------------------------------------------------


def test_round_trip_with_large_ids_and_the_footer() -> None:
    rng = np.random.default_rng(1)
    table = round_rows(targets_table(rng, [3, 200, 1, 90] * 40, top_k=64, vocab_size=262_144))
    data = table_to_parquet_bytes(table, {"targetsmith.unit": "7"}, row_groups([table]))
    file = pq.ParquetFile(pa.BufferReader(data))
    assert file.read().equals(table)
    assert np.max(file.read()["topk_ids"].combine_chunks().flatten().to_numpy()) > 262_000
    assert file.metadata.metadata[b"targetsmith.unit"] == b"7"
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= 64
    encodings = {
        file.metadata.row_group(0).column(i).path_in_schema: file.metadata.row_group(0).column(i).encodings
        for i in range(file.metadata.num_columns)
    }
    assert "BYTE_STREAM_SPLIT" in encodings["topk_logps.list.element"]
    assert table_to_parquet_bytes(table, {"targetsmith.unit": "7"}, row_groups([table])) == data


def test_large_documents_get_row_groups_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 1 << 20)
    table = round_rows(targets_table(np.random.default_rng(1), [700] * 5 + [5000, 700], top_k=64, vocab_size=2_000))
    file = pq.ParquetFile(pa.BufferReader(table_to_parquet_bytes(table, {}, row_groups([table]))))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 1, 1, 1]
    assert file.read().equals(table)


def test_page_checksums_catch_every_flipped_bit() -> None:
    table = round_rows(targets_table(np.random.default_rng(2), [100] * 5, top_k=8, vocab_size=500))
    data = table_to_parquet_bytes(table, {}, row_groups([table]))
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(7)
    assert column.path_in_schema == "topk_logps.list.element"
    rng = np.random.default_rng(3)
    for at in rng.integers(column.data_page_offset + 40, column.data_page_offset + column.total_compressed_size, 50):
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(OSError):
            pq.ParquetFile(pa.BufferReader(bytes(broken)), page_checksum_verification=True).read()


def test_the_rounding_error_that_is_reported_is_the_largest() -> None:
    table = targets_table(np.random.default_rng(7), [50, 30], top_k=8, vocab_size=500)
    stored = round_rows(table)
    worst = 0.0
    for name in ("topk_logps", "tail_logp", "gold_logp"):
        for before, after in zip(table[name].to_pylist(), stored[name].to_pylist(), strict=True):
            worst = max([worst, *(abs(a - b) for a, b in zip(before, after, strict=True) if a > -np.inf)])
    assert rounding_error_nats(table, stored) == pytest.approx(worst, abs=1e-12) and 0 < worst <= 2.0**-7


def test_columns_beyond_the_reach_of_one_arrow_array() -> None:
    """2**31 elements are too many for one list array; hidden states of a unit may be more. Nulls take no memory."""
    many = 2**30
    chunk = pa.ListArray.from_arrays(pa.array([0, 1, many], pa.int32()), pa.nulls(many))
    table = pa.table({"hidden": pa.chunked_array([chunk] * 3)})
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        table.column("hidden").combine_chunks()
    assert lengths_of(table, "hidden").tolist() == [1, many - 1] * 3


def test_chunks_change_nothing() -> None:
    table = round_rows(targets_table(np.random.default_rng(0), [3, 1, 4, 2], top_k=8, vocab_size=1000))
    parts = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1, 3), table.slice(0, 0)])
    assert parts.column("topk_logps").num_chunks > 1
    for name in ("topk_logps", "scored", "token_ids"):
        assert np.array_equal(flat(parts, name), flat(table, name))
        assert np.array_equal(lengths_of(parts, name), lengths_of(table, name))
    assert round_rows(parts).equals(table)
    groups = row_groups([parts])
    assert table_to_parquet_bytes(parts, {}, groups) == table_to_parquet_bytes(table, {}, groups)


# ---- opening ---------------------------------------------------------------------------------------------------------


def test_an_open_shard_gives_its_rows_and_footer() -> None:
    table = round_rows(targets_table(np.random.default_rng(0), [3, 1, 4, 2], top_k=8, vocab_size=1000))
    data = table_to_parquet_bytes(table, {"targetsmith.unit": "7"}, [(0, 3), (3, 1)])
    for source in (data, io.BytesIO(data)):
        with open_shard(source, "here") as shard:
            assert shard.footer["targetsmith.unit"] == "7" and shard.file.num_row_groups == 2
            assert shard.read().equals(table) and shard.read(["doc_row", "text"]).equals(
                table.select(["doc_row", "text"])
            )
    with open_shard(table_to_parquet_bytes(table.slice(0, 0), {}, []), "empty") as shard:
        assert shard.read().num_rows == 0 and shard.read().schema.equals(table.schema)


def test_any_damage_of_a_shard_is_one_message_with_its_place_and_advice() -> None:
    table = round_rows(targets_table(np.random.default_rng(2), [100] * 5, top_k=8, vocab_size=500))
    data = table_to_parquet_bytes(table, {}, row_groups([table]))
    at = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(7).data_page_offset + 60
    flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    for broken in (b"", b"no Parquet", data[:-20], data[20:], flipped):
        with pytest.raises(OutputError) as caught, open_shard(broken, "s3://bucket/out/file") as shard:
            shard.read()
        assert str(caught.value).startswith("s3://bucket/out/file: damaged (") and str(caught.value).endswith(REMAKE)


def test_statistics_of_a_row_group_are_those_of_its_rows() -> None:
    table = round_rows(targets_table(np.random.default_rng(0), [3, 1, 4, 2], top_k=8, vocab_size=1000, first_row=9))
    with open_shard(table_to_parquet_bytes(table, {}, [(0, 3), (3, 1)]), "here") as shard:
        assert [shard.statistics(group, "doc_row") for group in (0, 1)] == [(9, 11), (12, 12)]
        assert shard.statistics(1, "doc_id") == ("corpus.jsonl#12", "corpus.jsonl#12")
        assert shard.statistics(0, "text") is None and shard.statistics(0, "nothing") is None


@pytest.mark.parametrize("product", ["student/small", "teacher", "hidden", "student/drawn", "continuations"])
def test_every_reader_of_parquet_reads_every_column(product: str, tmp_path: Path) -> None:
    """DuckDB 1.x and Spark 4.0 know BYTE_STREAM_SPLIT of floats alone. The installed DuckDB, polars and pandas are asked."""
    if product == "continuations":
        row = {
            "token": 3,
            "ids": [7, 1 << 20, 5],
            "probs": [0.5, 0.3, 0.1],
            "special": 0.1,
            "heads/student/x": [0.25, 0.75],
        }
        table = pa.Table.from_pylist([row, {**row, "token": 4}], schema=schema_of(["student/x"]))
        groups = [(0, 2)]
    else:
        table = product_table(product, np.random.default_rng(3), [40, 3, 90], 0)
        groups = row_groups([table])
    file = tmp_path / "a.parquet"
    file.write_bytes(table_to_parquet_bytes(table, {}, groups))
    group = pq.ParquetFile(file).metadata.row_group(0)
    for column in (group.column(i) for i in range(group.num_columns)):
        assert "BYTE_STREAM_SPLIT" not in column.encodings or column.physical_type in ("FLOAT", "DOUBLE")
    wanted = table.to_pydict()
    assert duckdb.read_parquet(str(file)).to_arrow_table().to_pydict() == wanted
    assert polars.read_parquet(file).to_arrow().to_pydict() == wanted
    frame = pandas.read_parquet(file)
    for name, values in wanted.items():
        assert [v.tolist() if isinstance(v, np.ndarray) else v for v in frame[name]] == values
