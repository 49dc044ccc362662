"""Where an output lies, as a small set of operations: a folder of a POSIX file system, or a prefix of an object store.

    store = open_store("out") or open_store("s3://bucket/out")
    store.put_if_absent("_engine/plan.json", data)     True: this call published it. False: the name was taken

Names are relative to the output, with slashes. A file appears whole under its name, once and for ever, or not at all: on
POSIX by a hard link (engine/dataset/posix.py), on an object store by one conditional PUT (If-None-Match: *), which the store
carries out for at most one of any number of writers. Nothing is ever renamed or overwritten.

Object stores are reached through fsspec, as in the reader: one library, one set of credentials (environment, configuration
files or the machine's role; docs/operations.md). They never pass through this program.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from engine.dataset.posix import output_errors, put_if_absent, read_published
from schemas.address import STORES, is_url, path_of, url_fault
from schemas.errors import OutputError
from schemas.redact import redacted

STAGING = "_engine/tmp"
SHARD_BYTES = 512 * 2**20
"""Most bytes of a shard on an object store: it goes in one PUT, made and checked in memory."""

_PUT_BYTES = 5 * 2**30  # what S3 and GCS take in one PUT
_WAITS_S = (0.5, 2.0)  # between attempts; the libraries have tried a few times by themselves before
_AT_ONCE = 16
_CREATE: dict[str, dict[str, Any]] = {  # s3fs, gcsfs: a chunk of any size, so that it is never an upload in parts
    "s3": {"mode": "create", "chunksize": _PUT_BYTES},
    "gs": {"mode": "create", "chunksize": _PUT_BYTES},
    "az": {"mode": "create"},
}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Store(ABC):
    """An output. `str(store)` is its path or URL. All methods raise OutputError, which names the file and what to do."""

    most_bytes: int | None = None
    """Most bytes of a shard; None: no limit."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __str__(self) -> str:
        return self.url

    def place(self, name: str) -> str:
        """How messages name a file: its full path or URL."""
        return f"{self.url}/{name}"

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def check(self) -> None:  # noqa: B027 - most stores need no check
        """Whether the store keeps the promise of `put_if_absent`, as far as one can try."""

    def map(self, call: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """`call` of each item, in order; at once where an answer takes long."""
        return [call(item) for item in items]

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish a whole file unless the name exists. True: this call published it. False: the name was taken.

        Either way the file under that name is then complete and durable. A call that raises may have published it all the
        same (a lost answer): repeat it, and take over what is there.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a published file."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None: there is none."""

    def published_s(self, name: str) -> float | None:
        """When a file was published, in seconds since 1970; None where that is not known. A copied file has another time."""
        return None

    @abstractmethod
    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Name and bytes of every file below a folder, in any order; none when there is no such folder."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A published file for random reads."""


class PosixStore(Store):
    """A folder with hard links and fsync: a local disk or NFS."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.root = root

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return put_if_absent(self.root / name, data, staging=self.root / STAGING)

    def read(self, name: str) -> bytes:
        return read_published(self.root / name)

    def size(self, name: str) -> int | None:
        path = self.root / name
        with output_errors(path):
            return path.stat().st_size if path.is_file() else None

    def published_s(self, name: str) -> float | None:
        path = self.root / name
        with output_errors(path):
            return path.stat().st_mtime if path.is_file() else None

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        with output_errors(self.root / folder):
            for path in (self.root / folder).rglob("*"):
                try:
                    if path.is_symlink() or not path.is_dir():  # a link to a folder is an entry that readers may follow
                        found = path.stat() if path.exists() else path.lstat()
                        yield path.relative_to(self.root).as_posix(), found.st_size
                except FileNotFoundError:
                    continue  # the staging of another process, gone by now

    def open(self, name: str) -> BinaryIO:
        with output_errors(self.root / name):
            return (self.root / name).open("rb")


class ObjectStore(Store):
    """A prefix of a bucket. Not to be shared between processes: each opens its own.

    A store answers 'it exists' also to the repeat of a PUT whose first answer was lost, so put_if_absent may return False
    for a file of its own. Callers take over what is there, and need not know.
    """

    most_bytes = SHARD_BYTES

    def __init__(self, url: str, fs: Any = None) -> None:
        super().__init__(url.rstrip("/"))
        scheme, _, path = self.url.partition("://")
        self._root, self._create = path, _CREATE[scheme]
        if fs is None:
            try:  # listings are not kept, and no other user of fsspec in this process shares the object
                fs = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
            except ImportError as error:
                raise OutputError(
                    f"{self.url}: the library {STORES[scheme]} is missing here: pip install {STORES[scheme]}, on every node"
                ) from error
        self._fs = fs

    def check(self) -> None:
        """Two creates of one scratch name: the second must fail and change nothing. OutputError when it does not."""
        name = f"{STAGING}/probe-{uuid.uuid4().hex}"
        self.put_if_absent(name, b"first")
        second, found = self.put_if_absent(name, b"second"), self.read(name)
        with suppress(Exception):  # who may not delete leaves some bytes that nobody reads
            self._fs.rm_file(self._key(name))
        if second or found != b"first":
            raise OutputError(
                f"{self.url}: this store overwrites where it was told to create only (If-None-Match was ignored), and "
                "workers could overwrite each other's files; use a store with conditional writes, or write to a disk and "
                "copy the finished output"
            )

    def map(self, call: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(call, items))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        if len(data) >= _PUT_BYTES:
            raise OutputError(
                f"{self.place(name)}: {len(data):,} bytes; a store takes less than {_PUT_BYTES:,} in one PUT: write this run "
                "to a disk, and copy the finished output"
            )
        try:
            self._try(name, lambda: self._fs.pipe_file(self._key(name), data, **self._create))
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.place(name)}: {redacted(str(error))}; make the bucket first, or correct it"
            ) from error
        return True

    def read(self, name: str) -> bytes:
        try:
            return self._try(name, lambda: self._fs.cat_file(self._key(name)))
        except FileNotFoundError as error:
            raise self._missing(name) from error

    def size(self, name: str) -> int | None:
        try:
            found = self._try(name, lambda: self._fs.info(self._key(name)))
        except FileNotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        top = self._key(folder).rstrip("/")
        try:
            found = self._try(folder, lambda: self._fs.find(top, detail=True))
        except FileNotFoundError:
            return
        for path, facts in found.items():
            if path.startswith(top + "/") and not path.endswith("/"):  # consoles make empty "folder/" objects
                yield path.removeprefix(self._root + "/"), int(facts["size"])

    def open(self, name: str) -> BinaryIO:
        """Without a cache: Arrow asks for whole ranges of column chunks."""
        try:
            return self._try(name, lambda: self._fs.open(self._key(name), "rb", cache_type="none"))
        except FileNotFoundError as error:
            raise self._missing(name) from error

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _missing(self, name: str) -> OutputError:
        return OutputError(
            f"{self.place(name)}: the file is missing; give the command that made the output again: it makes anew what it can"
        )

    def _try(self, name: str, call: Callable[[], _Result]) -> _Result:
        """The answer of the store; after errors that may pass, asked again. Existence and absence are answers."""
        for wait_s in (*_WAITS_S, None):
            try:
                return call()
            except (FileExistsError, FileNotFoundError):
                raise
            except Exception as error:  # each store has errors of its own kind
                if wait_s is None or isinstance(error, PermissionError):
                    raise OutputError(
                        f"{self.place(name)}: {type(error).__name__}: {redacted(str(error))}; check the address, the "
                        "credentials and the connection (docs/operations.md) and run again, all finished units are kept"
                    ) from error
                time.sleep(wait_s)
        raise AssertionError("unreachable")


Out = str | Path | Store
"""How an output is named: a path, a URL, or a store that is open already."""


def open_store(out: Out) -> Store:
    """The store at a path or URL; a store is given back as it is. OutputError when no output can lie there."""
    if isinstance(out, Store):
        return out
    text = str(out)
    if isinstance(out, Path) or not is_url(text):
        return PosixStore(path_of(text))
    if fault := url_fault(text):
        raise OutputError(f"{redacted(text)}: wanted {fault[0]}; {fault[1]}")
    return ObjectStore(text)
