"""A shard, the Parquet file of one product of one unit: rows -> rounded rows -> bytes, reopened and compared; and back.

Shapes: N = positions of the table (sum of T over its documents).
Nothing is written to a disk here: engine/dataset/posix.py makes the bytes visible, engine/dataset/commit.py says when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.dataset.layout import REMAKE
from schemas.errors import IdentityError, OutputError
from schemas.manifest import COLUMNS, Plan, canonical_json
from schemas.target import (
    BOUND_COLUMNS,
    COARSER,
    DICTIONARY_COLUMNS,
    LOGP_COLUMNS,
    MANTISSA_BITS,
    SCHEMA_NAME,
    SCHEMA_VERSION,
    WHOLE_COLUMNS,
)

MAX_GROUP_ROWS = 64
"""Documents per row group at most: the unit of streaming and of shuffling."""
MAX_GROUP_BYTES = 48 << 20
"""Raw (uncompressed) bytes per row group at most, unless one document alone is larger."""
_COARSEST = 2.0**-6
"""No log-probability is stored coarser than in steps of this many nats, so that none is off by more than 2**-7 = 0.008."""

CALIBRATED_BY = "targetsmith.continuations"
"""Key of a footer: sha256 of the calibration file that open mass in the unit was placed by."""
_WRITER: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "write_statistics": ["doc_id", "doc_row"],
    "write_page_checksum": True,
    "write_page_index": True,
}


def round_nearest(values: npt.ArrayLike, bits: int = MANTISSA_BITS) -> npt.NDArray[np.float32]:
    """float32 values with so many mantissa bits, to nearest, ties to even. Same shape.

    -inf and 0 stay as they are, order is kept (x <= y gives round(x) <= round(y)), and a second call changes nothing. NaN
    is refused with IdentityError.
    """
    raw, dropped = _bits_of(np.asarray(values, dtype=np.float32), "a value"), 23 - bits
    odd = (raw >> np.uint32(dropped)) & np.uint32(1)
    half = np.uint32((1 << (dropped - 1)) - 1)
    return ((raw + half + odd) & _mask(dropped)).view(np.float32)


def round_logps(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """`round_nearest` to MANTISSA_BITS, and beyond 32 nats in steps of 2**-6: the error is at most 2**-11 |x| and at most
    2**-7."""
    single = np.asarray(values, dtype=np.float32)
    rounded = round_nearest(single)
    far = np.isfinite(single) & (np.abs(single) > 32)
    rounded[far] = np.rint(single[far] / _COARSEST) * _COARSEST
    return rounded


def round_up(values: npt.ArrayLike, bits: int = MANTISSA_BITS) -> npt.NDArray[np.float32]:
    """float32 values in [0, 1] with so many mantissa bits, never smaller than the input; same shape.

    For upper bounds (`err`, `pruned_mass`), which stay true that way. Input outside [0, 1] and NaN: IdentityError.
    """
    wanted = np.asarray(values)
    single = wanted.astype(np.float32)
    single = np.where(single < wanted, np.nextafter(single, np.float32(np.inf)), single)  # float64 rounded down
    if single.size and not (single.min() >= 0 and wanted.max() <= 1):
        raise IdentityError(
            f"an upper bound on a probability lies in [{np.min(wanted)}, {np.max(wanted)}], wanted within [0, 1]: "
            "a bug in the scorer; please report it with the run file"
        )
    raw, dropped = _bits_of(single + np.float32(0), "an upper bound"), 23 - bits  # + 0 turns -0 into 0
    return ((raw + np.uint32((1 << dropped) - 1)) & _mask(dropped)).view(np.float32)


def round_rows(table: pa.Table) -> pa.Table:
    """The table at stored precision (schemas/target.py): bounds rounded up, other floats to nearest. Idempotent."""
    for column in table.schema:
        if not (pa.types.is_list(column.type) and pa.types.is_floating(column.type.value_type)):
            continue
        if column.name not in WHOLE_COLUMNS:
            table = _replace(table, column, rounded(column.name, flat(table, column.name)))
    return table


def rounded(column: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The values of a float column at stored precision. IdentityError for NaN, and for bounds outside [0, 1]."""
    bits = COARSER.get(column, MANTISSA_BITS)
    if column in LOGP_COLUMNS:
        return round_logps(values)
    return round_up(values, bits) if column in BOUND_COLUMNS else round_nearest(values, bits)


def rounding_error_nats(before: pa.Table, after: pa.Table) -> float:
    """The largest change of a finite log-probability between two tables of the same rows."""
    worst = 0.0
    for name in LOGP_COLUMNS:
        if name in before.schema.names:
            given = flat(before, name).astype(np.float64)
            finite = np.isfinite(given)
            moved = np.abs(given[finite] - flat(after, name)[finite])
            worst = max(worst, float(moved.max(initial=0.0)))
    return worst


def flat(table: pa.Table, name: str) -> np.ndarray:
    """All elements of a list column, [N] for those with one value per position.

    Chunk by chunk here and below: as one Arrow array a column has at most 2**31 - 1 elements, and a unit's hidden states may
    be more (524,288 tokens of 4,096 numbers).
    """
    column = table.column(name)
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return (
        parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, column.type.value_type.to_pandas_dtype()), *parts])
    )


def lengths_of(table: pa.Table, name: str = "token_ids") -> npt.NDArray[np.int64]:
    """Elements per document, [rows] int64."""
    parts = [np.diff(chunk.offsets.to_numpy()) for chunk in table.column(name).chunks]
    return np.concatenate([np.empty(0, np.int64), *parts])


def table_to_parquet_bytes(table: pa.Table, metadata: Mapping[str, str], groups: Sequence[tuple[int, int]]) -> bytes:
    """The rows as the bytes of one Parquet file with `metadata` in its footer; reopened and compared before return.

    groups: (first row, number of rows) of each row group. zstd 3; floats BYTE_STREAM_SPLIT (they shrink by half against
    dictionary encoding), integers in encodings that every reader knows; page checksums, page index. Equal tables give equal
    bytes. Raises OutputError when what is read back is not what was written (broken memory).
    """
    sink = pa.BufferOutputStream()
    # Never `with ParquetWriter(...)`: leaving it by an exception writes a valid footer over a part of the rows.
    writer = pq.ParquetWriter(sink, table.schema, **_WRITER, **encodings(table.schema))
    for start, count in groups:
        writer.write_table(table.slice(start, count), row_group_size=count)
    writer.add_key_value_metadata(dict(metadata))
    writer.close()
    data = sink.getvalue()
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as reopened:
        back, footer = Shard(reopened, {}).read(), _text_of(reopened)
    stored = {key: footer.get(key) for key in metadata}
    if not back.equals(table) or not back.schema.equals(table.schema) or stored != dict(metadata):
        raise OutputError(
            f"a shard of {table.num_rows} rows read back differently from what was written; nothing was published. "
            "Suspect the memory of this machine: run again, elsewhere if it comes back"
        )
    return data.to_pybytes()


def footer_of(
    plan: Plan,
    unit: int,
    product: str,
    rows: int,
    positions: int,
    quarantined: int,
    stats: Mapping[str, float],
    calibration_sha256: str | None = None,
) -> dict[str, str]:
    """The key-value metadata of a file (docs/format.md, section 4)."""
    facts = plan.products[product]
    values = {
        "schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": plan.fingerprint,
        "product": product,
        "unit": unit,
        "units": len(plan.units),
        "rows": rows,
        "positions": positions,
        "quarantined": quarantined,
        "codec": facts.codec,
        "top_k": facts.top_k,
        "draws": facts.draws,
        "hidden_size": facts.hidden_size,
        "vocab_size": facts.vocab_size,
        "tokenizer": facts.tokenizer,
        "tokenizer_hash": facts.tokenizer_hash,
        "bos_id": "" if facts.bos_id is None else facts.bos_id,
        "eos_id": "" if facts.eos_id is None else facts.eos_id,
        "regime": facts.regime,
        "semantics": facts.semantics,
        "mantissa_bits": MANTISSA_BITS,
        "logp_unit": "nats",
        "columns": canonical_json({name: COLUMNS[name] for name in facts.schema_of_rows.names}),
        "stats": canonical_json({key: float(value) for key, value in stats.items()}),
    }
    calibrated_by = {} if calibration_sha256 is None else {CALIBRATED_BY: calibration_sha256}
    return {f"targetsmith.{key}": str(value) for key, value in values.items()} | calibrated_by


@dataclass(frozen=True, slots=True)
class Shard:
    """A Parquet file of an output, open for reading."""

    file: pq.ParquetFile
    footer: dict[str, str]  # its key-value metadata (docs/format.md, section 4)

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """All rows, a chunk for each row group: `pq.ParquetFile.read` would join them, and fail beyond 2**31 - 1 elements."""
        groups = [self.file.read_row_group(group, columns) for group in range(self.file.num_row_groups)]
        return pa.concat_tables(groups) if groups else self.file.read(columns)

    def statistics(self, group: int, column: str) -> tuple[Any, Any] | None:
        """(least, largest) value of a column in a row group as the footer says; None where it does not."""
        chunks = self.file.metadata.row_group(group)
        for index in range(chunks.num_columns):
            if chunks.column(index).path_in_schema == column:
                known = chunks.column(index).statistics
                return (known.min, known.max) if known is not None and known.has_min_max else None
        return None


@contextmanager
def open_shard(data: BinaryIO | bytes, place: str) -> Iterator[Shard]:
    """The one way to open a Parquet file of an output; page checksums are compared while it is read.

    data: its bytes, or the file as a store opens it. place: how messages name it. Raises OutputError for a file that cannot
    be opened, and for any of Arrow's and the system's errors inside the `with`.
    """
    source = pa.BufferReader(data) if isinstance(data, bytes) else data
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            yield Shard(file, _text_of(file))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:  # KeyError: a column that is not there
        raise OutputError(f"{place}: damaged ({' '.join(str(error).split())}); {REMAKE}") from error


def _text_of(file: pq.ParquetFile) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}


def row_groups(tables: Sequence[pa.Table]) -> list[tuple[int, int]]:
    """(first row, number of rows) of each row group, in order, the same for all products of a unit, so that a reader finds a
    document's rows of every product in the group of the same number. The largest product decides."""
    raw = np.max([_raw_bytes(table) for table in tables], axis=0)
    groups: list[tuple[int, int]] = []
    start, size = 0, 0
    for row, weight in enumerate(raw):
        if row > start and (row - start >= MAX_GROUP_ROWS or size + weight > MAX_GROUP_BYTES):
            groups.append((start, row - start))
            start, size = row, 0
        size += int(weight)
    return [*groups, (start, len(raw) - start)] if len(raw) > start else groups


def _raw_bytes(table: pa.Table) -> npt.NDArray[np.int64]:
    """Uncompressed bytes of each document in memory."""
    raw = pc.call_function("binary_length", [table.column("text")]).to_numpy().astype(np.int64)
    for column in table.schema:
        if pa.types.is_list(column.type):
            raw = raw + lengths_of(table, column.name) * max(1, column.type.value_type.bit_width // 8)
    return raw


def encodings(schema: pa.Schema) -> dict[str, Any]:
    """Arguments of `pq.ParquetWriter`: how each column is encoded. Of numbers only floats are BYTE_STREAM_SPLIT: DuckDB 1.x and
    Spark up to 4.0 read no integers so."""
    values = {column.name: column.type.value_type for column in schema if pa.types.is_list(column.type)}
    dictionary = [f"{name}.list.element" for name in values if name in DICTIONARY_COLUMNS]
    if "source" in schema.names:
        dictionary.append("source")
    return {
        "use_dictionary": dictionary,
        "column_encoding": {
            f"{name}.list.element": "BYTE_STREAM_SPLIT" if pa.types.is_floating(kind) else "DELTA_BINARY_PACKED"
            for name, kind in values.items()
            if name not in DICTIONARY_COLUMNS and not pa.types.is_boolean(kind)
        },
    }


def _mask(dropped: int) -> np.uint32:
    return np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)


def _bits_of(values: npt.NDArray[np.float32], what: str) -> npt.NDArray[np.uint32]:
    if np.isnan(values).any():
        raise IdentityError(f"{what} is NaN ({int(np.isnan(values).sum())} of {values.size}): nothing was published")
    return values.view(np.uint32)


def _replace(table: pa.Table, field: pa.Field, values: npt.NDArray[np.float32]) -> pa.Table:
    chunks, first = [], 0
    for chunk in table.column(field.name).chunks:
        offsets = chunk.offsets.to_numpy()
        offsets, stop = offsets - offsets[0], first + int(offsets[-1] - offsets[0])
        chunks.append(
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values[first:stop]), type=field.type)
        )
        first = stop
    rebuilt = pa.chunked_array(chunks, type=field.type)
    return table.set_column(table.schema.get_field_index(field.name), field, rebuilt)
