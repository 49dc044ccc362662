"""One pending part of a student as arrays: what every teacher token does at a boundary behind it.

Made by compiled/pair.py, which says what a cell is; kept in files by compiled/cache.py. Letters: R ordinary teacher tokens by
bytes, U distinct ends of these, C columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from engine.alignment.token_range import Variants


@dataclass(frozen=True, eq=False)
class State:
    """One pending part of the student. Arrays may be shared with other states.

    cell_U: int32 [U], cell of each end of a token. whole_R: int32 [R], cells of whole tokens in rank order. join_C: uint8
    [C], 1 where strings that begin with this column's token are joined to the pending part (JOIN: only where the pair with
    the last student token is canonical), 0 where a pre-token begins with it (CUT). odd_column, odd_open, odd_join: int32,
    uint8, uint8 [cells beyond 2C + 2]. stop_U: int32 [U], bytes up to the end of the pre-token that begins at or spans the
    boundary, as if the text ended behind the string. sure_U: uint8 [U]: SURE, that end is certain; GROWS, the pre-token may end
    later but not sooner; else 0. agrees_U: bool [U], whether
    all ways to go on have the same cuts before the boundary, and the same answer whether one lies at it. variants: (cuts inside
    the pending part, a cut at the boundary) that occur; variant_U: uint8 [U], the number of each string's. simple: no cut lies
    inside the pending part in any of them, so that only two are possible; units: else those of the pending part, which the cuts
    count. Where it is False the arrays hold, but whether the pending part is encoded to the student's own
    tokens depends on the variant of each string: take the slow rules. partial: bytes of a character that lie before the
    boundary; then `units` are those before it, and a cut "at the boundary" lies where it begins (compiled/inside.py).
    """

    cell_U: np.ndarray
    whole_R: np.ndarray
    join_C: np.ndarray
    odd_column: np.ndarray
    odd_open: np.ndarray
    odd_join: np.ndarray
    stop_U: np.ndarray
    sure_U: np.ndarray
    agrees_U: np.ndarray
    variant_U: np.ndarray
    variants: Variants
    simple: bool
    units: int = 0
    partial: int = 0

    @property
    def cells(self) -> int:
        """How many cells there are, odd ones included."""
        return 2 * len(self.join_C) + 2 + len(self.odd_column)


STATE_ARRAYS = (
    "cell_U",
    "whole_R",
    "join_C",
    "odd_column",
    "odd_open",
    "odd_join",
    "stop_U",
    "sure_U",
    "agrees_U",
    "variant_U",
)


def digest_of(array: np.ndarray) -> bytes:
    """A name for the numbers of an array."""
    head = f"{array.dtype} {array.shape}".encode()
    return hashlib.blake2b(np.ascontiguousarray(array).view(np.uint8).data, digest_size=16, key=head[:64]).digest()
