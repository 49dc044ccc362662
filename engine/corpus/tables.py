"""The rows of a table as records: .csv and .tsv with the names of their columns in the first row, and Arrow IPC files.

In: a stream of bytes. Out: the numbered rows that are asked for; nothing behind the last one is read.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from typing import IO

import pyarrow as pa

from engine.corpus.columns import Columns, Record
from engine.corpus.values import Problem

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
