"""Compiled: a row of teacher probabilities -> its sums by the cells of the student's state where the row's context ends.

In: rows of a chunk. Out: `Rows` (push/push_arrays.py) and two sums by columns: a boundary where a context ends, and an open
leaf that a context splits, need no more of the row than these, whatever the boundary. Heavy tokens, and tokens behind
which a context is evaluated, stay out of the sums and are listed: whether one of them is split depends on the boundary, and
so nothing is subtracted afterwards. The twin on a device is push/sums_on_device.py.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int32, int64

from engine.kernels.jit import kernel
from engine.push.push_arrays import ROWS, TABLES


def _add_up_rows(
    t, prob_RV, begin, end, at, table_R, end_ids, other_ids, kid_start, kid_token, kid_node, least, acc, rows, decided_RC,
    all_RC,
):  # fmt: skip
    """Rows begin .. end of a chunk by cells; row r of it becomes row at + r of `rows`, decided_RC and all_RC (light mass on each
    column, decided, and decided or open).

    table_R: int32, of the chunk's rows. end_ids, other_ids: int64, the teacher's specials. kid_start int64 [R+1], kid_token,
    kid_node: the evaluated children of each row's context, tokens rising. acc: float64 [cells], scratch."""
    columns = len(t.columns)
    for r in range(begin, end):
        row, to = prob_RV[r], at + r
        table = table_R[r]
        a, b, c, d, ends, others = (
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
        )  # four sums at a time: one waits for the addition before
        whole = len(row) // 4 * 4
        for i in range(0, whole, 4):
            a += np.float64(row[i])
            b += np.float64(row[i + 1])
            c += np.float64(row[i + 2])
            d += np.float64(row[i + 3])
        for i in range(whole, len(row)):
            a += np.float64(row[i])
        total = a + b + c + d
        for i in end_ids:
            ends += np.float64(row[i])
        for i in other_ids:
            others += np.float64(row[i])
        rows.total_R[to], rows.text_R[to], rows.heavy_R[to] = total, total - (ends + others), 0
        rows.ends_R[to], rows.others_R[to] = ends, others
        if table < 0:
            continue
        cell_V = t.whole_SV[t.of_S6[table, 0]]
        acc[:] = 0.0
        n, most, from_token, last_cell = 0, rows.heavy_RH.shape[1], 0, len(acc) - 1
        for k in range(kid_start[r], kid_start[r + 1] + 1):
            to_token = len(cell_V) if k == kid_start[r + 1] else np.int64(kid_token[k])
            for i in range(from_token, to_token):
                p = row[i]
                if p > least and n < most and cell_V[i] != last_cell:
                    rows.heavy_RH[to, n], rows.heavy_p_RH[to, n], rows.kid_RH[to, n] = i, p, -1
                    n += 1
                else:
                    acc[cell_V[i]] += np.float64(p)
            if k < kid_start[r + 1]:
                if n < most:
                    rows.heavy_RH[to, n], rows.heavy_p_RH[to, n] = to_token, row[to_token]
                    rows.kid_RH[to, n] = kid_node[k]
                    n += 1
                else:  # no room: the leaf stays open
                    acc[cell_V[to_token]] += np.float64(row[to_token])
            from_token = to_token + 1
        rows.heavy_R[to] = n
        cut, join_decided, join_open, opened, settled = 0.0, 0.0, 0.0, 0.0, 0.0
        join_C = t.join_SC[t.of_S6[table, 4]]
        for j in range(columns):
            light, light_open = acc[j], acc[columns + j]
            decided_RC[to, j] = light
            all_RC[to, j] = light + light_open
            opened += light_open
            settled += light
            if join_C[j]:
                join_decided += light
                join_open += light_open
            else:
                cut += light + light_open
        rows.none_R2[to, 0], rows.none_R2[to, 1] = acc[2 * columns], acc[2 * columns + 1]
        opened += acc[2 * columns + 1]
        first = t.odd_start_S[table]
        for o in range(t.odd_start_S[table + 1] - first):
            mass = acc[2 * columns + 2 + o]
            rows.odd_RO[to, o] = mass
            if t.odd_open[first + o]:
                opened += mass
        share = rows.share_R5[to]
        share[0], share[1], share[2], share[3], share[4] = cut, join_decided, join_open, opened, settled


def _add_up_types(real):
    return (
        TABLES, real[:, ::1], int64, int64, int64, int32[::1], int64[::1], int64[::1], int64[::1], int32[::1], int32[::1],
        float64, float64[::1], ROWS, real[:, ::1], real[:, ::1],
    )  # fmt: skip


add_up_rows = kernel(*_add_up_types(float32), also=_add_up_types(float64))(_add_up_rows)


def _take_ranges(prob_RV, ids, row_X, lo_X, hi_X, at_X, begin, end, out):
    """Ranges begin .. end: out[at ..] = prob_RV[row, ids[lo:hi]]."""
    for x in range(begin, end):
        row, at, lo = prob_RV[row_X[x]], at_X[x], lo_X[x]
        for i in range(lo, hi_X[x]):
            out[at + i - lo] = row[ids[i]]


def _take_types(real):
    return (real[:, ::1], int32[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64, int64, float64[::1])


take_ranges = kernel(*_take_types(float32), also=_take_types(float64))(_take_ranges)
