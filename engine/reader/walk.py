"""Documents in the order of an epoch -> batches, from any place in that order on. What `Targets` and `Blend` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .collate import Batch, collate, packed_layout, padded_layouts, to_device
from .row_groups import DocumentPool, RowGroup
from .spans import Spans

POOL_GROUPS = 8
"""Row groups (at most 64 documents each) whose documents are mixed with each other when a seed is given."""

Parts = list[tuple[RowGroup, npt.NDArray[np.int64]]]
"""Row groups of a pool, and of each document there its number in the order of delivery, -1 where it is not wanted."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a pass: documents before it, and pieces used of the next one (packing only)."""

    document: int
    piece: int = 0


class Walk(ABC):
    """Something that documents come from in an order which depends on seed and epoch alone.

    fingerprint  of what is read: a place in its order means nothing in another one's
    product      its full name
    rows         documents of an epoch
    beside       names of the products in batch[name]
    """

    fingerprint: str
    product: str
    rows: int
    beside: tuple[str, ...]

    @abstractmethod
    def prepare(self) -> None:
        """Read what all workers need, before they are made."""

    @abstractmethod
    def pools(self, seed: int | None, epoch: int, spans: Spans, pool_groups: int) -> Iterator[list[Parts]]:
        """The documents of the spans, some at a time, in order: the parts of each product (this one, then those beside)."""

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        epoch: int = 0,
        pack_length: int | None = None,
    ) -> Iterator[Batch]:
        """Batches of every document of the epoch, each once; the last may be smaller.

        seed         None: corpus order. Else the row groups of all files are shuffled, and the documents of POOL_GROUPS
                     of them at a time, the same way at every call with this seed and epoch.
        max_length   keep the first so many positions of a document (the rest of it is left out).
        pack_length  None: a document a row, padded to the longest. L: batch_size rows of L positions, documents laid one
                     behind another, each a segment of its own; one longer than L is cut into pieces of L. A document that
                     is read anew (flag 128) has a row, or a segment, for each of its readings.

        Keys (in brackets the padding): token_ids [B, L] int64 (0), byte_end [B, L] int64 (0), mask [B, L] bool: scored
        (within max_width) and not padding, loss_mask [B, L] bool: asked for (flag 64 is not set) and not padding,
        flags [B, L] int64 (64), lengths [B] int64, left_out [B] int64: positions that only max_width left out,
        doc_row [B] int64, gold_logp [B, L] nats (-inf), err [B, L] (0).
        Codec topk: ids [B, L, K] int64 (0, also where no token is stored: safe to gather with), logps [B, L, K] float32
        nats (-inf, also where no token is stored), tail_logp [B, L] nats (0).
        Codec sample: ids [B, L, U] int64 (0), counts [B, L, U] int64 (0).
        Where stored: logz, entropy, logit_std, logz_scaled, space_logp, end_logp [B, L] float32 (0), roles [B, L] int64
        (0), hidden [B, L, H] bfloat16 (0).
        Packed: segments [B, L] int64: 1, 2 .. for the documents of a row (0), positions [B, L] int64: within the document
        (0), and doc_row [B, L] (-1); lengths counts the filled positions of a row. Products beside others are packed only
        where all have the same positions, else ValueError.
        Of a blend: output like doc_row, the number of the output that a document is of.
        """
        how = {"seed": seed, "max_length": max_length, "epoch": epoch, "pack_length": pack_length}
        for batch, _ in self.walk(batch_size, Spans.whole(self.rows), device=device, **how):
            yield batch

    def walk(
        self,
        batch_size: int,
        spans: Spans,
        *,
        seed: int | None = None,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        epoch: int = 0,
        pack_length: int | None = None,
        start: Cursor | None = None,
        pool_groups: int = POOL_GROUPS,
    ) -> Iterator[tuple[Batch, Cursor]]:
        """`batches` over the documents of the spans from a cursor on, each with the cursor behind it."""
        for value, name in ((batch_size, "batch_size"), (max_length, "max_length"), (pack_length, "pack_length")):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: wanted a number >= 1")
        cursor = start or Cursor(0)
        pin = device is not None and torch.device(device).type == "cuda"
        begun = spans.begun_numbers()
        waiting: list[RowGroup] | None = None
        for parts in self.pools(seed, epoch, spans.cut(cursor.document, spans.size), pool_groups):
            pools = [DocumentPool(*args) for args in zip(parts, waiting or [None] * len(parts), strict=True)]
            done, count = 0, len(pools[0].lengths)
            last = cursor.document + count == spans.size
            while done < count:
                if pack_length is None:
                    if done + batch_size > count and not last:
                        break
                    layouts = padded_layouts(pools, done, batch_size, max_length, list(self.beside))
                else:
                    if cursor.piece:
                        begun[cursor.document] = cursor.piece
                    used = {number - cursor.document: pieces for number, pieces in begun.items()}
                    rest = pools[0].lengths[done:], pools[0].readings[done:]
                    layout = packed_layout(*rest, batch_size, pack_length, max_length, used, last=last)
                    if layout is None:
                        break
                    layouts = [layout] * len(pools)
                    self._check_same_lengths(pools)
                batch, *others = (
                    collate(pool, layout, done, pin=pin) for pool, layout in zip(pools, layouts, strict=True)
                )
                done += layouts[0].consumed
                cursor = Cursor(cursor.document + layouts[0].consumed, layouts[0].piece)
                yield to_device({**batch, **dict(zip(self.beside, others, strict=True))}, device), cursor
            waiting = [pool.after(done) for pool in pools] if done < count else None
            del pools, parts  # before the next ones are read: half the memory

    def _check_same_lengths(self, pools: Sequence[DocumentPool]) -> None:
        for name, pool in zip(self.beside, pools[1:], strict=True):
            same = map(np.array_equal, pools[0].readings, pool.readings)
            if not np.array_equal(pools[0].lengths, pool.lengths) or not all(same):
                raise ValueError(
                    f"pack_length with beside={name!r}: its documents have other positions than those of "
                    f"{self.product}, so one row cannot hold both; leave out one of the two"
                )
