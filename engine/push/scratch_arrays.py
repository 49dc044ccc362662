"""The arrays that a thread works in while it pushes boundaries forward, and the parts that it makes of them.

numba hands a tuple of arrays over as one argument; its type stands beside each. Letters: Vs student ids, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float64, int32, int64, types, uint8, uint64

from engine.push.push_arrays import NOTED

DEEPEST = 64  # leaves that wait to be split at one boundary
LONGEST = 2048  # bytes of a split leaf's string; a longer one stays open


class Work(NamedTuple):
    """Scratch of one thread, made by `new_work`. mass_C: float64, all 0 between boundaries; touched: int32, columns that are not.
    spill_id int64, spill float64: tokens without a column, and their mass; spill_at: int32 [Vs], where a token is among
    them, -1 between boundaries.
    illegal_at, illegal_end: int64 [Vs], where in `illegal` the columns lie that may not follow a token, -1: not listed yet.
    counts: int64 [6], used part of `illegal`, spilt tokens, folds and listed tokens so far, open leaves noted of this
    boundary (-1: none is to be), `touched` columns. note_node, note_token: int64, note_mass: float64, these. kept: int32, room
    for a copy of `first`. mine: columns that may not follow the boundary's last token, is_illegal_C marks them. stack: int64
    [.., 3], leaves to be split: node, token that closes it (-1: none), whether joined; stack_mass. share: float64 [4], decided,
    open, excluded, live."""

    mass_C: np.ndarray
    touched: np.ndarray
    old_C: np.ndarray
    spill_id: np.ndarray
    spill: np.ndarray
    spill_at: np.ndarray
    mine: np.ndarray
    illegal: np.ndarray
    illegal_at: np.ndarray
    illegal_end: np.ndarray
    bits: np.ndarray
    ids: np.ndarray
    is_illegal_C: np.ndarray
    counts: np.ndarray
    last: np.ndarray
    parent: np.ndarray
    first: np.ndarray
    text: np.ndarray
    stack: np.ndarray
    stack_mass: np.ndarray
    heap_value: np.ndarray
    heap_id: np.ndarray
    share: np.ndarray
    note_node: np.ndarray
    note_token: np.ndarray
    note_mass: np.ndarray
    kept: np.ndarray


WORK = types.NamedTuple(
    [
        float64[::1], int32[::1], float64[::1], int64[::1], float64[::1], int32[::1], int32[::1], int32[::1], int64[::1],
        int64[::1], uint64[::1], int32[::1], uint8[::1],
        int64[::1], int32[::1], int32[::1], int32[::1], uint8[::1], int64[:, ::1], float64[::1], float64[::1],
        int64[::1], float64[::1], int64[::1], int64[::1], float64[::1], int32[::1],
    ],
    Work,
)  # fmt: skip


def new_work(columns: int, student_ids: int, top_k: int, *, listed: int = 1 << 22) -> Work:
    """Scratch for a student. listed: numbers kept of lists of tokens that may not follow another."""
    return Work(
        mass_C=np.zeros(columns),
        touched=np.empty(columns, np.int32),
        old_C=np.zeros(columns),
        spill_id=np.zeros(max(student_ids - columns, 1), np.int64),
        spill=np.zeros(max(student_ids - columns, 1)),
        spill_at=np.full(student_ids, -1, np.int32),
        mine=np.empty(columns, np.int32),
        illegal=np.empty(max(listed, columns), np.int32),
        illegal_at=np.full(student_ids, -1, np.int64),
        illegal_end=np.full(student_ids, -1, np.int64),
        bits=np.zeros(student_ids // 64 + 1, np.uint64),
        ids=np.empty(student_ids, np.int32),
        is_illegal_C=np.zeros(columns, np.uint8),
        counts=np.zeros(6, np.int64),
        last=np.empty(2 * LONGEST + 2, np.int32),
        parent=np.empty(2 * LONGEST + 2, np.int32),
        first=np.empty(2 * LONGEST + 2, np.int32),
        text=np.empty(2 * LONGEST + 2, np.uint8),
        stack=np.empty((DEEPEST, 3), np.int64),
        stack_mass=np.empty(DEEPEST),
        heap_value=np.empty(top_k + 1),
        heap_id=np.empty(top_k + 1, np.int64),
        share=np.zeros(4),
        note_node=np.empty(NOTED, np.int64),
        note_token=np.empty(NOTED, np.int64),
        note_mass=np.empty(NOTED),
        kept=np.empty(2 * LONGEST + 2, np.int32),
    )


class Parts(NamedTuple):
    """What boundaries are made of: listed by `push`, added up where the sums by columns are. Each list is in the order of the
    boundaries.

    own_k, own_row, own_table: int32, own_weight: float64: `weight` times the light mass of a row by columns belongs to boundary
    k, but for columns that JOIN there and may not follow its last token: these are excluded. fold_k, fold_row, fold_table,
    fold_token: int32, fold_scale: float64, fold_lost: uint8: of an open leaf that a row splits, `scale` times the row's light
    decided mass on columns that JOIN and may not follow `token` was counted as decided, and is open. lost: the leaf is excluded,
    and nothing of it was counted as decided. add_k, add_at: int32, add_mass: float64: mass on a column, or at C + v on the
    student token v that has no column; each once for a boundary. used: int64 [3], how many of each list.
    """

    own_k: np.ndarray
    own_row: np.ndarray
    own_table: np.ndarray
    own_weight: np.ndarray
    fold_k: np.ndarray
    fold_row: np.ndarray
    fold_table: np.ndarray
    fold_token: np.ndarray
    fold_scale: np.ndarray
    fold_lost: np.ndarray
    add_k: np.ndarray
    add_at: np.ndarray
    add_mass: np.ndarray
    used: np.ndarray


PARTS = types.NamedTuple(
    [
        int32[::1], int32[::1], int32[::1], float64[::1], int32[::1], int32[::1], int32[::1], int32[::1], float64[::1],
        uint8[::1], int32[::1], int32[::1], float64[::1], int64[::1],
    ],
    Parts,
)  # fmt: skip
OWN, FOLDS, ADDS = 0, 1, 2  # places in `used`


def new_parts(student_ids: int, *, own: int = 1 << 14, folds: int = 1 << 16, adds: int = 1 << 18) -> Parts:
    """Room for the parts of some boundaries, at least for one."""
    adds = max(adds, 2 * student_ids)
    return Parts(
        own_k=np.zeros(own, np.int32),
        own_row=np.zeros(own, np.int32),
        own_table=np.zeros(own, np.int32),
        own_weight=np.zeros(own),
        fold_k=np.zeros(folds, np.int32),
        fold_row=np.zeros(folds, np.int32),
        fold_table=np.zeros(folds, np.int32),
        fold_token=np.zeros(folds, np.int32),
        fold_scale=np.zeros(folds),
        fold_lost=np.zeros(folds, np.uint8),
        add_k=np.zeros(adds, np.int32),
        add_at=np.zeros(adds, np.int32),
        add_mass=np.zeros(adds),
        used=np.zeros(3, np.int64),
    )
