"""The corpus files -> work units -> documents; and the first documents as a sample.

    scan = scan_corpus(run.corpus, run.base_dir)                    # reads everything once: counts, sizes, sha256
    for unit, documents in read_units(run.corpus, scan, wanted):    # streams only the wanted units, in order

Files are sorted by path; a unit is a run of records of one file. Both depend on nothing but the files and [corpus], so
that the same corpus is cut in the same way on every machine and a unit number always means the same documents.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from engine.corpus import huggingface as hub
from engine.corpus.columns import Columns, Record
from engine.corpus.document import Document, Unit
from engine.corpus.files import is_inside, labels, list_files, raw_facts
from engine.corpus.records import Source, Span, read_records
from engine.corpus.values import Problem
from schemas.errors import CorpusError
from schemas.plan_inputs import PlannedFile
from schemas.redact import redacted
from schemas.runfile import CorpusConfig

SAMPLE_CHARACTERS = 1_000_000
"""A sample takes no more documents once it holds more than this."""
LONGEST_CHARACTERS = 100_000
"""A longer document is no part of a sample."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file, or a Hugging Face dataset as one file.

    `label` names it in doc ids: the path relative to the run file's folder, or for a file elsewhere its name, with as
    many parent folders as tell it from the others. `path` opens it: relative to the run file's folder where possible.
    """

    label: str
    path: str
    sha256: str  # of the raw file; for a dataset, of its texts, names and problems
    n_bytes: int  # of the raw file; for a dataset, 0
    n_rows: int  # records taken; fewer than the file has when [corpus] limit ends in it
    text_bytes: int  # UTF-8 bytes of the texts of these records
    unit_rows: tuple[int, ...]  # records of each unit, in order; they add up to n_rows


@dataclass(frozen=True, slots=True)
class CorpusScan:
    """All that a plan has to know of the corpus; `base_dir` and `stamps` are no part of the plan."""

    files: tuple[CorpusFile, ...]
    base_dir: Path  # opens files
    stamps: tuple[int, ...] = field(
        default=(), compare=False
    )  # st_mtime_ns of each file at the scan; () where not known
    problems: dict[str, tuple[int, str]] = field(
        default_factory=dict, compare=False
    )  # reason -> how many records have it, the first one's place and detail; empty where not known

    @property
    def n_rows(self) -> int:
        """Records in the corpus."""
        return sum(file.n_rows for file in self.files)

    @property
    def n_units(self) -> int:
        """Work units in the corpus."""
        return sum(len(file.unit_rows) for file in self.files)

    def units(self) -> Iterator[Unit]:
        """All units, by index."""
        index = doc_row = 0
        for file_index, file in enumerate(self.files):
            first_row = 0
            for n_rows in file.unit_rows:
                yield Unit(index, file_index, first_row, n_rows, doc_row)
                index, first_row, doc_row = index + 1, first_row + n_rows, doc_row + n_rows

    @classmethod
    def of_plan(cls, files: Sequence[PlannedFile], base_dir: Path) -> CorpusScan:
        """The corpus as a plan has it, without reading it; a file's path is its label."""
        return cls(tuple(CorpusFile(path=file.label, **asdict(file)) for file in files), base_dir)

    def check_some_readable(self) -> None:
        """Raises CorpusError when not one record can be used: a wrong column or format, known before any work."""
        if sum(count for count, _ in self.problems.values()) < self.n_rows:
            return
        told = "\n".join(f"  {count:6,}  {reason}: {first}" for reason, (count, first) in self.problems.items())
        raise CorpusError(
            f"[corpus]: got {self.n_rows:,} records, of which not one can be used; wanted documents.\n{told}\n"
            "Correct [corpus] paths, text, template, messages or delimiter, or the files. Nothing was written."
        )

    def planned(self) -> tuple[PlannedFile, ...]:
        """The files without their paths: the same documents in another folder are the same corpus."""
        return tuple(PlannedFile(**{f.name: getattr(file, f.name) for f in fields(PlannedFile)}) for file in self.files)

    def semantic(self) -> dict[str, Any]:
        """The part of a plan that says what the corpus is."""
        return {"files": [asdict(file) for file in self.planned()]}


def scan_corpus(config: CorpusConfig, base_dir: Path) -> CorpusScan:
    """Read the whole corpus once and cut it into units.

    Raises CorpusError for a path or glob without files, a folder, a file of an unknown format, an empty or damaged file,
    a table without the columns named, and a corpus without records. A bad record is no error: it is counted.
    """
    base_dir = Path(os.path.abspath(base_dir))
    problems: dict[str, tuple[int, str]] = {}
    columns, left = Columns.of(config), sys.maxsize if config.limit is None else config.limit
    found, stamps = list[CorpusFile](), list[int]()
    if config.dataset is not None:
        data = hub.open_dataset(config, base_dir, columns)
        digest = hashlib.sha256()
        rows, text_bytes = _cut(
            hub.read_dataset(data, columns, [(0, left)]), config, digest, redacted(config.dataset), problems
        )
        name, sha256 = redacted(config.dataset), digest.hexdigest()
        found.append(CorpusFile(name, config.dataset, sha256, 0, sum(rows), text_bytes, rows))
    else:
        paths = list_files(config.paths, base_dir)
        sources = [
            Source.of(Path(path)) for path in paths
        ]  # all of them, before minutes go into reading the first ones
        for source in sources:
            source.check_content()
        for path, source, label in zip(paths, sources, labels(paths, base_dir), strict=True):
            if left == 0:
                break
            if source.format == "text" and (key := config.key_of_columns):
                raise CorpusError(
                    f"{path}: got plain text; wanted a file with the column {getattr(config, key)!r}, as [corpus] {key} says. "
                    f"Convert it to .jsonl, or remove {key}."
                )
            n_bytes, sha256, stamp = raw_facts(path)
            with closing(read_records(source, columns, config.delimiter, [(0, left)], config.encoding)) as records:
                rows, text_bytes = _cut(records, config, None, label, problems)
            stamps.append(stamp)
            left -= sum(rows)
            opens = os.path.relpath(path, base_dir) if is_inside(path, base_dir) else path
            found.append(CorpusFile(label, Path(opens).as_posix(), sha256, n_bytes, sum(rows), text_bytes, rows))
    if not any(file.n_rows for file in found):
        names = ", ".join(file.path for file in found[:3]) + (" ..." if len(found) > 3 else "")
        raise CorpusError(
            f"[corpus] {names}: got no record at all; wanted at least one document. Correct [corpus] paths."
        )
    return CorpusScan(tuple(found), base_dir, tuple(stamps), problems)


def read_units(config: CorpusConfig, scan: CorpusScan, wanted: Container[int]) -> Iterator[tuple[Unit, list[Document]]]:
    """The units whose index is in `wanted`, in order, each with all its documents; one unit in memory at a time.

    Other units are passed over without parsing, and Parquet row groups and whole files without reading. An id that
    occurred before in the same unit makes a problem "duplicate_id". CorpusError when a file is no longer what was
    scanned: another size, written since, or fewer records.
    """
    columns = Columns.of(config)
    chosen = (unit for unit in scan.units() if unit.index in wanted)
    for file_index, group in groupby(chosen, key=lambda unit: unit.file_index):
        file, path, units = scan.files[file_index], scan.base_dir / scan.files[file_index].path, list(group)
        spans = _merged(units)
        stamp = scan.stamps[file_index] if scan.stamps else None
        if config.dataset is not None:
            records = hub.read_dataset(hub.open_dataset(config, scan.base_dir, columns), columns, spans)
        else:
            _check_same(path, file, stamp)
            records = read_records(Source.of(path), columns, config.delimiter, spans, config.encoding)
        with closing(records):
            for unit in units:
                documents = _documents(records, unit, file)
                if len(documents) != unit.n_rows:
                    raise _changed(file, f"{unit.first_row + len(documents)} records", f"{file.n_rows} or more")
                if config.dataset is None:  # after the reading: nothing that was written since the scan is handed out
                    _check_same(path, file, stamp)
                yield unit, documents


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
            documents.append(Document(doc_id, doc_row, record.text, file.label, record.place, **parts))
        else:
            told = (problem.reason, problem.detail)
            documents.append(Document(fallback, doc_row, "", file.label, record.place, told))
        seen.add(documents[-1].doc_id)
    return documents


# ==== units


def split_units(text_bytes: Iterable[int], unit_documents: int, unit_bytes: int) -> Iterator[int]:
    """Records per unit. `text_bytes` are the sizes of the records in order; a unit holds at most `unit_documents` of
    them and at most `unit_bytes` bytes, except that one larger record is a unit by itself."""
    n_rows = filled = 0
    for size in text_bytes:
        if n_rows and (n_rows == unit_documents or filled + size > unit_bytes):
            yield n_rows
            n_rows = filled = 0
        n_rows, filled = n_rows + 1, filled + size
    if n_rows:
        yield n_rows


def _cut(
    records: Iterable[Record],
    config: CorpusConfig,
    digest: hashlib._Hash | None,
    label: str,
    problems: dict[str, tuple[int, str]],
) -> tuple[tuple[int, ...], int]:
    """Records per unit, and text bytes of all `records`; a `digest` takes in their content, `problems` what is wrong in them."""
    total = 0

    def sizes() -> Iterator[int]:
        nonlocal total
        for record in records:
            total += record.n_bytes
            if record.problem is not None:
                first = f"{label}, {record.place}: {record.problem.detail}"
                count, first = problems.get(record.problem.reason, (0, first))
                problems[record.problem.reason] = (count + 1, first)
            if digest is not None:
                reason = record.problem.reason if record.problem else ""
                said = [part for message in record.messages for part in message.parts_of_name]
                tools = [record.tools] if record.tools else []
                for part in (record.doc_id or "", record.text, reason, *said, *tools):
                    raw = part.encode("utf-8")
                    digest.update(len(raw).to_bytes(8, "big") + raw)
            yield record.n_bytes

    rows = tuple(split_units(sizes(), config.unit_documents, config.unit_bytes))
    return rows, total


def _merged(units: Sequence[Unit]) -> list[Span]:
    """Rows of `units` of one file, neighbours joined."""
    spans: list[Span] = []
    for unit in units:
        stop = unit.first_row + unit.n_rows
        if spans and spans[-1][1] == unit.first_row:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((unit.first_row, stop))
    return spans


# ==== files


def _check_same(path: Path, file: CorpusFile, stamp: int | None) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read any more ({error.strerror}). Put the file back.") from error
    if found.st_size != file.n_bytes or stamp not in (None, found.st_mtime_ns):
        since = " written since" if found.st_size == file.n_bytes else ""
        raise _changed(file, f"{found.st_size:,} bytes{since}", f"{file.n_bytes:,} bytes")


def _changed(file: CorpusFile, got: str, wanted: str) -> CorpusError:
    return CorpusError(
        f"{file.path}: changed since the corpus was scanned: got {got}, wanted {wanted}. Put the file back as it was, "
        f"or score the new corpus into another output folder."
    )


# ==== the sample


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
