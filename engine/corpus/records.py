"""The records of one corpus file, as a stream: jsonl, json, csv, tsv, parquet, Arrow, tar or plain text, each also compressed.

A record that cannot be read is a record all the same: it comes with a `problem` and the stream goes on. Only a file
that cannot be read any further raises (CorpusError, with the place reached). At no time is a whole file in memory, with
three exceptions that lie in the formats: a .json file, a plain text file without delimiter (one document), and one row
group of a Parquet file.

Rows are numbered from 0 within the file; places count lines from 1, as editors do, and rows from 0, as doc ids do.
"""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import IO, TypeVar, cast

import pyarrow as pa

from engine.corpus.archives import samples
from engine.corpus.columns import Columns, Record
from engine.corpus.compressed import CHUNK_BYTES, DAMAGE, open_bytes, open_seekable
from engine.corpus.encodings import in_utf8
from engine.corpus.json_files import START, Mark, Marks, json_lines, json_list, json_record
from engine.corpus.source import Source
from engine.corpus.tables import Span, arrow_rows, delimited_rows, parquet_rows, record_of_row
from engine.corpus.values import Problem, decode
from schemas.errors import CorpusError
from schemas.runfile import CorpusConfig

T = TypeVar("T")
_DAMAGE = (*DAMAGE, pa.ArrowException, csv.Error, tarfile.TarError, UnicodeError)
"""What the readers below raise for damaged bytes."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How records are taken from files, as [corpus] says."""

    columns: Columns
    delimiter: str | None
    encoding: str  # of text, JSON and delimited tables without a byte order mark

    @classmethod
    def of(cls, config: CorpusConfig) -> Reading:
        return cls(Columns.of(config), config.delimiter, config.encoding)


def read_records(
    source: Source,
    reading: Reading,
    spans: Sequence[Span],
    *,
    stream: IO[bytes] | None = None,
    marks: Marks | None = None,
    begin: Mark = START,
) -> Generator[Record, None, None]:
    """The records of `source` in the rows of `spans` (rising, disjoint), in order; fewer when the file ends before. stream: its
    bytes, where they are open already. marks: filled for a plain file of lines; begin: one of these, where reading begins.

    Raises CorpusError, with the place reached, when the file cannot be opened, decompressed or parsed.
    """
    reached, columns = "before its first record", reading.columns
    try:
        with ExitStack() as opened:
            raw = opened.enter_context(stream if stream is not None else source.open())

            def text() -> IO[bytes]:
                return opened.enter_context(in_utf8(open_bytes(raw, source.codec), reading.encoding))

            match source.format:
                case "parquet" | "arrow":
                    seekable = opened.enter_context(open_seekable(raw, source.codec))
                    rows = parquet_rows if source.format == "parquet" else arrow_rows
                    records = rows(seekable, source.name, columns, spans)
                case "csv" | "tsv":
                    lines = delimited_rows(text(), "," if source.format == "csv" else "\t", columns, source.name)
                    header = cast(list[str], next(lines))
                    records = (record_of_row(row, header, line, columns) for row, line in _picked(lines, spans))
                case "tar":
                    packed = opened.enter_context(open_bytes(raw, source.codec))
                    records = (_sample_record(row, one, columns) for row, one in _picked(samples(packed), spans))
                case "json":
                    items = json_list(text().read(), source.name)
                    records = (
                        columns.of_object(row, f"row {row}", items[row]) for row, _ in _picked(range(len(items)), spans)
                    )
                case "jsonl":
                    content = text()
                    if content.seekable():
                        content.seek(begin.offset)
                    elif begin.offset:  # of a server that gives whole files only
                        begin = START
                    lines = json_lines(content, marks if content is raw else None, begin)
                    records = (json_record(row, *line, columns) for row, line in _picked(lines, spans, begin.row))
                case _:
                    delimiter = None if reading.delimiter is None else reading.delimiter.encode()
                    pieces = _picked(_text_pieces(text(), delimiter), spans)
                    records = (_text_record(row, line, raw) for row, (line, raw) in pieces)
            for record in records:
                reached = f"after {record.place}"
                yield record
    except FileNotFoundError as error:
        raise CorpusError(f"{source.name}: the file is gone. Put it back, or correct [corpus] paths.") from error
    except PermissionError as error:
        raise CorpusError(f"{source.name}: no permission to read it. Allow reading (chmod +r).") from error
    except _DAMAGE as error:
        what = " ".join(filter(None, (source.codec, source.format)))
        raise CorpusError(
            f"{source.name}: damaged {reached}: {error}. Wanted a complete {what} file. Fetch or write the file again, "
            f"or take it out of [corpus] paths."
        ) from error


def _picked(items: Iterable[T], spans: Sequence[Span], row: int = 0) -> Iterator[tuple[int, T]]:
    """The items in the rows of `spans`, numbered; stops reading after the last span. row: number of the first item."""
    iterator = iter(items)
    for start, stop in spans:
        for item in islice(iterator, start - row, stop - row):
            yield start, item
            start += 1
        if start < stop:
            return
        row = stop


# ==== plain text


def _text_pieces(stream: IO[bytes], delimiter: bytes | None) -> Iterator[tuple[int, bytes]]:
    """(line number from 1 at which it begins, bytes) of each document. What follows the last delimiter counts only if
    it is more than white space, so that a delimiter may also close the last document."""
    if delimiter is None:
        if whole := stream.read():
            yield 1, whole
        return
    buffer, line, searched = bytearray(), 1, 0
    while chunk := stream.read(CHUNK_BYTES):
        buffer += chunk
        start = 0
        while (hit := buffer.find(delimiter, max(start, searched))) >= 0:
            yield line, bytes(buffer[start:hit])
            line += buffer.count(b"\n", start, hit + len(delimiter))
            start = hit + len(delimiter)
        del buffer[:start]
        searched = max(0, len(buffer) - len(delimiter) + 1)  # a delimiter may lie across two chunks
    if buffer.strip():
        yield line, bytes(buffer)


def _text_record(row: int, line: int, raw: bytes) -> Record:
    text = decode(raw)
    if isinstance(text, Problem):
        return Record.bad(row, f"line {line}", text)
    return Record.good(row, f"line {line}", None, text, len(raw))


# ==== archives


def _sample_record(row: int, sample: dict[str, object] | Problem, columns: Columns) -> Record:
    if isinstance(sample, Problem):
        return Record.bad(row, f"row {row}", sample)
    return columns.of_object(row, f"row {row}", sample)
