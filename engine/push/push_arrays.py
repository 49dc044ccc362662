"""The arrays that compiled push-forwards take and fill, in groups: tables of states, rows, contexts, boundaries, results.

numba hands a tuple of arrays over as one argument; its type stands beside each. Letters: R contexts of the window, Vt teacher
ids, Vs student ids, S tables of states, C columns, U ends of tokens, N contexts and K boundaries of a passage, H heavy tokens
of a row at most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float64, int32, int64, types, uint8

NOTED = 64  # open leaves of one boundary that are noted at most: the heaviest


class Tables(NamedTuple):
    """The states of a student that a window needs, one table each, and what they share.

    of_S6: int32 [S, 6], of each table its row in whole_SV, cell_SU, stop_SU, settled_SU, join_SC, which tables share; and 1 where
    it is one with cuts inside the pending part, which has odd cells only (compiled/odd_cells.py).
    whole_SV: int32 [., Vt], cell of each teacher token as a whole, by id; ids that are no text have the last cell, which is not
    read. cell_SU: int32 [S, U], cell of each end of a token. Cells: c, c + C: decided, open, student token columns[c], doing
    what join_SC [S, C] says of that column (1: JOIN). 2C, 2C + 1: no token begins there, decided, open. From 2C + 2 on: odd
    cells, odd_start_S int64 [S+1] into odd_column, odd_open, odd_join, odd_doubt (uint8). doubt: whether a cut lies before
    the string depends on what follows it. stop_SU: int32 [S, U], bytes of the string up to the end of the pre-token it
    begins. settled_SU: uint8 [S, U], SURE or GROWS (compiled/pair.py).

    ids_R, start_R, bytes_B: the teacher's tokens in byte order; rank_V: int32 [Vt]. suffix_of: int32, end of the token of rank i
    from byte d on at start_R[i] + d. known_U: int32 [U], bytes of an end that no continuation changes. column_of_V: int32 [Vs],
    -1 for none. columns: int32 [C].
    """

    of_S6: np.ndarray
    whole_SV: np.ndarray
    cell_SU: np.ndarray
    join_SC: np.ndarray
    odd_start_S: np.ndarray
    odd_column: np.ndarray
    odd_open: np.ndarray
    odd_join: np.ndarray
    odd_doubt: np.ndarray
    stop_SU: np.ndarray
    settled_SU: np.ndarray
    ids_R: np.ndarray
    start_R: np.ndarray
    bytes_B: np.ndarray
    rank_V: np.ndarray
    suffix_of: np.ndarray
    known_U: np.ndarray
    column_of_V: np.ndarray
    columns: np.ndarray


TABLES = types.NamedTuple(
    [
        int32[:, ::1], int32[:, ::1], int32[:, ::1], uint8[:, ::1], int64[::1], int32[::1], uint8[::1], uint8[::1],
        uint8[::1], int32[:, ::1], uint8[:, ::1],
        int32[::1], int64[::1], uint8[::1], int32[::1], int32[::1], int32[::1], int32[::1], int32[::1],
    ],
    Tables,
)  # fmt: skip


class Rows(NamedTuple):
    """What the host keeps of each row of probabilities; the sums by columns stay where the rows were (push/sums_on_host.py).

    Light mass is that of tokens which are not listed as heavy. none_R2: float64 [R, 2], light mass on no token, decided and
    open. odd_RO: float64, light mass on the odd cells. share_R5: float64 [R, 5], light mass on columns that CUT, that JOIN and
    are decided, that JOIN and are open; light open mass, odd cells and none included; light decided mass on columns. total_R,
    text_R: float64 [R], the whole row, and without ids that are no text. ends_R, others_R: float64 [R], on the ids that end a
    text, and on other specials. heavy_RH: int32, tokens in the order of their ids; heavy_p_RH: float64, their probabilities;
    kid_RH: int32, the node behind each, -1 for none; heavy_R: int32 [R], how many. Rows whose table is -1 have sums of no
    meaning.
    """

    none_R2: np.ndarray
    odd_RO: np.ndarray
    share_R5: np.ndarray
    total_R: np.ndarray
    text_R: np.ndarray
    ends_R: np.ndarray
    others_R: np.ndarray
    heavy_RH: np.ndarray
    heavy_p_RH: np.ndarray
    kid_RH: np.ndarray
    heavy_R: np.ndarray


ROWS = types.NamedTuple(
    [
        float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[::1], float64[::1], float64[::1], float64[::1],
        int32[:, ::1], float64[:, ::1], int32[:, ::1], int32[::1],
    ],
    Rows,
)  # fmt: skip


def new_rows(rows: int, odd: int, most_heavy: int) -> Rows:
    """Room for some rows."""
    heavy = (rows, most_heavy)
    return Rows(
        none_R2=np.zeros((rows, 2)),
        odd_RO=np.zeros((rows, odd)),
        share_R5=np.zeros((rows, 5)),
        total_R=np.zeros(rows),
        text_R=np.zeros(rows),
        ends_R=np.zeros(rows),
        others_R=np.zeros(rows),
        heavy_RH=np.zeros(heavy, np.int32),
        heavy_p_RH=np.zeros(heavy),
        kid_RH=np.zeros(heavy, np.int32),
        heavy_R=np.zeros(rows, np.int32),
    )


class Nodes(NamedTuple):
    """A passage's contexts. row_N: int32, place in the window, -1: not there. end_N: int32 bytes; token_N: int32. logw_N: float64
    nats. table_N: int32, table of the student's state where the node ends, -1: the simple rules do not hold there. begin_N:
    int32, byte where the student's pending part begins there. kid_start: int64 [N+1], kid_node: int32: evaluated children.
    noncanonical_N: float64. text: uint8, prefix + text, and behind it the strings of contexts that a search has hung off the
    text's; shift_N: int64: byte x of the string that a context ends is text[x + shift_N], 0 for those of the text."""

    row_N: np.ndarray
    end_N: np.ndarray
    token_N: np.ndarray
    logw_N: np.ndarray
    table_N: np.ndarray
    begin_N: np.ndarray
    kid_start: np.ndarray
    kid_node: np.ndarray
    noncanonical_N: np.ndarray
    text: np.ndarray
    shift_N: np.ndarray


NODES = types.NamedTuple(
    [
        int32[::1], int32[::1], int32[::1], float64[::1], int32[::1], int32[::1], int64[::1], int32[::1], float64[::1],
        uint8[::1], int64[::1],
    ],
    Nodes,
)  # fmt: skip


class Bounds(NamedTuple):
    """A passage's boundaries; see StudentView. table_K: int32. pruned_K: float64, log-weight (nats) that bounds the mass of
    contexts that were not evaluated. horizon_K: int32, byte up to which leaves are followed. gold_K: int64. lead: uint8, the
    student's prefix, which stands before the strings of boundary 0. begin_K: int32, byte where the pending part begins."""

    place_K: np.ndarray
    last_K: np.ndarray
    table_K: np.ndarray
    leaf_start: np.ndarray
    leaf_node: np.ndarray
    leaf_lo: np.ndarray
    leaf_hi: np.ndarray
    leaf_depth: np.ndarray
    at_start: np.ndarray
    at_node: np.ndarray
    end_counts_K: np.ndarray
    pruned_K: np.ndarray
    horizon_K: np.ndarray
    gold_K: np.ndarray
    lead: np.ndarray
    begin_K: np.ndarray


BOUNDS = types.NamedTuple(
    [
        int32[::1], int32[::1], int32[::1], int64[::1], int32[::1], int32[::1], int32[::1], int32[::1],
        int64[::1], int32[::1], uint8[::1],
        float64[::1], int32[::1], int64[::1], uint8[::1], int32[::1],
    ],
    Bounds,
)  # fmt: skip


class Stored(NamedTuple):
    """Where the results go, rows of one passage [K]. ids: int32 [K, k]; mass: float64 [K, k], falling; all other float64 [K]:
    valid (all mass that begins a token), tail, gold (unnormalised), decided, open, excluded, pruned, live (all mass, counted
    leaf by leaf, the other way), noncanonical. dense_KV: float64 [K, Vs] or [0, 0], the whole masses where a codec wants them.
    note_node, note_token: int32 [K, M], -1 for none, note_mass: float64 [K, M], the open leaves that no row splits;
    where they are wanted nothing else but the masses is stored. Not wanted: [0, 0]."""

    ids: np.ndarray
    mass: np.ndarray
    valid: np.ndarray
    tail: np.ndarray
    gold: np.ndarray
    decided: np.ndarray
    open: np.ndarray
    excluded: np.ndarray
    pruned: np.ndarray
    live: np.ndarray
    noncanonical: np.ndarray
    dense_KV: np.ndarray
    note_node: np.ndarray
    note_token: np.ndarray
    note_mass: np.ndarray


STORED = types.NamedTuple(
    [
        int32[:, ::1], float64[:, ::1], float64[::1], float64[::1], float64[::1], float64[::1], float64[::1],
        float64[::1],
        float64[::1], float64[::1],
        float64[::1], float64[:, ::1], int32[:, ::1], int32[:, ::1], float64[:, ::1],
    ],
    Stored,
)  # fmt: skip
