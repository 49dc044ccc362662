"""Row groups as flat arrays, and pools of them from which batches are taken.

Shapes: D = documents, T = positions of a document, N = positions of a row group or pool, K = top_k, U = most unique
samples of a position, H = hidden size. One array per column and no Python object per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.shardfiles import TargetsError

PAD_ID = -1
FLAG_CONTEXT = 64

STATISTICS = ("logz", "entropy", "logit_std", "logz_scaled", "space_logp", "end_logp")
WIDE = "(wide)"
"""Made while reading: scored, but wider than max_width."""

_SAMPLE_LISTS = ("sample_ids", "sample_counts")

# Batch key -> (column it is made of, dtype in a pool, what stands in the padding).
KEYS: dict[str, tuple[str, type[np.generic], float]] = {
    "token_ids": ("token_ids", np.int32, 0),
    "byte_end": ("byte_end", np.int32, 0),
    "mask": ("scored", np.bool_, False),
    "loss_mask": ("flags", np.bool_, False),
    "gold_logp": ("gold_logp", np.float32, -np.inf),
    "err": ("err", np.float32, 0),
    "ids": ("topk_ids", np.int32, 0),
    "logps": ("topk_logps", np.float32, -np.inf),
    "tail_logp": ("tail_logp", np.float32, 0),
    **{name: (name, np.float32, 0) for name in STATISTICS},
    "roles": ("roles", np.uint8, 0),
    "hidden": ("hidden", np.uint16, 0),
}
BATCH_COLUMNS = ("doc_row", *(column for column, _, _ in KEYS.values()), "sample_sizes", *_SAMPLE_LISTS)


@dataclass(frozen=True, slots=True)
class Group:
    """A decoded row group. `columns`: flat array [N], [N, K] or [N, H]; [D] for doc_row; list of str for strings."""

    bounds: npt.NDArray[np.int64]  # [D + 1]
    columns: dict[str, Any]
    sample_bounds: npt.NDArray[np.int64] | None = None  # [D + 1], of the ragged sample columns

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def cut(self, name: str, document: int) -> npt.NDArray[Any]:
        """The column's part of one document, a view."""
        bounds = self.sample_bounds if name in _SAMPLE_LISTS else self.bounds
        assert bounds is not None
        return self.columns[name][bounds[document] : bounds[document + 1]]


def decode(table: pa.Table, top_k: int | None, max_width: float | None, where: str) -> Group:
    """The flat arrays of a row group, views of Arrow's memory where their type allows (all but bool).

    Raises TargetsError when the lists of a document do not fit each other: then nothing of it could be trusted.
    """
    columns: dict[str, Any] = {}
    offsets: dict[str, npt.NDArray[np.int64]] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if column.null_count:
            raise TargetsError(f"{where}: {name} has {column.null_count} nulls, wanted none; copy the file again")
        if isinstance(column, pa.ListArray):
            values = column.flatten()
            if values.null_count:
                raise TargetsError(f"{where}: {name} has {values.null_count} nulls, wanted none; copy the file again")
            columns[name] = values.to_numpy(zero_copy_only=False)
            offsets[name] = np.asarray(column.offsets.to_numpy(), np.int64)
            offsets[name] = offsets[name] - offsets[name][0]
        else:
            columns[name] = column.to_numpy() if pa.types.is_integer(column.type) else column.to_pylist()
    bounds = offsets["token_ids"]
    for name, found in offsets.items():
        width = 1
        if name.startswith("topk_"):
            width = top_k or 0
        elif name == "hidden":
            width = int(found[-1] // max(bounds[-1], 1))
        elif name in _SAMPLE_LISTS:
            width = 0
        wanted = bounds * width
        if name in _SAMPLE_LISTS:
            ends = np.cumsum(columns["sample_sizes"], dtype=np.int64)
            wanted = np.concatenate([np.zeros(1, np.int64), ends])[bounds]
        if not np.array_equal(found, wanted):
            at = int(np.flatnonzero(found != wanted)[0])
            raise TargetsError(
                f"{where}: {name} has {found[at]} values up to document {at} of the row group, wanted {wanted[at]}: "
                "not the columns that its footer promises; copy the file again"
            )
        if name.startswith("topk_") or name == "hidden":
            columns[name] = columns[name].reshape(-1, width)
    scored = columns["scored"]
    wide = np.zeros_like(scored)
    if max_width is not None and "err" in columns:
        wide = scored & (columns["err"].astype(np.float64) > max_width)  # in float32 the limit would be rounded
        columns["scored"] = scored & ~wide
    columns[WIDE] = wide
    return Group(bounds, columns, offsets.get("sample_ids"))


def spread(flat: npt.NDArray[Any], sizes: npt.NDArray[np.uint8], width: int, fill: int = 0) -> npt.NDArray[Any]:
    """Ragged values in rows of `width`: [sum of sizes] -> [len(sizes), width], `fill` behind each row's values."""
    out = np.full((len(sizes), width), fill, flat.dtype)
    out[np.arange(width) < sizes[:, None]] = flat
    return out


def ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """starts[0], starts[0] + 1 .. (lengths[0] of them), starts[1] ..: one array of sum(lengths) indexes."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


class Pool:
    """Documents that batches are taken from: one array per batch key, with the padding as last row (index -1).

    starts, lengths, doc_rows  [D] int64, of the documents in the order of delivery
    arrays                     batch key -> [N + 1], [N + 1, K or U or H]
    wide                       [N + 1] bool, positions that only max_width left out; None without max_width
    """

    def __init__(self, parts: Sequence[tuple[Group, npt.NDArray[np.int64]]], rest: Pool | None = None) -> None:
        """parts: row groups and, of each, places (in the order of delivery) of its documents, -1 for those not wanted.

        rest: a pool whose documents, all of them, come first.
        """
        groups = [group for group, _ in parts]
        sizes = [int(group.bounds[-1]) for group in groups]
        first = 0 if rest is None else rest.size
        shifts = first + np.cumsum([0, *sizes])
        starts = np.concatenate([group.bounds[:-1] + at for group, at in zip(groups, shifts[:-1], strict=True)])
        lengths = np.concatenate([np.diff(group.bounds) for group in groups])
        rows = np.concatenate([group.columns["doc_row"] for group in groups])
        places = np.concatenate([place for _, place in parts])
        order = np.argsort(places, kind="stable")[(places < 0).sum() :]
        self.starts, self.lengths, self.doc_rows = starts[order], lengths[order], rows[order]
        if rest is not None:
            self.starts = np.concatenate([rest.starts, self.starts])
            self.lengths = np.concatenate([rest.lengths, self.lengths])
            self.doc_rows = np.concatenate([rest.doc_rows, self.doc_rows])
        self.size = int(shifts[-1])
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        for key, (column, dtype, pad) in KEYS.items():
            if column in groups[0].columns:
                kept = None if rest is None else rest.arrays[key]
                self.arrays[key] = _joined(key, [group.columns.pop(column) for group in groups], kept, dtype, pad)
        if "sample_sizes" in groups[0].columns:
            self._join_samples(groups, rest)
        kept = None if rest is None else rest.wide
        self.wide = _joined(WIDE, [group.columns.pop(WIDE) for group in groups], kept, np.bool_, False)

    def _join_samples(self, groups: Sequence[Group], rest: Pool | None) -> None:
        widths = [int(group.columns["sample_sizes"].max(initial=0)) for group in groups]
        width = max([*widths, 1 if rest is None else rest.arrays["ids"].shape[1]])
        for key, column in (("ids", "sample_ids"), ("counts", "sample_counts")):
            blocks = [spread(group.columns[column], group.columns["sample_sizes"], width) for group in groups]
            kept = None
            if rest is not None:
                kept = rest.arrays[key]
                kept = np.pad(kept, ((0, 0), (0, width - kept.shape[1])))
            self.arrays[key] = _joined(key, blocks, kept, blocks[0].dtype.type, 0)

    def after(self, document: int) -> Pool:
        """A small pool of the documents from this one on, with arrays of its own."""
        new = object.__new__(Pool)
        starts, new.lengths, new.doc_rows = self.starts[document:], self.lengths[document:], self.doc_rows[document:]
        index = np.append(ranges(starts, new.lengths), self.size)
        new.starts = np.cumsum(new.lengths) - new.lengths
        new.size = len(index) - 1
        new.arrays = {key: array[index] for key, array in self.arrays.items()}
        new.wide = self.wide[index]
        return new


def _joined(
    key: str, parts: Sequence[npt.NDArray[Any]], kept: npt.NDArray[Any] | None, dtype: type[np.generic], pad: float
) -> npt.NDArray[Any]:
    """The parts behind each other, behind `kept` (without its padding), and one row of padding."""
    first = 0 if kept is None else len(kept) - 1
    out = np.empty((first + sum(map(len, parts)) + 1, *parts[0].shape[1:]), dtype)
    if kept is not None:
        out[:first] = kept[:-1]
    at = first
    for part in parts:
        into = out[at : at + len(part)]
        if key == "ids":
            np.maximum(part, 0, out=into)  # PAD_ID -> 0: safe to gather with
        elif key == "loss_mask":
            np.equal(part & FLAG_CONTEXT, 0, out=into)
        else:
            into[...] = part
        at += len(part)
    out[-1] = pad
    return out
