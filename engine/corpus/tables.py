"""The rows of a table as records: .csv and .tsv with the names of their columns in the first row, Parquet and Arrow IPC files.

In: a stream of bytes. Out: the numbered rows that are asked for; nothing behind the last one is read.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from engine.corpus.columns import Columns, Record
from engine.corpus.values import Problem

BATCH_ROWS = 128  # rows of Arrow data turned into Python objects at a time; documents may be large

Span = tuple[int, int]
"""Rows `start <= row < stop` of a file."""

_FILE_MAGIC = b"ARROW1"
"""First bytes of an Arrow file that can be read from its end; `datasets` writes streams, which begin otherwise."""


def delimited_rows(stream: IO[bytes], separator: str, columns: Columns, where: str) -> Iterator[list[str] | Problem]:
    """The rows behind the first one, as values in the order of `header`; a Problem for one with more or fewer of them.

    First comes the header itself. Fields in double quotes may hold line ends. Raises csv.Error for what is no table, CorpusError
    where a column is missing.
    """
    csv.field_size_limit(sys.maxsize)
    # bytes that are not UTF-8 become lone surrogates, so that only the record that holds them is refused
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=separator, strict=True)
    header = next(rows, [])
    columns.check(header, where)
    yield header
    for row in rows:
        if not row:
            continue  # a blank line
        same = len(row) == len(header)
        yield row if same else Problem("malformed_row", f"{len(row)} fields, {len(header)} in the first row")


def record_of_row(row: int, header: list[str], values: list[str] | Problem, columns: Columns) -> Record:
    """A row as a record."""
    if isinstance(values, Problem):
        return Record.bad(row, f"row {row}", values)
    return columns.of_object(row, f"row {row}", dict(zip(header, values, strict=True)))


def arrow_batches(stream: IO[bytes]) -> Iterable[pa.RecordBatch]:
    """The batches of an Arrow IPC file, or stream. Raises pa.ArrowException."""
    head = stream.read(len(_FILE_MAGIC))
    stream.seek(0)
    if head != _FILE_MAGIC:
        yield from pa.ipc.open_stream(stream)
        return
    file = pa.ipc.open_file(stream)
    for number in range(file.num_record_batches):
        yield file.get_batch(number)


def parquet_rows(stream: IO[bytes], where: str, columns: Columns, spans: Sequence[Span]) -> Iterator[Record]:
    """Row groups outside `spans` are not read at all."""
    # Damage can decompress into wrong text without an error; pages that carry a checksum are checked.
    with pq.ParquetFile(stream, page_checksum_verification=True) as file:
        columns.check(file.schema_arrow.names, where)
        names = columns.there(file.schema_arrow.names)
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if any(start < last and first < stop for start, stop in spans):
                row = first
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names):
                    yield from _of_batch(batch, row, columns, spans)
                    row += batch.num_rows
            first = last


def arrow_rows(stream: IO[bytes], where: str, columns: Columns, spans: Sequence[Span]) -> Iterator[Record]:
    row, stop = 0, max((stop for _, stop in spans), default=0)
    for whole in arrow_batches(stream):
        if not row:
            columns.check(whole.schema.names, where)
        for at in range(0, whole.num_rows, BATCH_ROWS):
            batch = whole.slice(at, BATCH_ROWS)
            yield from _of_batch(batch, row, columns, spans)
            row += batch.num_rows
        if row >= stop:
            return


def _of_batch(batch: pa.RecordBatch, row: int, columns: Columns, spans: Sequence[Span]) -> Iterator[Record]:
    """The rows of a batch that lie in `spans`; `row` is the number of its first one."""
    for start, stop in spans:
        low, high = max(start, row), min(stop, row + batch.num_rows)
        if low < high:
            yield from columns.of_arrow(low, batch.slice(low - row, high - low))


def most_rows(stream: IO[bytes]) -> int:
    """Rows of the largest row group of a Parquet file: what has to be fetched for any of them."""
    with pq.ParquetFile(stream) as file:
        return max((file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)), default=0)
