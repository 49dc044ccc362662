"""The corpus files, read once from end to end -> their sizes and hashes, and how they are cut into work units.

    scan = scan_corpus(run.corpus, run.base_dir)                    # reads everything once: counts, sizes, sha256
    for unit, documents in read_units(run.corpus, scan, wanted):    # engine/corpus/units.py

Files are sorted by path; a unit is a run of records of one file. Both depend on nothing but the files and [corpus], so
that the same corpus is cut in the same way on every machine and a unit number always means the same documents.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from engine.corpus import huggingface as hub
from engine.corpus.cut import observed, split_units
from engine.corpus.document import Unit
from engine.corpus.files import is_inside, labels, list_files, raw_facts
from engine.corpus.json_files import Marks
from engine.corpus.mixture import Share, label_of, parts_of, shares_of
from engine.corpus.records import Reading, read_records
from engine.corpus.remote import Facts, RemoteFile
from engine.corpus.source import Source
from schemas.counts import counted
from schemas.errors import CorpusError
from schemas.plan_inputs import PlannedFile
from schemas.redact import redacted
from schemas.runfile import CorpusConfig

FACTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file, or a Hugging Face dataset as one file.

    `label` names it in doc ids: the path relative to the run file's folder, or for a file elsewhere its name, with as
    many parent folders as tell it from the others; in a mixture behind the name of its source. `path` opens it: relative to the
    run file's folder where possible, or a URL.
    """

    label: str
    path: str
    sha256: str  # of the raw file, or what its store says of it; for a dataset, of its texts, names and problems
    n_bytes: int  # of the raw file; for a dataset, 0
    n_rows: int  # records taken; fewer than the file has when [corpus] limit ends in it
    text_bytes: int  # UTF-8 bytes of the texts of these records
    unit_rows: tuple[int, ...]  # records of each unit, in order; they add up to n_rows
    unit_marks: tuple[tuple[int, int], ...] = ()  # (byte, line) where each unit begins: lines on a store, else ()
    source: str = ""  # of a mixture: the name of its [[corpus]] table
    share: tuple[int, int, int] | None = None  # of a weighted mixture, see engine/corpus/mixture.py


@dataclass(frozen=True, slots=True)
class CorpusScan:
    """All that a plan has to know of the corpus; `base_dir` and `stamps` are no part of the plan."""

    files: tuple[CorpusFile, ...]
    base_dir: Path  # opens files
    stamps: tuple[int | str, ...] = field(
        default=(), compare=False
    )  # st_mtime_ns of each file at the scan, or the version that its store tells, "" for none; () where not known
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
            f"[corpus]: got {counted(self.n_rows, 'record')}, of which not one can be used; wanted documents.\n{told}\n"
            "Correct [corpus] paths, text, template, messages or delimiter, or the files. Nothing was written."
        )

    def planned(self) -> tuple[PlannedFile, ...]:
        """The files without their paths: the same documents in another folder are the same corpus."""
        return tuple(PlannedFile(**{f.name: getattr(file, f.name) for f in fields(PlannedFile)}) for file in self.files)

    def semantic(self) -> dict[str, Any]:
        """The part of a plan that says what the corpus is."""
        return {"files": [file.as_json() for file in self.planned()]}


def scan_corpus(config: CorpusConfig, base_dir: Path, known: Sequence[PlannedFile] = ()) -> CorpusScan:
    """Read the whole corpus once and cut it into units. known: the files as an output's plan has them, made with the same
    settings: where all lie on stores that say that they are the same still, nothing is read.

    Raises CorpusError for a path or glob without files, a folder, a file of an unknown format, an empty or damaged file,
    a table without the columns named, and a corpus without records. A bad record is no error: it is counted.
    """
    base_dir = Path(os.path.abspath(base_dir))
    parts = [
        _Part(part, base_dir) for part in parts_of(config)
    ]  # all are listed before minutes go into reading the first
    if known and (same := _as_known(parts, known)) is not None:
        return CorpusScan(same, base_dir, tuple(stamp for part in parts for stamp in part.versions)[: len(same)])
    for part in parts:
        part.read()
    shares = shares_of([(part.config, part.n_rows) for part in parts])
    found = [file for part, share in zip(parts, shares, strict=True) for file in part.cut(share)]
    problems: dict[str, tuple[int, str]] = {}
    for part in parts:
        for reason, (count, first) in part.problems.items():
            before, told = problems.get(reason, (0, first))
            problems[reason] = (before + count, told)
    if not any(file.n_rows for file in found):
        names = ", ".join(RemoteFile(file.path).name for file in found[:3]) + (" ..." if len(found) > 3 else "")
        raise CorpusError(
            f"[corpus] {names}: got no record at all; wanted at least one document. Correct [corpus] paths."
        )
    return CorpusScan(tuple(found), base_dir, tuple(stamp for part in parts for stamp in part.stamps), problems)


def _as_known(parts: Sequence[_Part], known: Sequence[PlannedFile]) -> tuple[CorpusFile, ...] | None:
    """The files of the plan, where those of the stores are the same ones; None where that is not certain."""
    places = [place for part in parts for place in part.listed()]
    limited = any(part.config.limit is not None for part in parts)  # the plan has no files behind the last record taken
    if len(places) < len(known) or (len(places) > len(known) and (len(parts) > 1 or not limited)):
        return None
    for (_, label, facts), file in zip(places, known, strict=False):
        if facts is None or facts.sha256 is None or (label, facts.sha256) != (file.label, file.sha256):
            return None
    return tuple(
        CorpusFile(path=place.url, **asdict(file))
        for (place, _, _), file in zip(places, known, strict=False)
        if isinstance(place, RemoteFile)
    )


class _Part:
    """One [corpus] table while its files are read."""

    def __init__(self, config: CorpusConfig, base_dir: Path) -> None:
        self.config, self._base_dir = config, base_dir
        self.problems: dict[str, tuple[int, str]] = {}
        self.stamps: list[int | str] = []
        self.n_rows = 0  # records that were read
        self._files: list[tuple[CorpusFile, array[int], Marks]] = []
        self._sources, self._labels, self._facts = list[Source](), list[str](), list[Facts | None]()
        if config.dataset is None or config.streaming:
            paths = hub.data_files(config, base_dir) if config.dataset else list_files(config.paths, base_dir)
            self._sources = [Source.of(path) for path in paths]
            self._labels = [label_of(config, label) for label in labels(paths, base_dir)]
            for source in self._sources:
                if source.format == "text" and (key := config.key_of_columns):
                    raise CorpusError(
                        f"{source.name}: got plain text; wanted a file with the column {getattr(config, key)!r}, as [corpus] "
                        f"{key} says. Convert it to .jsonl, or remove {key}."
                    )
                if isinstance(source.place, Path):
                    source.check_content()
            with ThreadPoolExecutor(FACTS_AT_ONCE) as threads:  # an answer takes long
                self._facts = list(threads.map(_facts, self._sources))

    def listed(self) -> Iterator[tuple[Path | RemoteFile, str, Facts | None]]:
        """(place, label, what its store tells of it) of each file."""
        for source, label, facts in zip(self._sources, self._labels, self._facts, strict=True):
            yield source.place, label, facts

    @property
    def versions(self) -> list[int | str]:
        return ["" if facts is None else facts.version for facts in self._facts]

    def read(self) -> None:
        """All files, up to `limit` records. Raises CorpusError."""
        left = sys.maxsize if self.config.limit is None else self.config.limit
        if self.config.dataset is not None and not self.config.streaming:
            self._read_table(left)
        for source, label, facts in zip(self._sources, self._labels, self._facts, strict=True):
            if self.n_rows == left:
                break
            self._read_file(source, label, facts, left - self.n_rows)

    def _read_table(self, left: int) -> None:
        reading, name = Reading.of(self.config), redacted(str(self.config.dataset))
        data, digest = hub.open_dataset(self.config, self._base_dir, reading.columns), hashlib.sha256()
        sizes = observed(
            hub.read_dataset(data, reading.columns, [(0, left)]), digest, label_of(self.config, name), self.problems
        )
        self._cut_or_keep(CorpusFile(label_of(self.config, name), str(self.config.dataset), "", 0, 0, 0, ()), sizes)
        self._files[-1] = (replace(self._files[-1][0], sha256=digest.hexdigest()), *self._files[-1][1:])
        self.stamps.append("")

    def _read_file(self, source: Source, label: str, facts: Facts | None, left: int) -> None:
        marks = Marks()
        if isinstance(source.place, RemoteFile):
            assert facts is not None
            if facts.sha256 is None:
                stream, n_bytes, sha256 = source.place.fetched()
            else:
                stream, n_bytes, sha256 = source.open(), int(facts.n_bytes or 0), facts.sha256
            if n_bytes == 0:
                raise CorpusError(f"{source.name}: got an empty file; wanted documents. Take it out of [corpus] paths.")
            if stream.seekable():
                source.check_content(stream)
            stamp, opens = facts.version, source.place.url
            records = read_records(source, Reading.of(self.config), [(0, left)], stream=stream, marks=marks)
        else:
            n_bytes, sha256, stamp = raw_facts(str(source.place))
            inside = is_inside(str(source.place), self._base_dir)
            opens = Path(os.path.relpath(source.place, self._base_dir) if inside else source.place).as_posix()
            records = read_records(source, Reading.of(self.config), [(0, left)])
        with closing(records):
            self._cut_or_keep(
                CorpusFile(label, opens, sha256, n_bytes, 0, 0, ()),
                observed(records, None, label, self.problems),
                marks,
            )
        if isinstance(source.place, RemoteFile) and source.place.facts() != facts:
            raise CorpusError(f"{source.name}: written to while it was read. Run again when it is complete.")
        self.stamps.append(stamp)

    def _cut_or_keep(self, file: CorpusFile, sizes: Iterator[int], marks: Marks | None = None) -> None:
        """Cut a file as it is read; where only a share of its records is taken, keep their sizes until that is known."""
        file, marks = replace(file, source=self.config.source or ""), marks or Marks()
        kept = array("q")
        if self.config.weight is not None:
            kept = array("q", sizes)
            n_rows = len(kept)
        else:
            file = _cut(file, sizes, marks, self.config)
            n_rows, marks = file.n_rows, Marks()
        self.n_rows += n_rows
        self._files.append((file, kept, marks))

    def cut(self, share: Share | None) -> Iterator[CorpusFile]:
        """The files, of a weighted source with the records that its share takes."""
        first = 0
        for file, sizes, marks in self._files:
            if share is None:
                yield file
                continue
            mine = share.of_file(first)
            rows = [row for row in range(len(sizes)) if mine.takes(row)]
            taken = replace(file, share=mine.as_tuple)
            yield _cut(taken, (sizes[row] for row in rows), marks, self.config, rows)
            first += len(sizes)


def _cut(
    file: CorpusFile, sizes: Iterator[int], marks: Marks, config: CorpusConfig, rows: Sequence[int] | None = None
) -> CorpusFile:
    """The file with its units. rows: of the file, of the records with these sizes; None: all of them."""
    total = 0

    def summed() -> Iterator[int]:
        nonlocal total
        for size in sizes:
            total += size
            yield size

    unit_rows = tuple(split_units(summed(), config.unit_documents, config.unit_bytes))
    begins, places = 0, []
    for count in unit_rows:
        mark = marks.at(begins if rows is None else rows[begins])
        places += [(mark.offset, mark.line)] if mark is not None else []
        begins += count
    return replace(file, n_rows=sum(unit_rows), text_bytes=total, unit_rows=unit_rows, unit_marks=tuple(places))


def _facts(source: Source) -> Facts | None:
    return source.place.facts() if isinstance(source.place, RemoteFile) else None
