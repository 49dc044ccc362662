"""Files of a store, read in whole ranges: each row group in one request, the next ones in the background, a local cache beside.

What is asked for ahead waits in memory until it is read; of what is not read after all nothing stays.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

THREADS = 8
"""Requests to a store at a time: it answers slowly, but many at once."""


class RangeFile(io.RawIOBase):
    """A file of `size` bytes whose reads go to `fetch(start, stop)`; those within `held` = (start, bytes) to these."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, held: tuple[int, bytes] = (0, b"")) -> None:
        super().__init__()
        self._fetch, self._size, self._held, self._at = fetch, size, held, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        start, stop = self._at, self._size if size is None or size < 0 else min(self._at + size, self._size)
        if start >= stop:
            return b""
        first, data = self._held
        inside = first <= start and stop <= first + len(data)
        found = data[start - first : stop - first] if inside else self._fetch(start, stop)
        self._at = stop
        return found


class Ahead:
    """Row groups that are being fetched before they are read, by (file, row group).

    fetch  makes the (start, bytes) of a row group; called by threads, several at a time
    """

    def __init__(self, fetch: Callable[[int, int], tuple[int, bytes]]) -> None:
        self._fetch = fetch
        self._process = 0
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: dict[tuple[int, int], Future[tuple[int, bytes]]] = {}

    def ask(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Begin to fetch these; what was asked for before and is neither read nor among them is forgotten."""
        if self._process != os.getpid():  # threads do not cross a fork
            self._threads, self._waiting, self._process = None, {}, os.getpid()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "targets-ahead")
        kept = {key: self._waiting.pop(key, None) for key in dict.fromkeys(wanted)}
        for future in self._waiting.values():
            future.cancel()
        self._waiting = {key: self._threads.submit(self._fetch, *key) if f is None else f for key, f in kept.items()}

    def take(self, index: int, group: int) -> tuple[int, bytes]:
        """The row group: as it was asked for, else now. Errors of the store are raised here."""
        future = self._waiting.pop((index, group), None) if self._process == os.getpid() else None
        return self._fetch(index, group) if future is None else future.result()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": 0, "_threads": None, "_waiting": {}}
