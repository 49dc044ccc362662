"""Documents -> tensors: padded (a document a row) or packed (several documents a row, each a segment of its own).

Shapes: B = rows of a batch, L = positions of a row, K = top_k, U = most unique samples of a position, H = hidden size,
P = pieces of documents. Every key is filled by one gather over the batch: the pool's last row is the padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.rowgroups import Pool, ranges

Batch = dict[str, Any]
"""Key -> tensor; and name of a product read beside -> a dict of tensors."""

_WIDE_INTEGERS = ("token_ids", "byte_end", "ids", "counts", "roles")  # int64 in a batch


@dataclass(frozen=True, slots=True)
class Layout:
    """Which piece of which document lies where in a batch."""

    shape: tuple[int, int]  # B, L
    document: npt.NDArray[np.int64]  # [P] number in the pool's order
    start: npt.NDArray[np.int64]  # [P] first position within the document
    length: npt.NDArray[np.int64]  # [P]
    row: npt.NDArray[np.int64]  # [P]
    column: npt.NDArray[np.int64]  # [P]
    packed: bool
    consumed: int  # documents of the pool that are used up by this batch
    piece: int  # pieces used of the document behind them


def padded_layout(lengths: npt.NDArray[np.int64], max_length: int | None) -> Layout:
    """All documents given, a row each, as wide as the longest: its first max_length positions."""
    count = len(lengths)
    if max_length is not None:
        lengths = np.minimum(lengths, max_length)
    documents, zeros = np.arange(count), np.zeros(count, np.int64)
    return Layout((count, int(lengths.max())), documents, zeros, lengths, documents, zeros, False, count, 0)


def packed_layout(
    lengths: npt.NDArray[np.int64], rows: int, width: int, max_length: int | None, piece: int, *, last: bool
) -> Layout | None:
    """First fit: each document goes into the first row with room for all of it; when none has, the batch is full.

    A document longer than `width` is cut into pieces of `width` positions; each is a segment of its own.

    lengths     [D] of the waiting documents
    piece       pieces of the first document that earlier batches had
    last        no document comes after these: give what there is
    None: the documents do not fill a batch.
    """
    used: list[int] = []
    pieces: list[tuple[int, int, int, int, int]] = []
    for document, whole in enumerate(lengths.tolist()):
        length = whole if max_length is None else min(whole, max_length)
        for number, start in enumerate(range(0, length, width)):
            if document == 0 and number < piece:
                continue
            size = min(width, length - start)
            row = next((row for row, taken in enumerate(used) if taken + size <= width), None)
            if row is None:
                if len(used) == rows:
                    return _packed(pieces, len(used), width, document, number)
                used.append(0)
                row = len(used) - 1
            pieces.append((document, start, size, row, used[row]))
            used[row] += size
    return _packed(pieces, len(used), width, len(lengths), 0) if last and pieces else None


def _packed(pieces: list[tuple[int, int, int, int, int]], rows: int, width: int, consumed: int, piece: int) -> Layout:
    columns = np.array(pieces, np.int64).T
    columns = columns[:, np.argsort(columns[3] * width + columns[4])]  # row by row: segments are numbered so
    document, start, length, row, column = columns
    return Layout((rows, width), document, start, length, row, column, True, consumed, piece)


def collate(pool: Pool, layout: Layout, first: int, *, pin: bool = False) -> dict[str, torch.Tensor]:
    """The batch of a layout, whose document 0 is document `first` of the pool; keys and paddings as in `Targets.batches`.

    pin: in page-locked memory, from where a GPU copies without waiting.
    """
    shape, size = layout.shape, layout.shape[0] * layout.shape[1]
    document = layout.document + first
    into = ranges(layout.row * shape[1] + layout.column, layout.length)
    source = np.full(size, pool.size, np.int64)  # the row of padding
    source[into] = ranges(pool.starts[document] + layout.start, layout.length)

    batch: dict[str, torch.Tensor] = {}
    for key, array in pool.arrays.items():
        taken = torch.from_numpy(np.take(array, source, axis=0, mode="clip")).view(*shape, *array.shape[1:])
        if key == "counts" or (key == "ids" and "counts" in pool.arrays):
            width = max(1, int((np.take(pool.arrays["counts"], source, axis=0) != 0).any(0).sum()))
            taken = taken[..., :width]
        if key in _WIDE_INTEGERS:
            taken = taken.to(torch.int64)
        elif key == "hidden":
            taken = taken.view(torch.bfloat16)
        batch[key] = taken.contiguous().pin_memory() if pin else taken.contiguous()
    batch["left_out"] = torch.from_numpy(np.take(pool.wide, source).reshape(shape).sum(1))
    if layout.packed:
        batch["lengths"] = torch.from_numpy(np.bincount(layout.row, layout.length, shape[0]).astype(np.int64))
        batch.update(_segments(pool.doc_rows[document], layout, into))
    else:
        batch["lengths"] = torch.from_numpy(layout.length.copy())
        batch["doc_row"] = torch.from_numpy(pool.doc_rows[document])
    return batch


def _segments(doc_rows: npt.NDArray[np.int64], layout: Layout, into: npt.NDArray[np.int64]) -> dict[str, torch.Tensor]:
    first = np.searchsorted(layout.row, layout.row)  # pieces lie row by row
    number = np.arange(len(layout.row)) - first + 1
    found = {}
    for key, values, pad in (
        ("segments", np.repeat(number, layout.length), 0),
        ("positions", ranges(layout.start, layout.length), 0),
        ("doc_row", np.repeat(doc_rows, layout.length), -1),
    ):
        flat = np.full(layout.shape[0] * layout.shape[1], pad, np.int64)
        flat[into] = values
        found[key] = torch.from_numpy(flat.reshape(layout.shape))
    return found


def to_device(batch: Batch, device: str | torch.device | None) -> Batch:
    if device is None:
        return batch
    return {
        key: to_device(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for key, value in batch.items()
    }


def attention_mask(segments_BL: torch.Tensor, *, causal: bool = True) -> torch.Tensor:
    """[B, 1, L, L] bool, True where row i may attend to column j: same document, and j <= i (causal).

    Padding attends to itself alone, so that no row of a softmax is empty. For
    torch.nn.functional.scaled_dot_product_attention and for `attention_mask` of models that take 4 dimensions.
    """
    same = segments_BL[:, :, None] == segments_BL[:, None, :]
    same &= segments_BL[:, :, None] > 0
    if causal:
        same = same.tril()
    return (same | torch.eye(segments_BL.shape[1], dtype=torch.bool, device=segments_BL.device))[:, None]


def student_inputs(batch: Batch, bos_id: int) -> torch.Tensor:
    """[B, L] int64, what a causal student is fed so that its logits at i go with row i: bos, then token_ids[:-1].

    Packed: each segment begins with bos. A piece of a cut document does too; its targets know more than the student.
    """
    tokens = batch["token_ids"]
    inputs = torch.cat([torch.full_like(tokens[:, :1], bos_id), tokens[:, :-1]], 1)
    if "segments" in batch:
        segments = batch["segments"]
        begins = segments[:, 1:] != segments[:, :-1]
        inputs[:, 1:][begins] = bos_id
    return inputs
