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

from .run_files import TargetsError

PAD_ID = -1
FLAG_CONTEXT, FLAG_ANEW = 64, 128

STATISTICS = ("logz", "entropy", "logit_std", "logz_scaled", "space_logp", "end_logp")
LEFT_OUT = "(left out)"
"""Made while reading: scored, but wider than max_width."""
OF_DOCUMENTS = ("doc_row", "output")
"""Columns with one number a document, int64: where it is in its corpus, and, in a blend only, which output it is of."""

_SAMPLE_LISTS = ("sample_ids", "sample_counts")

# Batch key -> (column it is made of, dtype in a pool, what stands in the padding). One value a position.
NARROW: dict[str, tuple[str, type[np.generic], float]] = {
    "token_ids": ("token_ids", np.int32, 0),
    "byte_end": ("byte_end", np.int32, 0),
    "mask": ("scored", np.bool_, False),
    "loss_mask": ("flags", np.bool_, False),
    "flags": ("flags", np.uint8, FLAG_CONTEXT),
    "gold_logp": ("gold_logp", np.float32, -np.inf),
    "err": ("err", np.float32, 0),
    "tail_logp": ("tail_logp", np.float32, 0),
    **{name: (name, np.float32, 0) for name in STATISTICS},
    "roles": ("roles", np.uint8, 0),
}
_SHARES = ("open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass")
_TYPES: dict[str, pa.DataType] = {
    "doc_id": pa.string(), "doc_row": pa.int64(), "source": pa.string(), "text": pa.string(), "scored": pa.list_(pa.bool_()),
    **dict.fromkeys(("token_ids", "byte_end", "topk_ids", "sample_ids"), pa.list_(pa.int32())),
    **dict.fromkeys(("flags", "roles", "sample_sizes", "sample_counts"), pa.list_(pa.uint8())),
    **dict.fromkeys(("topk_logps", "tail_logp", "gold_logp", "err", *_SHARES, *STATISTICS), pa.list_(pa.float32())),
    "hidden": pa.list_(pa.uint16()),
}  # fmt: skip

# Batch key -> column, with several values a position.
WIDE = {"ids": "topk_ids", "logps": "topk_logps", "hidden": "hidden"}
BATCH_COLUMNS = (
    "doc_row", *(column for column, _, _ in NARROW.values()), *WIDE.values(), "sample_sizes", *_SAMPLE_LISTS
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A decoded row group.

    columns  flat array [N], [N, K] or [N, H]; [sum of sizes] for the ragged sample columns; [D] for OF_DOCUMENTS; list of str
    samples  [N + 1], where the samples of a position begin; zeros without that codec
    """

    bounds: npt.NDArray[np.int64]  # [D + 1]
    columns: dict[str, Any]
    samples: npt.NDArray[np.int64]

    @classmethod
    def of(cls, bounds: npt.NDArray[np.int64], columns: dict[str, Any]) -> RowGroup:
        samples = np.zeros(int(bounds[-1]) + 1, np.int64)
        if "sample_sizes" in columns:
            np.cumsum(columns["sample_sizes"], out=samples[1:])
        return cls(bounds, columns, samples)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def part(self, first: int, last: int) -> RowGroup:
        """The documents first .. last - 1, as views."""
        bounds = self.bounds[first : last + 1]
        at, samples = slice(*bounds[[0, -1]]), slice(*self.samples[bounds[[0, -1]]])
        cuts: dict[str, slice] = {
            **dict.fromkeys(OF_DOCUMENTS, slice(first, last)),
            **dict.fromkeys(_SAMPLE_LISTS, samples),
        }
        columns = {name: values[cuts.get(name, at)] for name, values in self.columns.items()}
        return RowGroup.of(bounds - bounds[0], columns)

    def cut(self, name: str, document: int) -> npt.NDArray[Any]:
        """The column's part of one document, a view."""
        bounds = self.bounds[document : document + 2]
        return self.columns[name][slice(*(self.samples[bounds] if name in _SAMPLE_LISTS else bounds))]


def decode(table: pa.Table, top_k: int | None, max_width: float | None, where: str) -> RowGroup:
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
        if _plain(column.type) != _plain(_TYPES.get(name, column.type)):
            raise TargetsError(
                f"{where}: {name} has the type {column.type}, wanted {_TYPES[name]}; copy the file again"
            )
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
            wanted = np.append(0, np.cumsum(columns["sample_sizes"], dtype=np.int64))[bounds]
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
    columns[LEFT_OUT] = wide
    return RowGroup.of(bounds, columns)


def _plain(column_type: pa.DataType) -> str:
    """A type whatever its lists' elements are called, and may be null or not."""
    return f"list of {column_type.value_type}" if pa.types.is_list(column_type) else str(column_type)


def spread(flat: npt.NDArray[Any], sizes: npt.NDArray[np.uint8], width: int, fill: int = 0) -> npt.NDArray[Any]:
    """Ragged values in rows of `width`: [sum of sizes] -> [len(sizes), width], `fill` behind each row's values."""
    out = np.full((len(sizes), width), fill, flat.dtype)
    out[np.arange(width) < sizes[:, None]] = flat
    return out


def ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """starts[0], starts[0] + 1 .. (lengths[0] of them), starts[1] ..: one array of sum(lengths) indexes."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


class DocumentPool:
    """Documents that batches are taken from.

    Columns of one value a position are joined (the copies are small), with the padding as last row, so that a batch is one
    gather. The others, which are most of the bytes, stay where Arrow has put them: they are copied once, into the batch.

    lengths, starts            [D] int64, of the documents in the order of delivery; starts: in the joined arrays
    of_documents               batch key -> [D] int64, likewise: the columns OF_DOCUMENTS
    group, within              [D] int64, where a document begins: row group, position in it
    readings                   of each document, where it is read anew: first positions of its readings, 0 the first of them
    arrays                     batch key -> [N + 1]; LEFT_OUT too
    groups                     the row groups
    """

    def __init__(self, parts: Sequence[tuple[RowGroup, npt.NDArray[np.int64]]], rest: RowGroup | None = None) -> None:
        """parts: row groups and, of each, places (in the order of delivery) of its documents, -1 for those not wanted.

        rest: documents that come before them, all of them and in their order.
        """
        if rest is not None:
            before = np.arange(len(rest))
            later = [(group, np.where(places < 0, -1, places + len(rest))) for group, places in parts]
            parts = [(rest, before), *later]
        self.groups = [group for group, _ in parts]
        widths = [{name: np.shape(values)[1:] for name, values in group.columns.items()} for group in self.groups]
        if other := next((width for width in widths if width != widths[0]), None):
            differ = sorted(name for name in {*other, *widths[0]} if other.get(name) != widths[0].get(name))
            raise TargetsError(
                f"documents {self.groups[0].columns['doc_row'][0]} and on: row groups of one product differ in the columns "
                f"{', '.join(differ)}: files of different runs; copy the folder again"
            )
        sizes = [int(group.bounds[-1]) for group in self.groups]
        shifts = np.cumsum([0, *sizes])
        self.size = int(shifts[-1])
        places = np.concatenate([place for _, place in parts])
        order = np.argsort(places, kind="stable")[(places < 0).sum() :]
        self.group = np.repeat(np.arange(len(parts)), [len(group) for group in self.groups])[order]
        self.within = np.concatenate([group.bounds[:-1] for group in self.groups])[order]
        self.starts = shifts[self.group] + self.within
        self.lengths = np.concatenate([np.diff(group.bounds) for group in self.groups])[order]
        self.of_documents = {
            name: np.concatenate([group.columns[name] for group in self.groups])[order]
            for name in OF_DOCUMENTS
            if name in self.groups[0].columns
        }
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        for key, (column, dtype, pad) in {**NARROW, LEFT_OUT: (LEFT_OUT, np.bool_, False)}.items():
            if column in self.groups[0].columns:
                joined: npt.NDArray[Any] = np.concatenate(
                    [*(group.columns[column] for group in self.groups), np.empty(1, dtype)]
                )
                self.arrays[key] = (joined & FLAG_CONTEXT) == 0 if key == "loss_mask" else joined
                self.arrays[key][-1] = pad
        self.readings = self._readings()

    def _readings(self) -> list[npt.NDArray[np.int64]]:
        anew = [np.flatnonzero(group.columns["flags"] & FLAG_ANEW) for group in self.groups if "flags" in group.columns]
        nothing = np.zeros(1, np.int64)
        if not any(len(found) for found in anew):
            return [nothing] * len(self.lengths)
        out = []
        for group, start, length in zip(self.group.tolist(), self.within.tolist(), self.lengths.tolist(), strict=True):
            low, high = np.searchsorted(anew[group], [start + 1, start + length])
            out.append(np.concatenate([nothing, anew[group][low:high] - start]))
        return out

    def after(self, document: int) -> RowGroup:
        """The documents from this one on as a row group with arrays of its own."""
        cuts = [
            (
                self.groups[group],
                slice(start, start + length),
                slice(*self.groups[group].samples[[start, start + length]]),
            )
            for group, start, length in zip(
                self.group[document:].tolist(),
                self.within[document:].tolist(),
                self.lengths[document:].tolist(),
                strict=True,
            )
        ]
        columns: dict[str, Any] = {name: values[document:] for name, values in self.of_documents.items()}
        for name in self.groups[0].columns.keys() - columns.keys():
            ragged = name in _SAMPLE_LISTS
            columns[name] = np.concatenate([g.columns[name][samples if ragged else at] for g, at, samples in cuts])
        return RowGroup.of(np.concatenate([[0], np.cumsum(self.lengths[document:])]), columns)
