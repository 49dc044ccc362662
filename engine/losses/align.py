"""Chunks that two tokenizations of one text have in common, found by byte ends, without a loop.

A *boundary* is a byte where both sides end a token, a *chunk* what lies between two neighbouring boundaries: the smallest
pieces that are whole tokens on both sides. Chunks are numbered from 0 in the order of the text.

Letters: T teacher rows, S student rows, N rows of either, C chunks. Row i predicts token i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NONE = -1  # a row in no chunk
ROLE_END = 2  # roles of the product `teacher`; 0 is text, 1 and 3 are begin and template
FLAG_END, FLAG_CONTEXT = 16, 64  # flags of a student's product


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """The tokens of one side. Make it with `teacher` or `student`; arguments are numpy arrays or tensors, [N].

    Tokens without bytes are *special* where they are ends or context, and never part of a text's chunk. A token of text
    without bytes (the lone space that some tokenizers put before a text) goes with the text behind it.
    """

    byte_end: npt.NDArray[np.int64]  # [N]
    end: npt.NDArray[np.bool_]  # [N] end of text or turn
    special: npt.NDArray[np.bool_]  # [N] no bytes, and end or context
    usable: npt.NDArray[np.bool_]  # [N] may carry a loss

    @classmethod
    def teacher(cls, byte_end: object, roles: object, mask: object) -> TokenSpans:
        """roles: 0 text, 1 begin, 2 end, 3 template and other context; mask: scored."""
        role = _array(roles, np.int64)
        return cls._make(byte_end, role == ROLE_END, role != 0, mask)

    @classmethod
    def student(cls, byte_end: object, flags: object, loss_mask: object) -> TokenSpans:
        """flags: bits 16 end, 64 context; loss_mask: bit 64 is not set (scored or not)."""
        flag = _array(flags, np.int64)
        return cls._make(byte_end, flag & FLAG_END != 0, flag & (FLAG_END | FLAG_CONTEXT) != 0, loss_mask)

    @classmethod
    def _make(
        cls, byte_end: object, end: npt.NDArray[np.bool_], no_text: npt.NDArray[np.bool_], mask: object
    ) -> TokenSpans:
        ends, usable = _array(byte_end, np.int64), _array(mask, np.bool_)
        if not len(ends) == len(end) == len(usable):
            raise ValueError(
                f"{len(ends)} byte ends, {len(end)} roles or flags, {len(usable)} of the mask: wanted one each"
            )
        width = np.diff(ends, prepend=0)
        if (width < 0).any():
            row = int(np.flatnonzero(width < 0)[0])
            raise ValueError(f"byte_end falls at row {row}: {ends[row - 1] if row else 0} to {ends[row]}")
        return cls(ends, end, no_text & (width == 0), usable)


class Alignment(NamedTuple):
    """Which chunk each row belongs to. int64 and bool tensors on the CPU. A chunk's rows are neighbours on each side."""

    chunk_of_t: Tensor  # [T], NONE in none
    chunk_of_s: Tensor  # [S]
    is_end: Tensor  # [C] bool: an end token on both sides, no text


def align(teacher: TokenSpans, student: TokenSpans) -> Alignment:
    """The chunks of two sides of one text.

    An end without bytes is a chunk of its own with the end at the same byte of the other side, the first with the first
    where there are several; specials that one side has alone are skipped. What follows the last boundary (one side cut
    short, or both) has no chunk. A chunk is dropped whole, on both sides, where a row of it is not usable on either side,
    where a special stands inside it, and where it is an end on one side and text on the other (an end written out in the
    text may have bytes). Raises ValueError (in TokenSpans) where byte ends fall.
    """
    sides = (teacher, student)
    text_t, text_s = (side.byte_end[_has_bytes(side)] for side in sides)
    common = np.intersect1d(text_t, text_s)
    keys = [_end_keys(side) for side in sides]
    common_ends = np.setdiff1d(np.intersect1d(keys[0], keys[1]), [NONE])
    raw = [_raw_chunks(side, key, common, common_ends) for side, key in zip(sides, keys, strict=True)]
    count = len(common) + len(common_ends)
    good, is_end = np.ones(count, bool), np.zeros(count, bool)
    some_text = np.zeros(count, bool)
    for side, chunk in zip(sides, raw, strict=True):
        rows = np.flatnonzero(chunk != NONE)
        of = chunk[rows]
        good[of[~side.usable[rows]]] = False
        by_chunk = np.argsort(of, kind="stable")
        of_next, apart = of[by_chunk][1:], np.diff(rows[by_chunk]) != 1
        good[of_next[(np.diff(of[by_chunk]) == 0) & apart]] = False  # a special inside
        is_end[of[side.end[rows]]] = True
        some_text[of[~side.end[rows]]] = True
    good &= ~(is_end & some_text)
    chunks, first = np.unique(raw[0][raw[0] != NONE], return_index=True)  # the ends' numbers stand behind all of text's
    in_order = chunks[np.argsort(first)]
    kept = in_order[good[in_order]]
    number = np.full(count + 1, NONE, np.int64)  # the last one: of NONE
    number[kept] = np.arange(len(kept))
    chunk_t, chunk_s = (torch.from_numpy(number[chunk]) for chunk in raw)
    return Alignment(chunk_t, chunk_s, torch.from_numpy(is_end[kept]))


def first_and_last(chunk_of: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First and last row of each chunk on one side, int64 [C] each."""
    rows = torch.nonzero(chunk_of != NONE).squeeze(1)
    lengths = torch.bincount(chunk_of[rows], minlength=count)
    last = torch.cumsum(lengths, 0) - 1
    return rows[last - lengths + 1], rows[last]


def keep(alignment: Alignment, good_C: Tensor) -> Alignment:
    """The chunks where good_C, bool [C], is true, numbered anew."""
    new = torch.where(good_C, torch.cumsum(good_C, 0) - 1, NONE)
    new = torch.cat([new, torch.tensor([NONE])])  # the last one: of NONE
    return Alignment(new[alignment.chunk_of_t], new[alignment.chunk_of_s], alignment.is_end[good_C])


def _raw_chunks(
    side: TokenSpans, key: npt.NDArray[np.int64], common: npt.NDArray[np.int64], common_ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """[N] numbers before any is dropped: text by its boundary, behind these the ends by their key."""
    behind = np.where(
        _has_bytes(side),
        np.searchsorted(common, side.byte_end, "left"),
        np.searchsorted(common, side.byte_end, "right"),
    )
    chunk = np.where(behind < len(common), behind, NONE)
    at = np.searchsorted(common_ends, key)
    found = (key != NONE) & np.isin(key, common_ends)
    return np.where(side.special, np.where(found, len(common) + at, NONE), chunk)


def _end_keys(side: TokenSpans) -> npt.NDArray[np.int64]:
    """[N] byte and place among the ends there, as one number; NONE for all other rows."""
    rows = np.flatnonzero(side.special & side.end)
    ends = side.byte_end[rows]
    key = np.full(len(side.byte_end), NONE, np.int64)
    key[rows] = (ends << 20) + np.arange(len(rows)) - np.searchsorted(ends, ends, "left")  # 2^20 empty turns at a byte
    return key


def _has_bytes(side: TokenSpans) -> npt.NDArray[np.bool_]:
    return np.diff(side.byte_end, prepend=0) > 0


def _array(values: object, dtype: type[np.generic]) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"wanted one number per row, got shape {array.shape}")
    return array.astype(dtype, copy=False)
