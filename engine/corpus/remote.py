"""Corpus files on object stores, the Hub and web servers: URLs and globs go in; out come the files, what tells one version of a
file from another, and streams of their bytes.

Stores are reached through fsspec, as outputs are (engine/dataset/store.py): credentials are found by each store's own library, in
the environment or its own files, on every node. They never pass through this program. A request that fails is repeated.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import fsspec

from schemas.address import SOURCES, WEB, without_query
from schemas.errors import CorpusError
from schemas.redact import redacted

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

WAITS_S = (0.5, 2.0)
"""Between attempts; the libraries have tried a few times by themselves before."""
BLOCK_BYTES = 4 * 2**20
"""Bytes of one request where a file is read from front to back."""

_CONTENT = ("lfs", "blob_id", "md5Hash", "content_md5", "Content-MD5", "ETag", "etag", "generation")
_DATED = ("Last-Modified", "last_modified", "created", "mtime")
"""What stores tell of a file: first what hangs on its content, then when it was written, which counts without the other."""
_OF_CONTENT = ("s3", "gs", "az", "hf")
"""Stores whose word for the content is believed: no other content has it. Of other files the content itself is hashed."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a store tells of a file now. n_bytes: None where it does not say. version: another one, another content; "": not
    told. sha256: what stands for the content in the plan; None: its bytes must be hashed."""

    n_bytes: int | None
    version: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file by its URL. All methods raise CorpusError, which names the file and what to do."""

    url: str

    @property
    def name(self) -> str:
        """How messages and doc ids name it: without what may be secret."""
        return redacted(without_query(self.url))

    @property
    def path(self) -> PurePosixPath:
        """Its path on the store, for suffixes and names."""
        return PurePosixPath(without_query(self.url).partition("://")[2])

    def facts(self) -> Facts:
        scheme = self.url.partition("://")[0]
        more = {"refresh": True, "expand_info": True} if scheme == "hf" else {}
        found = self._try(lambda: _system(scheme).info(self.url, **more))
        told = [(key, str(_plain(found[key]))) for key in _CONTENT if found.get(key)]
        dated = [] if told else [(key, str(found[key])) for key in _DATED if found.get(key)]
        size = found.get("size")
        content = hashlib.sha256(repr((scheme, told[:1], size)).encode()).hexdigest()
        if scheme == "hf" and isinstance(_plain(found.get("lfs")), str):
            content = _plain(found["lfs"])  # the very sha256 of the file
        version = repr((told, dated, size)) if told or dated else ""
        return Facts(size, version, content if scheme in _OF_CONTENT and told else None)

    def open(self, *, parts: bool = False) -> IO[bytes]:
        """Its bytes, from front to back; parts: with places far apart. A stream that cannot seek is one of a server that gives
        whole files only."""
        scheme = self.url.partition("://")[0]
        how: dict[str, Any] = (
            {"cache_type": "none"} if parts else {"cache_type": "readahead", "block_size": BLOCK_BYTES}
        )
        if scheme in WEB and not self._try(self._gives_parts):
            how = {"block_size": 0}
        file = self._try(lambda: _system(scheme).open(self.url, "rb", **how))
        stream = _Stream(self, file)
        return cast(IO[bytes], stream if parts else io.BufferedReader(stream, 1 << 16))

    def _gives_parts(self) -> bool:
        """Whether a web server answers with a part where one is asked for; many do not, and do not say so."""
        with _system("http").open(self.url, "rb", cache_type="none") as file:
            if not _can_seek(file):
                return False
            file.seek(1)
            try:
                file.read(1)
            except ValueError:
                return False
        return True

    def fetched(self) -> tuple[IO[bytes], int, str]:
        """All of it in an unnamed temporary file, its size and its sha256 (hex)."""
        for wait_s in (*WAITS_S, None):
            copy, digest = tempfile.TemporaryFile(), hashlib.sha256()
            try:
                with self.open() as stream:
                    while data := stream.read(1 << 20):
                        digest.update(data)
                        copy.write(data)
            except CorpusError:  # a connection that breaks in the middle; a server that gives whole files begins anew
                copy.close()
                if wait_s is None:
                    raise
                time.sleep(wait_s)
                continue
            size = copy.tell()
            copy.seek(0)
            return copy, size, digest.hexdigest()
        raise AssertionError("unreachable")

    def failed(self, error: Exception) -> CorpusError:
        """The error as one message for people."""
        if isinstance(error, FileNotFoundError):
            return CorpusError(f"{self.name}: the file is gone. Put it back, or correct [corpus] paths.")
        if type(error).__name__ == "FileExpired":
            return CorpusError(
                f"{self.name}: changed while it was read. Put the file back as it was, or score the new corpus into "
                "another output folder."
            )
        return CorpusError(
            f"{self.name}: {type(error).__name__}: {redacted(str(error).replace(self.url, self.name))}; check the address, the "
            "credentials and the connection (docs/operations.md) and run again, all finished units are kept"
        )

    def _try(self, call: Callable[[], T]) -> T:
        """The answer of the store; after errors that may pass, asked again. Absence is an answer."""
        for wait_s in (*WAITS_S, None):
            try:
                return call()
            except CorpusError:
                raise
            except Exception as raised:  # each store has errors of its own kind
                error = _cause(raised)
                if wait_s is None or isinstance(error, FileNotFoundError | PermissionError):
                    raise self.failed(error) from raised
                time.sleep(wait_s)
        raise AssertionError("unreachable")


def matches(pattern: str) -> list[str]:
    """The URLs of the files that a URL or a glob of URLs names, sorted. CorpusError where there is none, or no answer."""
    scheme, asked = pattern.partition("://")[0], RemoteFile(pattern)
    magic = "*[" if scheme in WEB else "*?["  # a "?" in the URL of a web server begins its query
    system = _system(scheme)
    if not any(sign in pattern for sign in magic):
        if scheme not in WEB and asked._try(lambda: system.isdir(pattern)):
            raise CorpusError(
                f'[corpus] paths {asked.name!r}: got a folder; wanted files. Write for example "'
                f'{asked.name.rstrip("/")}/*.parquet".'
            )
        return [pattern]
    system.invalidate_cache()
    found = asked._try(lambda: system.glob(pattern, detail=True))
    names = [name for name, facts in found.items() if facts.get("type") != "directory" and not name.endswith("/")]
    if not names:
        raise CorpusError(f"[corpus] paths {asked.name!r}: got no file; wanted at least one there. Correct the URL.")
    return sorted(name if "://" in name else f"{scheme}://{name.lstrip('/')}" for name in names)


@cache
def _system(scheme: str) -> Any:
    """The file system of a kind of URL, one for each process; listings are not kept. Raises CorpusError."""
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        library = SOURCES[scheme]
        raise CorpusError(
            f"[corpus] paths {scheme}://...: the library {library} is missing here: pip install {library}, on every node"
        ) from error


def _plain(value: Any) -> Any:
    """The sha256 in what the Hub tells of a large file."""
    return (value.get("sha256") if isinstance(value, dict) else getattr(value, "sha256", value)) if value else value


class _Stream(io.RawIOBase):
    """A file of a store whose errors are CorpusErrors. What can seek is asked again; a stream that ends too early is no end."""

    def __init__(self, file: RemoteFile, stream: Any) -> None:
        self._file, self._stream = file, stream
        self._seeks = _can_seek(stream)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._seeks

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view, data = memoryview(buffer).cast("B"), b""
        for wait_s in (*WAITS_S, None):
            try:
                data = self._stream.read(len(view))
                break
            except Exception as error:
                if wait_s is None or not self._seeks or isinstance(error, FileNotFoundError | PermissionError):
                    raise self._file.failed(error) from error
                if type(error).__name__ == "FileExpired":
                    raise self._file.failed(error) from error
                time.sleep(wait_s)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _cause(error: Exception) -> Exception:
    """fsspec says of every answer of a web server, and of none, that there is no such file."""
    cause = error.__cause__
    gone = getattr(cause, "status", None) in (404, 410)
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and not gone else error


def _can_seek(stream: Any) -> bool:
    """fsspec says of every stream that it can."""
    try:
        stream.seek(1)
        stream.seek(0)
    except (ValueError, OSError):
        return False
    return True
