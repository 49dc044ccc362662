"""Documents -> tensors: padded (a document a row) or packed (several documents a row, each a segment of its own).

Shapes: B = rows of a batch, L = positions of a row, K = top_k, U = most unique samples of a position, H = hidden size,
P = pieces of documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .row_groups import LEFT_OUT, WIDE, DocumentPool, ranges

Batch = dict[str, Any]
"""Key -> tensor; and name of a product read beside -> a dict of tensors."""

_INTEGERS = ("token_ids", "byte_end", "flags", "roles")  # int64 in a batch


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Which piece of which document lies where in a batch."""

    shape: tuple[int, int]  # B, L
    document: npt.NDArray[np.int64]  # [P] number in the pool's order
    start: npt.NDArray[np.int64]  # [P] first position within the document
    origin: npt.NDArray[np.int64]  # [P] first position of the reading that the piece is of, within the document
    length: npt.NDArray[np.int64]  # [P]
    row: npt.NDArray[np.int64]  # [P]
    column: npt.NDArray[np.int64]  # [P]
    packed: bool
    consumed: int  # documents of the pool that are used up by this batch
    piece: int  # pieces used of the document behind them


def padded_layout(
    lengths: npt.NDArray[np.int64], readings: Sequence[npt.NDArray[np.int64]], max_length: int | None
) -> BatchLayout:
    """All documents given, a row each, as wide as the longest: its first max_length positions. A document that is read anew has a
    row for each of its readings."""
    counts = [len(starts) for starts in readings]
    documents = np.repeat(np.arange(len(lengths)), counts)
    starts = np.concatenate(readings)
    stops = np.concatenate([[*at[1:], length] for at, length in zip(readings, lengths.tolist(), strict=True)])
    sizes = (stops - starts).astype(np.int64)
    if max_length is not None:
        sizes = np.minimum(sizes, max_length)
    rows, zeros = np.arange(len(documents)), np.zeros(len(documents), np.int64)
    shape = (len(documents), int(sizes.max()))
    return BatchLayout(shape, documents, starts, starts, sizes, rows, zeros, False, len(lengths), 0)


def padded_layouts(
    pools: Sequence[DocumentPool], first: int, count: int, max_length: int | None, beside: Sequence[str]
) -> list[BatchLayout]:
    """The padded layout of each product's documents `first` and on. beside: names of the products behind the first one.

    Raises ValueError when a document is read anew at other places in one of them: rows would not go together.
    """
    now = slice(first, first + count)
    layouts = [padded_layout(pool.lengths[now], pool.readings[now], max_length) for pool in pools]
    for name, layout in zip(beside, layouts[1:], strict=True):
        if not np.array_equal(layouts[0].document, layout.document):
            raise ValueError(
                f"beside={name!r}: a document is read anew (flag 128) at other places there; leave out one of the two"
            )
    return layouts


def packed_layout(
    lengths: npt.NDArray[np.int64],
    readings: Sequence[npt.NDArray[np.int64]],
    rows: int,
    width: int,
    max_length: int | None,
    begun: Mapping[int, int],
    *,
    last: bool,
) -> BatchLayout | None:
    """First fit: each document goes into the first row with room for all of it; when none has, the batch is full.

    A document longer than `width` is cut into pieces of `width` positions; each is a segment of its own, and so is each
    reading of a document that is read anew.

    lengths     [D] of the waiting documents
    begun       document -> its pieces that earlier batches had
    last        no document comes after these: give what there is
    None: the documents do not fill a batch.
    """
    used: list[int] = []
    pieces: list[tuple[int, int, int, int, int, int]] = []
    for document, whole in enumerate(lengths.tolist()):
        for number, (origin, start, size) in enumerate(_cut(readings[document].tolist(), whole, width, max_length)):
            if number < begun.get(document, 0):
                continue
            row = next((row for row, taken in enumerate(used) if taken + size <= width), None)
            if row is None:
                if len(used) == rows:
                    return _packed(pieces, len(used), width, document, number)
                used.append(0)
                row = len(used) - 1
            pieces.append((document, start, origin, size, row, used[row]))
            used[row] += size
    return _packed(pieces, len(used), width, len(lengths), 0) if last and pieces else None


def _cut(readings: list[int], whole: int, width: int, max_length: int | None) -> Iterator[tuple[int, int, int]]:
    """(first position of the reading, of the piece, positions) of each piece of a document of `whole` positions."""
    for origin, behind in zip(readings, [*readings[1:], whole], strict=True):
        stop = behind if max_length is None else min(behind, origin + max_length)
        for start in range(origin, stop, width):
            yield origin, start, min(width, stop - start)


def _packed(
    pieces: list[tuple[int, int, int, int, int, int]], rows: int, width: int, consumed: int, piece: int
) -> BatchLayout:
    columns = np.array(pieces, np.int64).T
    columns = columns[:, np.argsort(columns[4] * width + columns[5])]  # row by row: segments are numbered so
    document, start, origin, length, row, column = columns
    return BatchLayout((rows, width), document, start, origin, length, row, column, True, consumed, piece)


def collate(pool: DocumentPool, layout: BatchLayout, first: int, *, pin: bool = False) -> dict[str, torch.Tensor]:
    """The batch of a layout, whose document 0 is document `first` of the pool; keys and paddings as in `Targets.batches`.

    pin: in page-locked memory, from where a GPU copies without waiting.
    """
    shape, size = layout.shape, layout.shape[0] * layout.shape[1]
    document = layout.document + first
    at = layout.row * shape[1] + layout.column
    into = ranges(at, layout.length)
    source = np.full(size, pool.size, np.int64)  # the row of padding
    source[into] = ranges(pool.starts[document] + layout.start, layout.length)
    group, start = pool.group[document].tolist(), (pool.within[document] + layout.start).tolist()
    pieces = list(zip(group, start, layout.length.tolist(), at.tolist(), strict=True))

    batch: dict[str, torch.Tensor] = {}
    for key, array in pool.arrays.items():
        batch[key] = torch.from_numpy(array.take(source, mode="clip").reshape(shape))
        if key in _INTEGERS:
            batch[key] = batch[key].to(torch.int64)
    batch["left_out"] = batch.pop(LEFT_OUT).sum(1)
    gaps = np.flatnonzero(source == pool.size)
    for key, column in WIDE.items():
        if column in pool.groups[0].columns:
            batch[key] = _wide(pool, key, column, pieces, gaps, size, pin).view(*shape, -1)
    if "sample_ids" in pool.groups[0].columns:
        batch.update(_samples(pool, pieces, into, shape))
    if layout.packed:
        batch["lengths"] = torch.from_numpy(np.bincount(layout.row, layout.length, shape[0]).astype(np.int64))
        batch.update(_segments({key: values[document] for key, values in pool.of_documents.items()}, layout, into))
    else:
        batch["lengths"] = torch.from_numpy(layout.length.copy())
        batch.update({key: torch.from_numpy(values[document]) for key, values in pool.of_documents.items()})
    return {key: tensor.pin_memory() for key, tensor in batch.items()} if pin else batch


_Pieces = list[tuple[int, int, int, int]]  # row group, first position in it, positions, first place in the batch


def _wide(
    pool: DocumentPool, key: str, column: str, pieces: _Pieces, gaps: npt.NDArray[np.int64], size: int, pin: bool
) -> torch.Tensor:
    """[B * L, K or H]: a copy per piece, from the row group's memory straight into the batch's."""
    dtype = {"ids": torch.int64, "logps": torch.float32, "hidden": torch.uint16}[key]
    tensor = torch.empty((size, pool.groups[0].columns[column].shape[1]), dtype=dtype, pin_memory=pin)
    array = tensor.numpy()  # the same memory
    for group, start, length, at in pieces:
        part = pool.groups[group].columns[column][start : start + length]
        array[at : at + length] = np.maximum(part, 0) if key == "ids" else part  # PAD_ID -> 0: safe to gather with
    array[gaps] = -np.inf if key == "logps" else 0
    return tensor.view(torch.bfloat16) if key == "hidden" else tensor


def _samples(
    pool: DocumentPool, pieces: _Pieces, into: npt.NDArray[np.int64], shape: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """ids and counts [B, L, U] from the ragged columns: one scatter each."""
    cuts = [(pool.groups[group], start, start + length) for group, start, length, _ in pieces]
    sizes = np.concatenate([group.columns["sample_sizes"][start:stop] for group, start, stop in cuts]).astype(np.int64)
    width = max(1, int(sizes.max(initial=0)))
    places = ranges(into * width, sizes)
    found = {}
    for key, column in (("ids", "sample_ids"), ("counts", "sample_counts")):
        flat = np.concatenate(
            [group.columns[column][group.samples[start] : group.samples[stop]] for group, start, stop in cuts]
        )
        array = np.zeros(shape[0] * shape[1] * width, np.int64)
        array[places] = flat
        found[key] = torch.from_numpy(array.reshape(*shape, width))
    return found


def _segments(
    of_documents: dict[str, npt.NDArray[np.int64]], layout: BatchLayout, into: npt.NDArray[np.int64]
) -> dict[str, torch.Tensor]:
    first = np.searchsorted(layout.row, layout.row)  # pieces lie row by row
    number = np.arange(len(layout.row)) - first + 1
    found = {}
    for key, values, pad in (
        ("segments", np.repeat(number, layout.length), 0),
        ("positions", ranges(layout.start - layout.origin, layout.length), 0),
        *((key, np.repeat(values, layout.length), -1) for key, values in of_documents.items()),
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


def student_feed(batch: Batch, bos_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs [B, L] int64, what a causal student is fed; at [B, L] int64, which of its logits go with each row).

    A text is shifted by one behind the begin token: bos, then token_ids[:-1], and logits i go with row i. A conversation whose
    template writes the begin token has it in token_ids, as context: it is fed as it is, without a second one, and logits i - 1
    go with row i (its row 0 is never asked for; `at` is 0 there). Packed: the same for each segment. A piece of a cut document
    begins with bos, too; its targets know more than the student.

    logits = model(inputs)[B, L, V]; of the rows of a mask: `b, i = mask.nonzero(as_tuple=True); logits[b, at[b, i]]`.
    """
    tokens = batch["token_ids"]
    begins = _begins(batch)
    shifted = torch.where(begins, bos_id, torch.cat([tokens[:, :1], tokens[:, :-1]], 1))
    column = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    if "loss_mask" not in batch:  # tokens alone: nothing in them is context
        return shifted, column.clone()
    own = (tokens == bos_id) & ~batch["loss_mask"] & begins
    first = torch.where(begins, column, 0).cummax(1).values  # of each position's segment
    as_it_is = own.gather(1, first)
    return torch.where(as_it_is, tokens, shifted), column - (as_it_is & ~begins).long()


def student_inputs(batch: Batch, bos_id: int) -> torch.Tensor:
    """[B, L] int64, what a causal student is fed so that its logits at i go with row i: bos, then token_ids[:-1].

    Packed: each segment begins with bos. A piece of a cut document does too; its targets know more than the student.
    Raises ValueError for conversations whose template writes the begin token, which would stand there twice: `student_feed`
    has those, too.
    """
    inputs, at = student_feed(batch, bos_id)
    if bool((at[:, 1:] == at[:, :-1]).any()):
        raise ValueError(
            f"student_inputs: token_ids begin with the begin token {bos_id}, written by the chat template; one more before it is "
            "none that the student will ever read. Take inputs, at = student_feed(batch, bos_id), and the logits at[i] for row i"
        )
    return inputs


def _begins(batch: Batch) -> torch.Tensor:
    """[B, L] bool: the first position of each document or segment."""
    first = torch.zeros_like(batch["token_ids"], dtype=torch.bool)
    first[:, 0] = True
    if "segments" in batch:
        segments = batch["segments"]
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return first
