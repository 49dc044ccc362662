"""What another program stored, as records that can be read from any place on. Each form has a Source of its own."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.exchange.reading import Reading
from schemas.errors import CorpusError

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file with records. tokens: of each record, [records] int64. names: digest of a record's tokens -> name of its document,
    where an export of this program has written them down."""

    path: Path
    label: str  # its name in doc ids
    tokens: npt.NDArray[np.int64]
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source(ABC):
    """Raises CorpusError for what is damaged or of another form. top_k: most entries of a row. said: what an export of this
    program has written about itself, by key (`product`, `tokenizer_hash`, ..); empty for other programs' files."""

    files: tuple[SourceFile, ...]
    top_k: int
    said: Mapping[str, str] = field(default_factory=dict)

    @abstractmethod
    def read(self, file: int, first: int, count: int) -> Iterator[list[Reading]]:
        """The readings of records [first, first + count) of a file, record by record. One that holds several sequences, one
        behind the other, gives several."""

    def digests(self) -> list[dict[str, str | int]]:
        """What the files are: name, bytes and sha256. Reads them once."""
        found = []
        for path in self.stored():
            digest = hashlib.sha256()
            with path.open("rb") as data:
                while chunk := data.read(CHUNK_BYTES):
                    digest.update(chunk)
            found.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()})
        return found

    def stored(self) -> list[Path]:
        """All files that values are read from."""
        return [file.path for file in self.files]


def folder_of(src: str, form: str, pattern: str) -> tuple[Path, list[Path]]:
    """(folder, its files that match, by name). src: the folder, or one file. Raises CorpusError where there is none."""
    path = Path(src)
    if path.is_file():
        return path.parent, [path]
    found = sorted((file for file in path.rglob(pattern) if file.is_file()), key=_natural) if path.is_dir() else []
    if not found:
        what = "a folder without any" if path.is_dir() else "nothing that is there"
        raise CorpusError(
            f"{path}: {what}, wanted files {pattern} of {form} (docs/exchange.md): name their folder, or one of them"
        )
    return path, found


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """data_2 before data_10."""
    parts = "".join(c if c.isdigit() else f"\0{c}\0" for c in path.as_posix()).split("\0")
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]
