"""What a run's folder or bucket holds: its records, and any file of it, on a local disk or any fsspec store."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

SCHEMA_NAME = "targetsmith.targets"
SCHEMA_VERSIONS = (2, 3)

_AGAIN = "run `targetsmith score` again (for an import, the same `targetsmith import`): it is made anew"
MAKE = f"copy the file there, or {_AGAIN}"
REMAKE = f"copy the file again, or remove it and {_AGAIN}"

_SEAL = re.compile(r"[0-9]{1,9}\.json")


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
        """A file to be read from its beginning or here and there."""
        if self.local is not None:
            return (self.local / name).open("rb")
        fs, root = self._remote_root()
        return fs.open(f"{root}/{name}", "rb", cache_type="none")

    def fetch(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a remote file, in one request. Any thread may ask."""
        fs, root = self._remote_root()
        data = fs.cat_file(f"{root}/{name}", start=start, end=stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data):,} bytes came of {stop - start:,} at {start:,}")
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run. Raises TargetsError when it is no JSON or has a schema that is not known here."""
        try:
            with self.open(name) as file:
                content = json.loads(file.read())
        except Exception as error:
            raise TargetsError(f"{self.place(name)}: cannot be read ({error}); {REMAKE}") from error
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
            raise TargetsError(f"{self.place(name)}: damaged or unreadable ({error}); {REMAKE}") from error
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
                    "with `targetsmith score` (an import: `targetsmith import`), or read what is there with allow_partial=True"
                )
            seals.sort(key=lambda name: int(name.removesuffix(".json")))
            self.shards = [folder.read_json(f"_engine/shards/{name}") for name in seals]
        else:
            missing = folder.local is not None and not folder.local.is_dir()
            found = "no such folder" if missing else "no _engine/plan.json here: no output of targetsmith"
            raise TargetsError(
                f"{folder.url}: {found}; name the `output` of a run file that `targetsmith score` has finished"
            )
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
        self.head: dict[str, Any] | None = content.get("head")  # the record of the teacher's lm_head, in a finished run

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
FACTS = (*_NUMBERS, "codec", "regime", "semantics", "tokenizer_hash", "bos_id", "eos_id")


def _malformed(content: dict[str, Any], shards: list[dict[str, Any]]) -> str | None:
    """What is wrong with a manifest or plan and its records; also AttributeError, KeyError, TypeError say so."""
    if type(content["fingerprint"]) is not str:
        return "fingerprint"
    for product, facts in content["products"].items():
        if any(
            not isinstance(facts.get(name), str | None) for name in ("codec", "regime", "semantics", "tokenizer_hash")
        ):
            return f"facts of {product}"
        lost = content["schema_version"] > 2 and not facts.keys() >= {*FACTS}
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
