"""The sealed files of a run, on a local disk or any fsspec store: find them, check them, open them.

A file is opened only if it has the size of its seal, the footer of its run, and (verify=True) the sha256 of its seal.
Page checksums are compared while it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_NAME = "targetsmith.targets"
SCHEMA_VERSIONS = (2, 3)

_REMAKE = "copy the file again, or remove it and run `targetsmith score` again: it is made anew"

_SEAL = re.compile(r"[0-9]{1,9}\.json")

_OPEN_FILES = 64
"""Files kept open: a shuffled epoch visits the row groups of all files in turn, and each opening reads a footer."""

_FOOTERS_AT_ONCE = 16

_COLUMNS = ("doc_id", "doc_row", "text", "token_ids", "byte_end", "scored", "flags")
_CODECS = {
    "topk": ("topk_ids", "topk_logps", "tail_logp"),
    "sample": ("sample_sizes", "sample_ids", "sample_counts"),
    "hidden": ("hidden",),
}


class TargetsError(Exception):
    """The folder cannot be read as targets; the message says where, what was found and what to do."""


class OutputFolder:
    """The output folder: a local path, or a URL of any fsspec store such as s3://bucket/out.

    storage_options  given to fsspec as they are (keys, endpoint); no meaning for a local path

    A file system object of fsspec must not cross a fork: each process makes its own, when it first reads.
    """

    def __init__(self, out: str | Path, storage_options: dict[str, Any] | None = None) -> None:
        text = str(out).removeprefix("file://localhost").removeprefix("file://")
        self.local = Path(text) if "://" not in text else None
        self.url = text.rstrip("/") if self.local is None else str(self.local)
        self._options = dict(storage_options or {})
        self._process, self._remote = 0, (None, "")

    def place(self, name: str) -> str:
        """How messages name a file: its full path or URL."""
        return f"{self.url}/{name}" if name else self.url

    def size(self, name: str) -> int | None:
        """Bytes of a file; None: there is none."""
        try:
            if self.local is not None:
                return (self.local / name).stat().st_size if (self.local / name).is_file() else None
            fs, root = self._remote_root()
            fs.invalidate_cache()
            info = fs.info(f"{root}/{name}")
            return int(info["size"]) if info["type"] == "file" else None
        except FileNotFoundError:
            return None
        except Exception as error:  # each store has errors of its own kind
            raise self._unreadable(name, error) from error

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; [] when there is no such folder."""
        if self.local is not None:
            return sorted(path.name for path in (self.local / folder).glob("*"))
        try:
            fs, root = self._remote_root()
            fs.invalidate_cache()
            return sorted(str(path).rpartition("/")[2] for path in fs.ls(f"{root}/{folder}", detail=False))
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unreadable(folder, error) from error

    def open(self, name: str) -> Any:
        """A file for random reads. Remote: without a cache, since Arrow asks for whole ranges of column chunks."""
        if self.local is not None:
            return (self.local / name).open("rb")
        fs, root = self._remote_root()
        return fs.open(f"{root}/{name}", "rb", cache_type="none")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run. Raises TargetsError when it is no JSON or has a schema that is not known here."""
        try:
            with self.open(name) as file:
                content = json.loads(file.read())
        except Exception as error:
            raise TargetsError(f"{self.place(name)}: cannot be read ({error}); {_REMAKE}") from error
        found = (content.get("schema_name"), content.get("schema_version")) if isinstance(content, dict) else None
        if found not in [(SCHEMA_NAME, version) for version in SCHEMA_VERSIONS]:
            raise TargetsError(
                f"{self.place(name)}: schema {found}, this reader knows {SCHEMA_NAME} in the versions "
                f"{', '.join(map(str, SCHEMA_VERSIONS))}: use the reader of the version that wrote it"
            )
        return content

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Any error of Arrow or of the store becomes a TargetsError that names the file."""
        try:
            yield
        except TargetsError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise TargetsError(f"{self.place(name)}: damaged or unreadable ({error}); {_REMAKE}") from error
        except Exception as error:
            raise self._unreadable(name, error) from error

    def _remote_root(self) -> tuple[Any, str]:
        if self._process != os.getpid():
            self._remote = fsspec.url_to_fs(self.url, **self._options)
            self._process = os.getpid()
        return self._remote

    def _unreadable(self, name: str, error: Exception) -> TargetsError:
        return TargetsError(
            f"{self.place(name)}: cannot be read ({type(error).__name__}: {error}); check the address, the "
            "connection and storage_options"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": 0, "_remote": (None, "")}


class Run:
    """What a folder holds: the facts of its products and the records of its sealed files.

    allow_partial  also a run that is not finished: its sealed shards
    Raises TargetsError.
    """

    def __init__(self, folder: OutputFolder, allow_partial: bool = False) -> None:
        engine = folder.names("_engine")
        if "manifest.json" in engine:
            content = folder.read_json("_engine/manifest.json")
            self.shards: list[dict[str, Any]] = content.get("shards") or []
        elif "plan.json" in engine:
            content = folder.read_json("_engine/plan.json")
            seals = [name for name in folder.names("_engine/shards") if _SEAL.fullmatch(name)]
            if not allow_partial:
                raise TargetsError(
                    f"{folder.url}: the run is not finished ({len(seals)} of {len(content.get('units', []))} units): finish it "
                    "with `targetsmith score`, or read what is there with allow_partial=True"
                )
            seals.sort(key=lambda name: int(name.removesuffix(".json")))
            self.shards = [folder.read_json(f"_engine/shards/{name}") for name in seals]
        else:
            raise TargetsError(f"{folder.url}: no _engine/plan.json here: no output of targetsmith")
        try:
            wrong = _malformed(content, self.shards)
        except (AttributeError, KeyError, TypeError) as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            raise TargetsError(
                f"{folder.place('_engine')}: the records of the run are damaged ({wrong}), wanted them as they were written; "
                "restore the JSON files there from a copy"
            )
        self.folder, self.fingerprint = folder, content["fingerprint"]
        self.products: dict[str, dict[str, Any]] = content["products"]

    def choose(self, product: str | None) -> str:
        """The full name of a product: "teacher", "student/small" or "small"; None: the only student or product."""
        known = sorted(self.products)
        if product is None:
            candidates = [name for name in known if name.startswith("student/")] or known
            if len(candidates) == 1:
                return candidates[0]
        else:
            for name in (product, f"student/{product}"):
                if name in known:
                    return name
        raise TargetsError(f"{self.folder.url}: got product {product!r}; this run has {', '.join(known)}: name one")


_NUMBERS = ("top_k", "vocab_size", "draws", "hidden_size")
_FACTS = (*_NUMBERS, "codec", "regime", "semantics", "tokenizer_hash", "bos_id", "eos_id")


def _malformed(content: dict[str, Any], shards: list[dict[str, Any]]) -> str | None:
    """What is wrong with a manifest or plan and its records; also AttributeError, KeyError, TypeError say so."""
    if type(content["fingerprint"]) is not str:
        return "fingerprint"
    for product, facts in content["products"].items():
        if any(
            not isinstance(facts.get(name), str | None) for name in ("codec", "regime", "semantics", "tokenizer_hash")
        ):
            return f"facts of {product}"
        lost = content["schema_version"] > 2 and not facts.keys() >= {*_FACTS}
        if lost or any(not isinstance(facts[name], int) for name in _NUMBERS if facts.get(name) is not None):
            return f"facts of {product}"
    units, sums = [], dict.fromkeys(content["products"], 0)
    for shard in shards:
        units.append(shard["unit"])
        for product, file in shard["files"].items():
            if file is None:
                continue
            numbers = [file[name] for name in ("rows", "positions", "bytes")]
            if not all(type(n) is int and n > 0 for n in numbers) or type(file["name"] + file["sha256"]) is not str:
                return f"unit {shard['unit']}, {product}"
            sums[product] += file["rows"]
    if any(type(unit) is not int for unit in units) or units != sorted(set(units)):
        return "units out of order, or twice"
    for product, total in (content.get("totals") or {}).items():
        if total["rows"] != sums[product]:
            return f"{sums[product]} documents of {product} in the files, {total['rows']} in the totals"
    return None


class ProductFiles:
    """The sealed files of one product, in corpus order.

    facts    the product's facts in the manifest (or plan)
    records  name, rows, positions, bytes, sha256 of each file (units without a good document have none)
    units    the unit of each record
    """

    def __init__(self, run: Run, product: str, *, verify: bool) -> None:
        self.folder, self.product, self.verify = run.folder, product, verify
        self.facts = run.products[product]
        self.codec: str = self.facts.get("codec") or "topk"
        self.fingerprint = run.fingerprint
        kept = [(shard["unit"], file) for shard in run.shards if (file := shard["files"].get(product)) is not None]
        self.units: list[int] = [unit for unit, _ in kept]
        self.records: list[dict[str, Any]] = [file for _, file in kept]
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
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
            self._open, self._process = OrderedDict(), os.getpid()
        if index not in self._open:
            if self.verify and index not in self._verified:
                self._check_digest(index)
            self._open[index] = self._checked(index)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].close(force=True)
        self._open.move_to_end(index)
        return self._open[index]

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

    def read(self, index: int, group: int, columns: list[str]) -> pa.Table:
        """Columns of one row group. Raises TargetsError."""
        file = self.open(index)
        with self.folder.reading(self.records[index]["name"]):
            return file.read_row_group(group, columns=columns)

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
            found = "missing" if size is None else f"{size:,} bytes"
            raise TargetsError(f"{self.place(index)}: {found}, sealed with {record['bytes']:,} bytes; {_REMAKE}")
        with self.folder.reading(name):
            file = pq.ParquetFile(
                self.folder.open(name), page_checksum_verification=True, pre_buffer=self.folder.local is None
            )
            self._check_footer(index, file)
            _ = file.schema_arrow.names  # read here, where an error has the name of the file
        return file

    def _check_digest(self, index: int) -> None:
        record = self.records[index]
        with self.folder.reading(record["name"]), self.folder.open(record["name"]) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record["sha256"]:
            raise TargetsError(
                f"{self.place(index)}: sha256 {digest[:12]}…, sealed with {record['sha256'][:12]}…: damaged; {_REMAKE}"
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
        for key in ("positions", *_FACTS):  # an edited manifest must not change what the numbers mean
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
        return {**self.__dict__, "_open": OrderedDict()}
