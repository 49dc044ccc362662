"""Read the targets of a run: documents as numpy arrays, or batches as torch tensors.

    for batch in Targets("out", "small").batches(8, seed=0, device="cuda"):
        ...  # batch["ids"] [B, L, K] int64, batch["logps"] [B, L, K] float32, batch["mask"] [B, L] bool ...

Shapes: T = positions of a document, B = rows of a batch, L = positions of the longest, K = top_k, U = most unique samples
of a position, H = hidden size. Row i predicts token i given tokens < i: in a usual causal model, row i goes with the
logits at position i - 1. Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .product_files import ProductFiles
from .range_cache import RangeCache
from .row_groups import BATCH_COLUMNS, LEFT_OUT, PAD_ID, RowGroup, decode, spread
from .run_files import SCHEMA_NAME, SCHEMA_VERSIONS, OutputFolder, Run, TargetsError
from .spans import Spans
from .walk import Parts, Walk

__all__ = ["PAD_ID", "SCHEMA_NAME", "SCHEMA_VERSIONS", "Document", "Targets", "TargetsError"]

_LISTS = (
    "token_ids", "byte_end", "scored", "tail_logp", "gold_logp", "err",
    "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass", "flags",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """One document. The arrays are read-only views into a row group: copy what you keep for long.

    Columns that the product does not store are empty, [0] or [T, 0]. `extra` has, by their column names, those of its
    codec (sample_sizes, sample_ids, sample_counts), its statistics (logz .. roles) and its hidden states.
    """

    doc_id: str
    doc_row: int
    text: str
    token_ids: npt.NDArray[np.int32]  # [T]
    byte_end: npt.NDArray[np.int32]  # [T]
    scored: npt.NDArray[np.bool_]  # [T]
    ids: npt.NDArray[np.int32]  # [T, K] (codec sample: [T, U]), PAD_ID where there are fewer
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
    extra: dict[str, npt.NDArray[Any]]
    source: str = ""  # of a mixture: the name of its [[corpus]] table


class Targets(Walk):
    """The shards of one product of one run.

    out              the output folder, or its URL on any fsspec store (s3://bucket/out)
    product          "teacher", "bytes", "hidden", a student's name, or "student/<name>"; may be left out when there is one
                     student, or one product. A student called "teacher" is "student/teacher"
    allow_partial    also read a run that is not finished (its sealed shards)
    verify           compare the sha256 of each file with its seal before reading (sizes and page checksums always are)
    max_width        positions with a certified width `err` above this are read as unscored: `scored` and `mask` are False
                     there, all else stays, and `left_out` counts them. 0 keeps the exact ones. None: no limit
    beside           other products of the same documents, in batch[name]; max_width holds for each
    storage_options  for fsspec
    cache            a RangeCache: where row groups of a remote output are kept on a local disk, for other processes and the
                     next epoch. With or without it the next pool's row groups are fetched while one is used

    `top_k`, `draws`, `codec`, `vocab_size`, `regime`, `semantics`, `facts`, `rows`, `positions` and `files` say what is
    there (top_k is 0 and draws None where the codec has none). The vocabulary of "bytes": ids 0..255 are bytes, 256 is
    the end of the text.
    Raises TargetsError, ValueError for arguments out of range.
    """

    def __init__(
        self,
        out: str | Path,
        product: str | None = None,
        *,
        allow_partial: bool = False,
        verify: bool = False,
        max_width: float | None = None,
        beside: Sequence[str] = (),
        storage_options: dict[str, Any] | None = None,
        cache: RangeCache | None = None,
    ) -> None:
        if max_width is not None and not max_width >= 0:  # NaN too
            raise ValueError(f"max_width {max_width}: wanted a number >= 0, or None for no limit")
        self._folder = OutputFolder(out, storage_options)
        run = Run(self._folder, allow_partial)
        self.out = self._folder.local if self._folder.local is not None else self._folder.url
        self.max_width = max_width
        self.product = run.choose(product)
        names = {name: run.choose(name) for name in beside}
        if len({self.product, *names.values()}) != 1 + len(beside):
            raise ValueError(f"product {self.product} and beside {list(names)}: wanted different products")
        self.beside = tuple(names)
        self._main = ProductFiles(run, self.product, verify=verify, cache=cache)
        self._beside = {name: ProductFiles(run, full, verify=verify, cache=cache) for name, full in names.items()}
        for name, files in self._beside.items():
            if files.units != self._main.units:
                raise TargetsError(
                    f"{self._folder.url}: {name} has files of other units than {self.product}; copy it again"
                )
        self.fingerprint: str = run.fingerprint
        self.facts = self._main.facts
        self.codec = self._main.codec
        self.top_k: int = self.facts.get("top_k") or 0
        self.draws: int | None = self.facts.get("draws") or None
        self.vocab_size: int = self.facts.get("vocab_size") or 0
        self.regime: str = self.facts.get("regime") or ""
        self.semantics: str = self.facts.get("semantics") or ""
        self.rows: int = sum(file["rows"] for file in self._main.records)
        self.positions: int = sum(file["positions"] for file in self._main.records)

    @property
    def files(self) -> list[Path]:
        """The Parquet files of a local run, in corpus order."""
        if self._folder.local is None:
            raise TargetsError(f"{self._folder.url}: no local folder; `urls` names the files")
        return [self._folder.local / file["name"] for file in self._main.records]

    @property
    def urls(self) -> list[str]:
        """The Parquet files, in corpus order."""
        return [self._folder.place(file["name"]) for file in self._main.records]

    # ---- documents ----

    def documents(self) -> Iterator[Document]:
        """Every document, in corpus order."""
        for index in range(len(self._main.records)):
            columns = self._main.open(index).schema_arrow.names
            for group in range(self._main.open(index).num_row_groups):
                yield from _documents(self._group(self._main, index, group, columns))

    # ---- order and reading ----

    @cached_property
    def group_table(self) -> npt.NDArray[np.int64]:
        """[G, 3]: file, number in the file and documents of every row group, in corpus order. Reads all footers."""
        rows = self._main.group_rows()
        table = [(index, number, count) for index, counts in enumerate(rows) for number, count in enumerate(counts)]
        return np.array(table, np.int64).reshape(-1, 3)

    def prepare(self) -> None:
        _ = self.group_table

    def pools(self, seed: int | None, epoch: int, spans: Spans, pool_groups: int) -> Iterator[list[Parts]]:
        order = self._order(seed, epoch, spans, pool_groups)
        now = next(order, None)
        if now is not None:
            self._ask_ahead(now)
        while now is not None:
            after = next(order, None)
            parts = self._read(now, after)
            now = after
            yield parts
            del parts

    def _order(
        self, seed: int | None, epoch: int, spans: Spans, pool_groups: int
    ) -> Iterator[list[tuple[int, int, npt.NDArray[np.int64]]]]:
        """Per pool, its row groups: (file, number, number of each document within the spans; -1: not wanted).

        The order of all documents depends on seed and epoch alone; the spans are parts of it.
        """
        groups = self.group_table
        if seed is None:
            pool_groups = 1
        else:
            groups = groups[np.random.default_rng([seed, epoch]).permutation(len(groups))]
        before = 0
        for first in range(0, len(groups), pool_groups):
            pool = groups[first : first + pool_groups]
            count = int(pool[:, 2].sum())
            if any(start < before + count and before < stop for start, stop in spans.bounds):
                places = np.arange(count)
                if seed is not None:
                    places = np.random.default_rng([seed, epoch, first]).permutation(count)
                blocks = np.split(spans.numbers(before + places), np.cumsum(pool[:-1, 2]))
                yield [
                    (int(index), int(number), block)
                    for (index, number, _), block in zip(pool, blocks, strict=True)
                    if (block >= 0).any()
                ]
            before += count

    def _ask_ahead(self, pool: list[tuple[int, int, npt.NDArray[np.int64]]]) -> None:
        for files in (self._main, *self._beside.values()):
            files.ask_ahead((index, group) for index, group, _ in pool)

    def _read(
        self,
        pool: list[tuple[int, int, npt.NDArray[np.int64]]],
        after: list[tuple[int, int, npt.NDArray[np.int64]]] | None,
    ) -> list[Parts]:
        """The documents of a pool, of each product; those of the pool `after` it begin to be fetched."""
        found: list[Parts] = []
        for files in (self._main, *self._beside.values()):
            groups: Parts = []
            for index, group, places in pool:
                decoded = self._group(files, index, group, BATCH_COLUMNS)
                if len(decoded) != len(places):
                    raise TargetsError(
                        f"{files.place(index, group)}: {len(decoded)} documents, but {len(places)} in the same row group "
                        f"of {self.product}: files of different runs; copy the folder again"
                    )
                groups.append((decoded, places))
            found.append(groups)
            doc_rows = [[group.columns["doc_row"] for group, _ in parts] for parts in (found[0], groups)]
            if not all(map(np.array_equal, *doc_rows)):
                raise TargetsError(
                    f"{files.place(pool[0][0], pool[0][1])} and other row groups: other documents (doc_row) than in "
                    f"{self.product}: files of different runs; copy the folder again"
                )
        if after is not None:
            self._ask_ahead(after)
        return found

    def _group(self, files: ProductFiles, index: int, group: int, columns: Sequence[str]) -> RowGroup:
        stored = files.open(index).schema_arrow.names
        if lacking := files.lacking(stored):
            raise TargetsError(
                f"{files.place(index)}: no columns {', '.join(lacking)}, which the codec {files.codec!r} has: "
                "a file of another run lies here; copy the folder again"
            )
        table = files.read(index, group, [name for name in dict.fromkeys(columns) if name in stored])
        where = files.place(index, group)
        try:
            return decode(table, files.facts.get("top_k"), self.max_width, where)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TargetsError(
                f"{where}: its columns are of other types than a file of targets has ({type(error).__name__}: {error}); "
                "a damaged or foreign file: copy it again"
            ) from error


def _documents(group: RowGroup) -> Iterator[Document]:
    lists = [name for name, values in group.columns.items() if isinstance(values, np.ndarray) and name != "doc_row"]
    for i in range(len(group)):
        cut = {name: group.cut(name, i) for name in lists}
        count = len(cut["token_ids"])
        nothing = np.empty((count, 0), np.float32)
        ids = cut.pop("topk_ids", nothing.astype(np.int32))
        if "sample_sizes" in cut:
            sizes = cut["sample_sizes"]
            ids = spread(cut["sample_ids"], sizes, int(sizes.max(initial=0)), PAD_ID)
        yield Document(
            doc_id=group.columns["doc_id"][i],
            doc_row=int(group.columns["doc_row"][i]),
            text=group.columns["text"][i],
            ids=ids,
            logps=cut.pop("topk_logps", nothing),
            left_out=int(cut.pop(LEFT_OUT).sum()),
            **{name: cut.pop(name, np.empty(0, np.float32)) for name in _LISTS},
            extra=cut,
            source=group.columns["source"][i] if "source" in group.columns else "",
        )
