"""Units of a scanned corpus -> their documents, in order, one unit in memory at a time; and the first documents as a sample.

    for unit, documents in read_units(run.corpus, scan, wanted):    # streams only the wanted units, in order

Files of stores of which a part can be fetched (lines that are not compressed, Parquet with small row groups) can be left to
whoever scores a unit: it then gets the place instead of the documents. All others are read here, from front to back.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import overload

from engine.corpus import huggingface as hub
from engine.corpus.columns import Record
from engine.corpus.document import Document, Unit
from engine.corpus.json_files import START, Mark
from engine.corpus.mixture import Share, part_of
from engine.corpus.records import Reading, read_records
from engine.corpus.remote import RemoteFile
from engine.corpus.scan import CorpusFile, CorpusScan
from engine.corpus.source import Source
from engine.corpus.tables import Span, most_rows
from engine.corpus.values import Problem
from schemas.address import is_url
from schemas.counts import counted
from schemas.errors import CorpusError
from schemas.runfile import CorpusConfig

SAMPLE_CHARACTERS = 1_000_000
"""A sample takes no more documents once it holds more than this."""
LONGEST_CHARACTERS = 100_000
"""A longer document is no part of a sample."""
UNITS_A_GROUP = 8
"""A Parquet file whose row groups hold more units than this is read here: each unit would fetch its whole group again."""


class UnreadUnit(Sequence[Document]):
    """The documents of a unit, read from its file when they are asked for, by the process that asks. It travels unread."""

    def __init__(self, config: CorpusConfig, file: CorpusFile, base_dir: Path, stamp: int | str, unit: Unit) -> None:
        self._config, self._file, self._unit = config, file, unit
        self._base_dir, self._stamp = base_dir, stamp

    @property
    def characters(self) -> int:
        """About how many, for guesses of how long the unit takes."""
        return self._file.text_bytes * self._unit.n_rows // max(1, self._file.n_rows)

    @cached_property
    def _documents(self) -> list[Document]:
        return next(_of_file(self._config, self._file, self._base_dir, self._stamp, [self._unit]))[1]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_documents"}

    def __len__(self) -> int:
        return self._unit.n_rows

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        return self._documents[index]


def read_units(
    config: CorpusConfig, scan: CorpusScan, wanted: Container[int], *, unread: bool = False
) -> Iterator[tuple[Unit, Sequence[Document]]]:
    """The units whose index is in `wanted`, in order, each with all its documents; one unit in memory at a time. unread: units
    that can be fetched by themselves come as UnreadUnit.

    Other units are passed over without parsing, and Parquet row groups and whole files without reading. An id that
    occurred before in the same unit makes a problem "duplicate_id". CorpusError when a file is no longer what was
    scanned: another size, written since, or fewer records.
    """
    chosen = (unit for unit in scan.units() if unit.index in wanted)
    for file_index, group in groupby(chosen, key=lambda unit: unit.file_index):
        file, units = scan.files[file_index], list(group)
        part, stamp = part_of(config, file.source), scan.stamps[file_index] if scan.stamps else ""
        if unread and is_url(file.path) and _is_read_in_parts(file, stamp):
            yield from ((unit, UnreadUnit(part, file, scan.base_dir, stamp, unit)) for unit in units)
        else:
            yield from _of_file(part, file, scan.base_dir, stamp, units)


def _of_file(
    config: CorpusConfig, file: CorpusFile, base_dir: Path, stamp: int | str, units: Sequence[Unit]
) -> Iterator[tuple[Unit, list[Document]]]:
    """Units of one file."""
    reading, share = Reading.of(config), None if file.share is None else Share(*file.share)
    spans = _spans(units, share)
    is_table = config.dataset is not None and not config.streaming
    place = file.path if is_url(file.path) else base_dir / file.path
    if is_table:
        records = hub.read_dataset(hub.open_dataset(config, base_dir, reading.columns), reading.columns, spans)
    else:
        _check_same(place, file, stamp)
        records = read_records(Source.of(place), reading, spans, begin=_begin(file, units[0], spans))
    with closing(records):
        taken = records if share is None else (record for record in records if share.takes(record.row))
        for unit in units:
            documents = _documents(taken, unit, file)
            if len(documents) != unit.n_rows:
                raise _changed(file, counted(unit.first_row + len(documents), "record"), f"{file.n_rows} or more")
            if not is_table:  # after the reading: nothing that was written since the scan is handed out
                _check_same(place, file, stamp)
            yield unit, documents


def _begin(file: CorpusFile, unit: Unit, spans: Sequence[Span]) -> Mark:
    """Where a file of lines on a store is begun to be read for a unit."""
    if not file.unit_marks:
        return START
    first = row = 0
    while row < unit.first_row:
        row, first = row + file.unit_rows[first], first + 1
    return Mark(spans[0][0], *file.unit_marks[first])


def _is_read_in_parts(file: CorpusFile, stamp: int | str) -> bool:
    """Whether fetching one unit of a file fetches little else. Raises CorpusError where the file has changed."""
    source = Source.of(file.path)
    if not file.unit_marks and (source.format != "parquet" or source.codec):
        return False
    _check_same(file.path, file, stamp)
    with source.open() as stream:
        if file.unit_marks or not stream.seekable():
            return stream.seekable()
        taken = 1.0 if file.share is None else file.share[0] / file.share[1]
        return most_rows(stream) * taken <= UNITS_A_GROUP * max(file.unit_rows, default=0)


def _documents(records: Iterator[Record], unit: Unit, file: CorpusFile) -> list[Document]:
    """The next records as the documents of a unit; fewer when the file ends before."""
    documents: list[Document] = []
    seen: set[str] = set()
    for _ in range(unit.n_rows):
        record = next(records, None)
        if record is None:
            break
        doc_row, fallback = unit.doc_row + len(documents), f"{file.label}#{record.row}"
        doc_id, problem = fallback if record.doc_id is None else record.doc_id, record.problem
        if doc_id in seen and problem is None:
            problem = Problem("duplicate_id", f"the id {doc_id!a} occurred before in unit {unit.index}")
        if problem is None:
            parts = {"messages": record.messages, "tools": record.tools}
            documents.append(
                Document(doc_id, doc_row, record.text, file.label, record.place, **parts, part=file.source)
            )
        else:
            told = (problem.reason, problem.detail)
            documents.append(Document(fallback, doc_row, "", file.label, record.place, told, part=file.source))
        seen.add(documents[-1].doc_id)
    return documents


def _spans(units: Sequence[Unit], share: Share | None) -> list[Span]:
    """Rows of `units` of one file, neighbours joined."""
    spans: list[Span] = []
    for unit in units:
        start, stop = (unit.first_row, unit.first_row + unit.n_rows)
        if share is not None:
            start, stop = share.span(unit.first_row, unit.n_rows)
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return spans


# ==== files


def _check_same(place: Path | str, file: CorpusFile, stamp: int | str) -> None:
    if isinstance(place, str):
        found = RemoteFile(place).facts()
        if stamp and found.version != stamp or found.n_bytes not in (None, file.n_bytes):
            told = "written since" if found.n_bytes == file.n_bytes else f"{found.n_bytes or 0:,} bytes"
            raise _changed(file, told, f"{file.n_bytes:,} bytes, as they were")
        return
    try:
        facts = place.stat()
    except OSError as error:
        raise CorpusError(f"{place}: cannot be read any more ({error.strerror}). Put the file back.") from error
    if facts.st_size != file.n_bytes or stamp not in ("", facts.st_mtime_ns):
        since = " written since" if facts.st_size == file.n_bytes else ""
        raise _changed(file, f"{facts.st_size:,} bytes{since}", f"{file.n_bytes:,} bytes")


def _changed(file: CorpusFile, got: str, wanted: str) -> CorpusError:
    return CorpusError(
        f"{RemoteFile(file.path).name}: changed since the corpus was scanned: got {got}, wanted {wanted}. Put the file back as "
        "it was, or score the new corpus into another output folder."
    )


def sample(config: CorpusConfig, scan: CorpusScan, count: int) -> list[Document]:
    """The first `count` documents of the corpus that are not too long, bad ones included; fewer where they hold more than
    SAMPLE_CHARACTERS. Raises CorpusError as `read_units`."""
    units, rows = set(), 0
    for unit in scan.units():
        if rows >= count:
            break
        units.add(unit.index)
        rows += unit.n_rows
    found, characters = list[Document](), 0
    for document in (one for _, documents in read_units(config, scan, units) for one in documents):
        if len(found) == count or characters > SAMPLE_CHARACTERS:
            break
        if len(document.text) <= LONGEST_CHARACTERS:
            found.append(document)
            characters += len(document.text)
    return found
