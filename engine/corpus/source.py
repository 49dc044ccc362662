"""A corpus file as its name tells: where it lies, its format and compression; and its bytes, from a disk or a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO

from engine.corpus.compressed import CHUNK_BYTES, CODECS
from engine.corpus.remote import RemoteFile
from schemas.address import is_url
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

_BEGINNINGS = (
    (b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"\xfd7zXZ\x00", "xz"), (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"), (b"PAR1", "Parquet"), (b"ARROW1", "Arrow IPC"),
)  # fmt: skip
"""First bytes of kinds of files; none of them begins a text in UTF-8, but for PK, BZh, PAR1 and ARROW1, which nobody begins a
corpus with."""


@dataclass(frozen=True, slots=True)
class Source:
    """A corpus file. `place` is an absolute path, or a file of a store; `format` is a key of FORMATS; `codec` is one of CODECS
    or ""."""

    place: Path | RemoteFile
    format: str
    codec: str

    @classmethod
    def of(cls, place: Path | str) -> Source:
        """The format by suffix, upper or lower case; a text is a URL or a path. CorpusError for one that is not known."""
        found = RemoteFile(place) if isinstance(place, str) and is_url(place) else Path(place)
        path: PurePath = found.path if isinstance(found, RemoteFile) else found
        suffixes = [suffix.lower() for suffix in path.suffixes]
        suffixes[-1:] = SHORT.get(suffixes[-1], suffixes[-1:]) if suffixes else []
        codec = suffixes.pop() if suffixes and suffixes[-1] in CODECS else ""
        for name, known in FORMATS.items():
            if suffixes and suffixes[-1] in known:
                return cls(found, name, codec)
        raise CorpusError(
            f"{cls(found, '', '').name}: got the suffix {''.join(path.suffixes[-2:]) or '(none)'!r}; wanted one of {SUFFIXES}, "
            f"each also {', '.join(CODECS)}. Rename or convert the file, or narrow [corpus] paths so that it is not matched."
        )

    @property
    def name(self) -> str:
        """How messages name it."""
        return self.place.name if isinstance(self.place, RemoteFile) else str(self.place)

    @property
    def wants_parts(self) -> bool:
        """Whether its format is read from places far apart."""
        return self.format in ("parquet", "arrow")

    def open(self) -> IO[bytes]:
        """Its bytes as they lie there. Raises OSError for a path, CorpusError for a file of a store."""
        if isinstance(self.place, RemoteFile):
            return self.place.open(parts=self.wants_parts and not self.codec)
        return open(self.place, "rb", buffering=CHUNK_BYTES)

    def check_content(self, stream: IO[bytes] | None = None) -> None:
        """CorpusError for a file that begins as another kind of file than its name says; read as what it is called, it would be
        bad records to the last one. A file that cannot be read is left to its reader. stream: its bytes, where they are open."""
        try:
            if stream is None:
                with self.open() as opened:
                    head = opened.read(8)
            else:
                head = stream.read(8)
                stream.seek(0)
        except OSError:
            return
        own = {"parquet": "Parquet", "arrow": "Arrow IPC"}.get(self.format)
        mine = {".gz": "gzip", ".zst": "Zstandard", ".xz": "xz", ".bz2": "bzip2"}.get(self.codec, own)
        found = next((name for magic, name in _BEGINNINGS if head.startswith(magic)), None)
        if found is not None and found != mine:
            raise CorpusError(
                f"{self.name}: called {self.codec or self.format}, but its first bytes are those of {found}. Readable are "
                f"{SUFFIXES}, each also {', '.join(CODECS)}: rename the file to what it is, or convert it."
            )
