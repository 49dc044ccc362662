"""The sealed files of one product of a run: found, checked, read.

A file is opened only if it has the size of its seal, the footer of its run, and (verify=True) the sha256 of its seal.
Page checksums are compared while it is read. Files of a store are read a row group at a time (remote_files).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .range_cache import RangeCache
from .remote_files import Ahead, RangeFile
from .run_files import FACTS, MAKE, REMAKE, SCHEMA_NAME, SCHEMA_VERSIONS, Run, TargetsError

_OPEN_FILES = 64
"""Files kept open: a shuffled epoch visits the row groups of all files in turn, and each opening reads a footer."""

_FOOTERS_AT_ONCE = 16

_COLUMNS = ("doc_id", "doc_row", "text", "token_ids", "byte_end", "scored", "flags")
_CODECS = {
    "topk": ("topk_ids", "topk_logps", "tail_logp"),
    "sample": ("sample_sizes", "sample_ids", "sample_counts"),
    "hidden": ("hidden",),
}


class ProductFiles:
    """The sealed files of one product, in corpus order.

    facts    the product's facts in the manifest (or plan)
    records  name, rows, positions, bytes, sha256 of each file (units without a good document have none)
    units    the unit of each record

    cache    where ranges of remote files are kept; None: nowhere
    """

    def __init__(self, run: Run, product: str, *, verify: bool, cache: RangeCache | None = None) -> None:
        self.folder, self.product, self.verify = run.folder, product, verify
        self._cache = cache
        self.facts = run.products[product]
        self.codec: str = self.facts.get("codec") or "topk"
        self.fingerprint = run.fingerprint
        kept = [(shard["unit"], file) for shard in run.shards if (file := shard["files"].get(product)) is not None]
        self.units: list[int] = [unit for unit, _ in kept]
        self.records: list[dict[str, Any]] = [file for _, file in kept]
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._lock, self._opening = threading.Lock(), defaultdict(threading.Lock)  # threads open files of a store, too
        self._ahead = Ahead(self._fetch_group)
        self._verified: set[int] = set()
        self._process = os.getpid()
        if self.codec not in _CODECS:
            raise TargetsError(
                f"{run.folder.url}: {product} has the codec {self.codec!r}, this reader knows {', '.join(_CODECS)}: use "
                "the reader of the version that wrote it"
            )

    def open(self, index: int) -> pq.ParquetFile:
        """The checked file; one of the last _OPEN_FILES is kept open. Raises TargetsError."""
        if self._process != os.getpid():  # a forked worker: a remote file's connection stays with its parent
            self.__setstate__(self.__getstate__())
        with self._lock:
            one = self._opening[index]
        with one:  # a file's footer is fetched once, whichever threads want it; other files meanwhile
            with self._lock:
                file = self._open.get(index)
            if file is None:
                if self.verify and index not in self._verified:
                    self._check_digest(index)
                file = self._checked(index)
        with self._lock:
            self._open[index] = file
            self._open.move_to_end(index)
            if len(self._open) > _OPEN_FILES:
                _, oldest = self._open.popitem(last=False)
                if self.folder.local is not None:  # a remote one holds nothing but its footer; a thread may be at it
                    oldest.close(force=True)
        return file

    def group_rows(self) -> list[list[int]]:
        """Documents of each row group of each file, from the footers. Raises TargetsError."""

        def rows(index: int) -> list[int]:
            file = self._checked(index)
            found = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            file.close(force=True)
            return found

        indexes = range(len(self.records))
        if self.folder.local is not None:
            return [rows(index) for index in indexes]
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:  # a store answers slowly, but many at once
            return list(threads.map(rows, indexes))

    def ask_ahead(self, groups: Iterable[tuple[int, int]]) -> None:
        """(file, row group) that will be read next. Of a store they are fetched meanwhile."""
        if self.folder.local is None:
            self._ahead.ask(groups)

    def read(self, index: int, group: int, columns: list[str]) -> pa.Table:
        """Columns of one row group. Raises TargetsError."""
        file, record = self.open(index), self.records[index]
        with self.folder.reading(record["name"]):
            if self.folder.local is None:
                held = self._ahead.take(index, group)
                file = pq.ParquetFile(
                    RangeFile(lambda start, stop: self._fetch(index, start, stop), record["bytes"], held),
                    metadata=file.metadata,
                    page_checksum_verification=True,
                    pre_buffer=False,
                )
            return file.read_row_group(group, columns=columns)

    def _fetch_group(self, index: int, group: int) -> tuple[int, bytes]:
        """(first byte, bytes) of a row group: one request for all columns, which lie behind each other."""
        columns = self.open(index).metadata.row_group(group)
        starts, stops = [], []
        for i in range(columns.num_columns):
            column = columns.column(i)
            first = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset:
                first = min(first, column.dictionary_page_offset)
            starts.append(first)
            stops.append(first + column.total_compressed_size)
        start = min(starts)
        return start, self._fetch(index, start, max(stops))

    def _fetch(self, index: int, start: int, stop: int) -> bytes:
        record = self.records[index]
        if self._cache is None:
            return self.folder.fetch(record["name"], start, stop)
        key = f"{record['sha256']}-{start}-{stop}"
        data = self._cache.get(key)
        if data is None:
            data = self.folder.fetch(record["name"], start, stop)
            self._cache.put(key, data)
        return data

    def place(self, index: int, group: int | None = None) -> str:
        within = "" if group is None else f", row group {group}"
        return self.folder.place(self.records[index]["name"]) + within

    def lacking(self, stored: list[str]) -> list[str]:
        """Columns that a file should have and does not."""
        return [name for name in (*_COLUMNS, *_CODECS[self.codec]) if name not in stored]

    def _checked(self, index: int) -> pq.ParquetFile:
        record = self.records[index]
        name, size = record["name"], self.folder.size(record["name"])
        if size != record["bytes"]:
            found, advice = ("missing", MAKE) if size is None else (f"{size:,} bytes", REMAKE)
            raise TargetsError(f"{self.place(index)}: {found}, sealed with {record['bytes']:,} bytes; {advice}")
        with self.folder.reading(name):
            source: Any = (
                RangeFile(lambda start, stop: self._fetch(index, start, stop), record["bytes"])
                if self.folder.local is None
                else self.folder.open(name)
            )
            file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)
            self._check_footer(index, file)
            _ = file.schema_arrow.names  # read here, where an error has the name of the file
        return file

    def _check_digest(self, index: int) -> None:
        record = self.records[index]
        with self.folder.reading(record["name"]), self.folder.open(record["name"]) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record["sha256"]:
            raise TargetsError(
                f"{self.place(index)}: sha256 {digest[:12]}…, sealed with {record['sha256'][:12]}…: damaged; {REMAKE}"
            )
        self._verified.add(index)

    def _check_footer(self, index: int, file: pq.ParquetFile) -> None:
        wanted = {
            "schema": SCHEMA_NAME,
            "fingerprint": self.fingerprint,
            "product": self.product,
            "unit": str(self.units[index]),
            "rows": str(self.records[index]["rows"]),
        }
        if self.codec == "topk" and self.facts.get("top_k") is not None:
            wanted["top_k"] = str(self.facts["top_k"])
        footer = {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}
        stated = {"positions": self.records[index]["positions"], **self.facts}
        for key in ("positions", *FACTS):  # an edited manifest must not change what the numbers mean
            if key in stated and f"targetsmith.{key}" in footer:
                wanted[key] = "" if stated[key] is None else str(stated[key])
        found = {key: footer.get(f"targetsmith.{key}") for key in wanted}
        version = footer.get("targetsmith.schema_version")
        wrong = {key: value for key, value in found.items() if value != wanted[key]}
        if (
            wrong
            or version not in [str(known) for known in SCHEMA_VERSIONS]
            or file.metadata.num_rows != self.records[index]["rows"]
        ):
            raise TargetsError(
                f"{self.place(index)}: its footer says {wrong} in schema version {version} with "
                f"{file.metadata.num_rows} rows, wanted { {key: wanted[key] for key in wrong} } in one of "
                f"{SCHEMA_VERSIONS} with {self.records[index]['rows']}: a file of another run lies here; copy the folder again"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open", "_lock", "_opening")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=OrderedDict(), _process=os.getpid())
        self._lock, self._opening = threading.Lock(), defaultdict(threading.Lock)
