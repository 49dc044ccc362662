"""Read the targets of a run: documents as numpy arrays, or batches as padded torch tensors. Stands alone.

This file needs the standard library, pyarrow, numpy and torch, and nothing else of the project: copy it into a trainer.

    for batch in Targets("out", "small").batches(8, seed=0, device="cuda"):
        ...  # batch["ids"] [B, L, K] int64, batch["logps"] [B, L, K] float32, batch["mask"] [B, L] bool ...

Shapes: T = positions of a document, B = documents of a batch, L = longest of them, K = top_k. Row i predicts token i
given tokens < i: in a usual causal model, row i goes with the logits at position i - 1. Log-probabilities are in nats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

SCHEMA_NAME = "targetsmith.targets"
SCHEMA_VERSION = 3
PAD_ID = -1

_POOL_GROUPS = 8
"""Row groups (at most 64 documents each) that are mixed with each other when a seed is given."""

_BATCH_COLUMNS = ("token_ids", "scored", "topk_ids", "topk_logps", "tail_logp", "gold_logp", "err")
_SHARES = ("open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass")
_WIDE = "(wide)"  # made while reading: scored, but wider than max_width
_ALL_COLUMNS = ("doc_id", "text", "byte_end", "flags", *_SHARES, *_BATCH_COLUMNS)


class TargetsError(Exception):
    """The folder cannot be read as targets; the message says where, what was found and what to do."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document. The arrays are read-only views into a row group: copy what you keep for long."""

    doc_id: str
    text: str
    token_ids: npt.NDArray[np.int32]  # [T]
    byte_end: npt.NDArray[np.int32]  # [T]
    scored: npt.NDArray[np.bool_]  # [T]
    ids: npt.NDArray[np.int32]  # [T, K], PAD_ID where fewer than K tokens have mass
    logps: npt.NDArray[np.float32]  # [T, K] nats, falling; -inf beside PAD_ID
    tail_logp: npt.NDArray[np.float32]  # [T] nats
    gold_logp: npt.NDArray[np.float32]  # [T] nats
    err: npt.NDArray[np.float32]  # [T] probability
    open_mass: npt.NDArray[np.float32]  # [T] shares, see docs/format.md
    excluded_mass: npt.NDArray[np.float32]  # [T]
    pruned_mass: npt.NDArray[np.float32]  # [T]
    noncanonical_mass: npt.NDArray[np.float32]  # [T]
    flags: npt.NDArray[np.uint8]  # [T]
    left_out: int  # positions that only `max_width` made unscored


@dataclass(frozen=True, slots=True)
class _Group:
    """A decoded row group: flat arrays and the documents' bounds in them."""

    bounds: npt.NDArray[np.int64]  # [documents + 1]
    columns: dict[str, Any]  # name -> flat array [N], [N, K] for the top-k columns, list of str for strings

    def cut(self, name: str, document: int) -> np.ndarray:
        return self.columns[name][self.bounds[document] : self.bounds[document + 1]]


class Targets:
    """The shards of one product of one run.

    out            the output folder
    product        "teacher", "bytes", a student's name, or "student/<name>"; may be left out when there is one student, or
                   one product. A student called "teacher" or "bytes" is "student/teacher", "student/bytes"
    allow_partial  also read a run that is not finished (its sealed shards)
    verify         compare the sha256 of each file with its seal before reading (sizes and page checksums always are)
    max_width      positions with a certified width `err` above this are read as unscored: `scored` and `mask` are False
                   there, all else stays, and `left_out` counts them. 0 keeps the exact ones. None: no limit

    `top_k`, `vocab_size`, `regime`, `semantics`, `rows`, `positions` and `files` say what is there. The vocabulary of
    "bytes": ids 0..255 are bytes, 256 is the end of the text. Raises TargetsError.
    """

    def __init__(
        self,
        out: str | Path,
        product: str | None = None,
        *,
        allow_partial: bool = False,
        verify: bool = False,
        max_width: float | None = None,
    ) -> None:
        if max_width is not None and not max_width >= 0:  # NaN too
            raise ValueError(f"max_width {max_width}: wanted a number >= 0, or None for no limit")
        self.out = Path(out)
        self.verify, self.max_width = verify, max_width
        facts, shards = self._load(allow_partial)
        self.product = self._choose(product, sorted(facts))
        self.top_k: int = facts[self.product]["top_k"]
        self.vocab_size: int = facts[self.product]["vocab_size"]
        self.regime: str = facts[self.product]["regime"]
        self.semantics: str = facts[self.product]["semantics"]
        self._files = [file for shard in shards if (file := shard["files"][self.product]) is not None]
        self.rows: int = sum(file["rows"] for file in self._files)
        self.positions: int = sum(file["positions"] for file in self._files)

    @property
    def files(self) -> list[Path]:
        """The Parquet files, in corpus order."""
        return [self.out / file["name"] for file in self._files]

    def documents(self) -> Iterator[Document]:
        """Every document, in corpus order."""
        for group in self._groups(_ALL_COLUMNS, None):
            column = group.columns
            for i in range(len(group.bounds) - 1):
                yield Document(
                    doc_id=column["doc_id"][i],
                    text=column["text"][i],
                    token_ids=group.cut("token_ids", i),
                    byte_end=group.cut("byte_end", i),
                    scored=group.cut("scored", i),
                    ids=group.cut("topk_ids", i),
                    logps=group.cut("topk_logps", i),
                    tail_logp=group.cut("tail_logp", i),
                    gold_logp=group.cut("gold_logp", i),
                    err=group.cut("err", i),
                    open_mass=group.cut("open_mass", i),
                    excluded_mass=group.cut("excluded_mass", i),
                    pruned_mass=group.cut("pruned_mass", i),
                    noncanonical_mass=group.cut("noncanonical_mass", i),
                    flags=group.cut("flags", i),
                    left_out=int(group.cut(_WIDE, i).sum()),
                )

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        max_length: int | None = None,
        device: str | torch.device | None = None,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Padded batches; every document once, the last batch may be smaller.

        seed        None: corpus order. Else files, row groups, and the documents of _POOL_GROUPS row groups at a time
                    are shuffled, the same way at every call with this seed.
        max_length  keep the first so many positions of a document (the rest of it is left out).

        Keys (in brackets the padding): token_ids [B, L] int64 (0), ids [B, L, K] int64 (0, also where no token is
        stored: safe to gather with), logps [B, L, K] float32 nats (-inf, also where no token is stored),
        tail_logp [B, L] nats (0), gold_logp [B, L] nats (-inf), err [B, L] (0), mask [B, L] bool: scored (within
        max_width) and not padding, lengths [B] int64, left_out [B] int64: positions that only max_width left out.
        """
        if batch_size < 1 or (max_length is not None and max_length < 1):
            raise ValueError(f"batch_size {batch_size} and max_length {max_length}: wanted numbers >= 1")
        rng = None if seed is None else np.random.default_rng(seed)
        waiting: list[tuple[_Group, int]] = []
        for member in self._members(rng):
            waiting.append(member)
            if len(waiting) == batch_size:
                yield self._collate(waiting, max_length, device)
                waiting = []
        if waiting:
            yield self._collate(waiting, max_length, device)

    # ---- decoding ----

    def _members(self, rng: np.random.Generator | None) -> Iterator[tuple[_Group, int]]:
        """(row group, document) in the order of the batches."""
        pool: list[_Group] = []
        for group in self._groups(_BATCH_COLUMNS, rng):
            pool.append(group)
            if rng is None or len(pool) == _POOL_GROUPS:
                yield from _mixed(pool, rng)
                pool = []
        yield from _mixed(pool, rng)

    def _groups(self, columns: tuple[str, ...], rng: np.random.Generator | None) -> Iterator[_Group]:
        order = np.arange(len(self._files)) if rng is None else rng.permutation(len(self._files))
        for index in order:
            path, record = self.out / self._files[index]["name"], self._files[index]
            self._check_file(path, record)
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    self._check_footer(path, file)
                    groups = np.arange(file.num_row_groups) if rng is None else rng.permutation(file.num_row_groups)
                    for number in groups:
                        yield self._decode(file.read_row_group(int(number), columns=list(columns)))
            except (OSError, pa.ArrowException) as error:
                raise TargetsError(
                    f"{path}: damaged or unreadable ({error}); restore the file from a copy, or remove it, its seal in "
                    "_engine/shards and _engine/manifest.json, and score again"
                ) from error

    def _decode(self, table: pa.Table) -> _Group:
        columns: dict[str, Any] = {}
        bounds = np.zeros(1, np.int64)
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            if not isinstance(column, pa.ListArray):
                columns[name] = column.to_pylist()
                continue
            # flatten() is a view without copy for all types but bool, which Arrow keeps in bits
            values = column.flatten().to_numpy(zero_copy_only=False)
            columns[name] = values.reshape(-1, self.top_k) if name.startswith("topk_") else values
            if name == "token_ids":
                bounds = np.asarray(column.offsets.to_numpy(), np.int64)
                bounds = bounds - bounds[0]
        scored, wide = columns["scored"], np.zeros_like(columns["scored"])
        if self.max_width is not None:
            wide = scored & (
                columns["err"].astype(np.float64) > self.max_width
            )  # in float32 the limit would be rounded
        columns["scored"], columns[_WIDE] = scored & ~wide, wide
        return _Group(bounds, columns)

    def _collate(
        self, members: list[tuple[_Group, int]], max_length: int | None, device: str | torch.device | None
    ) -> dict[str, torch.Tensor]:
        lengths_B = np.array([group.bounds[i + 1] - group.bounds[i] for group, i in members], np.int64)
        if max_length is not None:
            lengths_B = np.minimum(lengths_B, max_length)
        shape = (len(members), int(lengths_B.max()))

        def padded(name: str, dtype: torch.dtype, fill: float, width: tuple[int, ...] = ()) -> torch.Tensor:
            tensor = torch.empty((*shape, *width), dtype=dtype, pin_memory=pinned)
            array = tensor.numpy()  # the same memory
            for row, ((group, i), length) in enumerate(zip(members, lengths_B, strict=True)):
                array[row, :length] = group.cut(name, i)[:length]
                array[row, length:] = fill
            return tensor

        pinned = device is not None and torch.device(device).type == "cuda"
        batch = {
            "token_ids": padded("token_ids", torch.int64, 0),
            "ids": padded("topk_ids", torch.int64, 0, (self.top_k,)).clamp_(min=0),  # PAD_ID -> 0
            "logps": padded("topk_logps", torch.float32, -torch.inf, (self.top_k,)),
            "tail_logp": padded("tail_logp", torch.float32, 0.0),
            "gold_logp": padded("gold_logp", torch.float32, -torch.inf),
            "err": padded("err", torch.float32, 0.0),
            "mask": padded("scored", torch.bool, False),
            "lengths": torch.from_numpy(lengths_B),
            "left_out": padded(_WIDE, torch.bool, False).sum(1),
        }
        if device is None:
            return batch
        return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}

    # ---- finding and checking ----

    def _load(self, allow_partial: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(facts per product, one record with `files` per unit), from the manifest, or from plan and seals."""
        engine = self.out / "_engine"
        if (engine / "manifest.json").is_file():
            manifest = _read_json(engine / "manifest.json")
            return manifest["products"], manifest["shards"]
        if not (engine / "plan.json").is_file():
            raise TargetsError(f"{self.out}: no _engine/plan.json here: no output of targetsmith")
        plan = _read_json(engine / "plan.json")
        seals = sorted((engine / "shards").glob("*.json"), key=lambda path: int(path.stem))
        if not allow_partial:
            raise TargetsError(
                f"{self.out}: the run is not finished ({len(seals)} of {len(plan['units'])} units): finish it with "
                "`targetsmith score`, or read what is there with allow_partial=True"
            )
        return plan["products"], [_read_json(path) for path in seals]

    def _choose(self, product: str | None, known: list[str]) -> str:
        students = [name for name in known if name.startswith("student/")]
        if product is None:
            candidates = students or known
            if len(candidates) == 1:
                return candidates[0]
        else:
            for name in (product, f"student/{product}"):
                if name in known:
                    return name
        raise TargetsError(f"{self.out}: got product {product!r}; this run has {', '.join(known)}: name one of them")

    def _check_file(self, path: Path, record: dict[str, Any]) -> None:
        size = path.stat().st_size if path.is_file() else None
        if size != record["bytes"]:
            found = "missing" if size is None else f"{size:,} bytes"
            raise TargetsError(
                f"{path}: {found}, sealed with {record['bytes']:,} bytes: an incomplete copy, copy it again"
            )
        if self.verify:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != record["sha256"]:
                raise TargetsError(
                    f"{path}: sha256 {digest[:12]}…, sealed with {record['sha256'][:12]}…: damaged; copy the file again"
                )

    def _check_footer(self, path: Path, file: pq.ParquetFile) -> None:
        footer = file.metadata.metadata or {}
        found = tuple(footer.get(f"targetsmith.{key}".encode(), b"").decode() for key in ("product", "top_k"))
        if found != (self.product, str(self.top_k)):
            raise TargetsError(
                f"{path}: its footer says product and top_k {found}, wanted {(self.product, str(self.top_k))}: "
                "a file of another run lies here; copy the folder again"
            )


def _mixed(pool: list[_Group], rng: np.random.Generator | None) -> Iterator[tuple[_Group, int]]:
    members = [(group, i) for group in pool for i in range(len(group.bounds) - 1)]
    order = range(len(members)) if rng is None else rng.permutation(len(members))
    return (members[i] for i in order)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TargetsError(f"{path}: cannot be read ({error}); restore the file from a copy") from error
    version = (content.get("schema_name"), content.get("schema_version")) if isinstance(content, dict) else None
    if version != (SCHEMA_NAME, SCHEMA_VERSION):
        raise TargetsError(
            f"{path}: schema {version}, this reader knows {(SCHEMA_NAME, SCHEMA_VERSION)}: "
            "use the stream.py of the version that wrote it"
        )
    return content
