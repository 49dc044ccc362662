"""The records of one corpus file, as a stream: jsonl, json, csv, tsv, parquet, Arrow, tar or plain text, each also compressed.

A record that cannot be read is a record all the same: it comes with a `problem` and the stream goes on. Only a file
that cannot be read any further raises (CorpusError, with the place reached). At no time is a whole file in memory, with
three exceptions that lie in the formats: a .json file, a plain text file without delimiter (one document), and one row
group of a Parquet file.

Rows are numbered from 0 within the file; places count lines from 1, as editors do, and rows from 0, as doc ids do.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from engine.corpus.archives import samples
from engine.corpus.columns import Columns, Record
from engine.corpus.compressed import CHUNK_BYTES, CODECS, DAMAGE, open_bytes, open_seekable
from engine.corpus.encodings import UTF8, in_utf8
from engine.corpus.tables import arrow_batches, delimited_rows, record_of_row
from engine.corpus.values import Problem, decode
from schemas.errors import CorpusError

FORMATS = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "tar": (".tar",),
    "text": (".txt", ".text", ".md", ".markdown", ".rst", ".tex"),
}
SHORT = {".tgz": (".tar", ".gz"), ".txz": (".tar", ".xz"), ".tbz2": (".tar", ".bz2"), ".tbz": (".tar", ".bz2")}
SUFFIXES = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)

BATCH_ROWS = 128  # rows of Arrow data turned into Python objects at a time; documents may be large

_BEGINNINGS = (
    (b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"\xfd7zXZ\x00", "xz"), (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"), (b"PAR1", "Parquet"), (b"ARROW1", "Arrow IPC"),
)  # fmt: skip
"""First bytes of kinds of files; none of them begins a text in UTF-8, but for PK, BZh, PAR1 and ARROW1, which nobody begins a
corpus with."""

T = TypeVar("T")
Span = tuple[int, int]
"""Rows `start <= row < stop` of a file."""

_DAMAGE = (*DAMAGE, pa.ArrowException, csv.Error, tarfile.TarError, UnicodeError)
"""What the readers below raise for damaged bytes."""


@dataclass(frozen=True, slots=True)
class Source:
    """A corpus file. `path` is absolute; `format` is a key of FORMATS; `codec` is one of CODECS or ""."""

    path: Path
    format: str
    codec: str

    @classmethod
    def of(cls, path: Path) -> Source:
        """The format by suffix, upper or lower case. CorpusError for a suffix that is not known."""
        suffixes = [suffix.lower() for suffix in path.suffixes]
        suffixes[-1:] = SHORT.get(suffixes[-1], suffixes[-1:]) if suffixes else []
        codec = suffixes.pop() if suffixes and suffixes[-1] in CODECS else ""
        for name, known in FORMATS.items():
            if suffixes and suffixes[-1] in known:
                return cls(path, name, codec)
        raise CorpusError(
            f"{path}: got the suffix {''.join(path.suffixes[-2:]) or '(none)'!r}; wanted one of {SUFFIXES}, each also "
            f"{', '.join(CODECS)}. Rename or convert the file, or narrow [corpus] paths so that it is not matched."
        )

    def check_content(self) -> None:
        """CorpusError for a file that begins as another kind of file than its name says; read as what it is called, it would be
        bad records to the last one. A file that cannot be read is left to its reader."""
        try:
            with open(self.path, "rb") as stream:
                head = stream.read(8)
        except OSError:
            return
        own = {"parquet": "Parquet", "arrow": "Arrow IPC"}.get(self.format)
        mine = {".gz": "gzip", ".zst": "Zstandard", ".xz": "xz", ".bz2": "bzip2"}.get(self.codec, own)
        found = next((name for magic, name in _BEGINNINGS if head.startswith(magic)), None)
        if found is not None and found != mine:
            raise CorpusError(
                f"{self.path}: called {self.codec or self.format}, but its first bytes are those of {found}. Readable are "
                f"{SUFFIXES}, each also {', '.join(CODECS)}: rename the file to what it is, or convert it."
            )


def read_records(
    source: Source, columns: Columns, delimiter: str | None, spans: Sequence[Span], encoding: str = UTF8
) -> Generator[Record, None, None]:
    """The records of `source` in the rows of `spans` (rising, disjoint), in order; fewer when the file ends before. encoding: of
    text, JSON and delimited tables without a byte order mark.

    Raises CorpusError, with the place reached, when the file cannot be opened, decompressed or parsed.
    """
    reached = "before its first record"
    try:
        with ExitStack() as opened:

            def text() -> IO[bytes]:
                return opened.enter_context(in_utf8(open_bytes(source.path, source.codec), encoding))

            match source.format:
                case "parquet" | "arrow":
                    stream = opened.enter_context(open_seekable(source.path, source.codec))
                    rows = _parquet_rows if source.format == "parquet" else _arrow_rows
                    records = rows(stream, source, columns, spans)
                case "csv" | "tsv":
                    lines = delimited_rows(text(), "," if source.format == "csv" else "\t", columns, str(source.path))
                    header = cast(list[str], next(lines))
                    records = (record_of_row(row, header, line, columns) for row, line in _picked(lines, spans))
                case "tar":
                    stream = opened.enter_context(open_bytes(source.path, source.codec))
                    records = (_sample_record(row, one, columns) for row, one in _picked(samples(stream), spans))
                case "json":
                    items = _json_list(text().read(), source)
                    records = (
                        columns.of_object(row, f"row {row}", items[row]) for row, _ in _picked(range(len(items)), spans)
                    )
                case "jsonl":
                    lines = _picked(_json_lines(text()), spans)
                    records = (_json_record(row, line, raw, columns) for row, (line, raw) in lines)
                case _:
                    pieces = _picked(_text_pieces(text(), None if delimiter is None else delimiter.encode()), spans)
                    records = (_text_record(row, line, raw) for row, (line, raw) in pieces)
            for record in records:
                reached = f"after {record.place}"
                yield record
    except FileNotFoundError as error:
        raise CorpusError(f"{source.path}: the file is gone. Put it back, or correct [corpus] paths.") from error
    except PermissionError as error:
        raise CorpusError(f"{source.path}: no permission to read it. Allow reading (chmod +r).") from error
    except _DAMAGE as error:
        what = " ".join(filter(None, (source.codec, source.format)))
        raise CorpusError(
            f"{source.path}: damaged {reached}: {error}. Wanted a complete {what} file. Fetch or write the file again, "
            f"or take it out of [corpus] paths."
        ) from error


def _picked(items: Iterable[T], spans: Sequence[Span]) -> Iterator[tuple[int, T]]:
    """The items in the rows of `spans`, numbered; stops reading after the last span."""
    iterator, row = iter(items), 0
    for start, stop in spans:
        for item in islice(iterator, start - row, stop - row):
            yield start, item
            start += 1
        if start < stop:
            return
        row = stop


# ==== jsonl


def _json_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes) of the lines that are not blank. A byte order mark at the very start is dropped.

    Where the first line is a lone brace and the second one is no object, objects are written over several lines: each ends at a
    brace that stands as far in as its first one."""
    lines = _lines(stream)
    first = list(islice(lines, 2))
    if len(first) < 2 or first[0][1].strip() != b"{" or first[1][1].strip()[:1] not in (b'"', b"}"):
        yield from first
        yield from lines
        return
    begun, margin, parts = 0, b"", list[bytes]()
    for number, line in chain(first, lines):
        if parts and line.rstrip() == margin + b"{":  # the one before has no end
            yield begun, b"".join(parts)
            parts = []
        if not parts:
            begun, margin = number, line[: len(line) - len(line.lstrip())]
        parts.append(line)
        if line.rstrip().rstrip(b",") == margin + b"}":
            yield begun, b"".join(parts).rstrip().removesuffix(b",")
            parts = []
    if parts:
        yield begun, b"".join(parts)


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def _json_record(row: int, line: int, raw: bytes, columns: Columns) -> Record:
    place = f"line {line}"
    text = decode(raw)
    if isinstance(text, Problem):
        return Record.bad(row, place, text)
    try:
        item = json.loads(text)
    except json.JSONDecodeError as error:
        return Record.bad(row, place, Problem("malformed_json", f"{error.msg} at character {error.pos + 1}"))
    except ValueError as error:  # a number of more digits than Python converts
        return Record.bad(row, place, Problem("malformed_json", str(error)))
    except RecursionError:
        return Record.bad(row, place, Problem("malformed_json", "nested too deeply"))
    return columns.of_object(row, place, item)


# ==== json


def _json_list(raw: bytes, source: Source) -> list[Any]:
    """The list in a .json file: the whole file, or the one list in its object."""
    try:
        # Bytes that are not UTF-8 become lone surrogates, so that only the record that holds them is refused.
        value = json.loads(raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff") if raw.strip() else "[]")
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and (several := _json_objects(raw)):
            return several
        raise CorpusError(
            f"{source.path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). Repair it; if "
            f"each line is an object of its own, rename the file to .jsonl."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{source.path}: not readable as JSON ({error}). Convert the file to .jsonl.") from error
    if isinstance(value, list):
        return value
    lists = [key for key, item in value.items() if isinstance(item, list)] if isinstance(value, dict) else []
    if len(lists) != 1:
        got = f"an object with {len(lists)} lists" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise CorpusError(
            f"{source.path}: got {got}; wanted a list of objects, or an object with one list of objects. "
            f"Convert the file to .jsonl, one object per line."
        )
    return value[lists[0]]


def _json_objects(raw: bytes) -> list[Any]:
    """Objects one after another, however they are broken into lines; empty where they are not all objects."""
    text, decoder, at, found = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff"), json.JSONDecoder(), 0, []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return []
        found.append(value)
    return found if all(isinstance(value, dict) for value in found) else []


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


# ==== parquet


def _parquet_rows(stream: IO[bytes], source: Source, columns: Columns, spans: Sequence[Span]) -> Iterator[Record]:
    """Row groups outside `spans` are not read at all."""
    # Damage can decompress into wrong text without an error; pages that carry a checksum are checked.
    with pq.ParquetFile(stream, page_checksum_verification=True) as file:
        columns.check(file.schema_arrow.names, str(source.path))
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


# ==== Arrow, archives


def _arrow_rows(stream: IO[bytes], source: Source, columns: Columns, spans: Sequence[Span]) -> Iterator[Record]:
    row, stop = 0, max((stop for _, stop in spans), default=0)
    for whole in arrow_batches(stream):
        if not row:
            columns.check(whole.schema.names, str(source.path))
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


def _sample_record(row: int, sample: dict[str, object] | Problem, columns: Columns) -> Record:
    if isinstance(sample, Problem):
        return Record.bad(row, f"row {row}", sample)
    return columns.of_object(row, f"row {row}", sample)
