"""Compiled: rows of teacher probabilities -> what a student's boundaries store, without a Python object per boundary.

In: the sums of a window of contexts (push/row_kernels.py), the boundaries of one passage as arrays (compiled/walk.py) and the
tables of their states. Out: per boundary the top-k, tail, gold and the masses of definition 8. The slow twin is
targets/pushforward.py with the splits of beam/frontier.py.

A context's row meets a boundary in three ways. *Its own boundary*, where the context ends: all tokens begin there, and the
boundary takes the row's sums. *A later boundary*, inside some of its tokens: these are one range of the sorted vocabulary,
and are taken one by one. *An earlier boundary*, of which the context is behind an open leaf: the row splits the leaf
(push/split_kernels.py).
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, float64, int64

from engine.kernels.flat import FLAT
from engine.kernels.jit import kernel
from engine.kernels.merge_kernels import MEMO
from engine.push.push_arrays import BOUNDS, NODES, STORED, TABLES, WORK, sums_type
from engine.push.split_kernels import decode, illegal_of, note, put, settle_leaf, spill, split
from engine.push.top_k_kernels import keep, keep_notes


def _own_row(s, t, nodes, prob_RV, sums, node, table, last, horizon, weight, illegal, waiting, w):
    """A context that ends at the boundary: its light tokens by their sums, its heavy ones one by one. Returns how many leaves
    wait.

    The first `illegal` of w.mine are the columns that may not follow the last student token (lemma 2). Their masses are set
    aside and put back where they JOIN, so that what is excluded was never added.
    """
    r, columns = np.int64(nodes.row_N[node]), len(t.columns)
    join_C, all_C, decided_C = t.join_SC[t.of_S6[table, 4]], sums.all_RC[r], sums.decided_RC[r]
    for i in range(illegal):
        w.old_C[w.mine[i]] = w.mass_C[w.mine[i]]
    for c in range(columns):
        w.mass_C[c] += weight * np.float64(all_C[c])
    broken, broken_decided = 0.0, 0.0
    for i in range(illegal):
        c = w.mine[i]
        if join_C[c]:
            w.mass_C[c] = w.old_C[c]
            broken += np.float64(all_C[c])
            broken_decided += np.float64(decided_C[c])
    share = sums.share_R5[r]
    w.share[0] += weight * (share[4] - broken_decided)
    w.share[1] += weight * share[3]
    w.share[2] += weight * (broken + sums.none_R2[r, 0] + sums.none_R2[r, 1])
    first = t.odd_start_S[table]
    for o in range(first, t.odd_start_S[table + 1]):
        light = weight * sums.odd_RO[r, o - first]
        if light > 0.0:
            opened = t.odd_open[o] == 1
            if opened:  # share[3] has it
                w.share[1] -= light
            put(s, t, last, np.int64(t.columns[t.odd_column[o]]), t.odd_join[o] == 1, opened, light, w)
    whole_V = t.whole_SV[t.of_S6[table, 0]]
    decided_mass, open_mass, excluded = 0.0, 0.0, 0.0
    for h in range(sums.heavy_R[r]):
        i = np.int64(sums.heavy_RH[r, h])
        cell, p = np.int64(whole_V[i]), weight * np.float64(prob_RV[r, i])
        if cell < columns or (cell < 2 * columns and sums.kid_RH[r, h] < 0):  # nearly all: no call for these
            c = cell if cell < columns else cell - columns
            if cell >= columns:
                open_mass += p
                note(node, i, p, w)
            if join_C[c] and w.is_illegal_C[c]:
                excluded += p
            else:
                w.mass_C[c] += p
                if cell < columns:
                    decided_mass += p
            continue
        column, opened, joins, _ = decode(t, table, cell)
        token = np.int64(t.columns[column]) if column >= 0 else np.int64(-1)
        kid = np.int64(sums.kid_RH[r, h])
        waiting = settle_leaf(s, t, nodes, last, horizon, node, i, kid, token, p, joins, opened, waiting, w)
    w.share[0] += decided_mass
    w.share[1] += open_mass
    w.share[2] += excluded
    w.share[3] += weight * sums.text_R[r]
    return waiting


def _own_row_types(real):
    return (
        FLAT, TABLES, NODES, real[:, ::1], sums_type(real), int64, int64, int64, int64, float64, int64, int64, WORK,
    )  # fmt: skip


own_row = kernel(*_own_row_types(float32), also=_own_row_types(float64))(_own_row)


def _inside_tokens(s, t, nodes, bounds, prob_RV, x, table, last, horizon, least, weight, waiting, w):
    """Leaf x, a context before the boundary: the tokens that reach past it, one by one. Returns how many leaves wait."""
    node, depth = np.int64(bounds.leaf_node[x]), np.int64(bounds.leaf_depth[x])
    r, columns = np.int64(nodes.row_N[node]), len(t.columns)
    join_C, cell_U = t.join_SC[t.of_S6[table, 4]], t.cell_SU[t.of_S6[table, 1]]
    kids, kids_end = nodes.kid_start[node], nodes.kid_start[node + 1]
    decided_mass, open_mass, excluded, taken = 0.0, 0.0, 0.0, 0.0
    for i in range(bounds.leaf_lo[x], bounds.leaf_hi[x]):
        teacher_id = t.ids_R[i]
        p = weight * np.float64(prob_RV[r, teacher_id])
        if p == 0.0:
            continue
        taken += p
        cell = np.int64(cell_U[t.suffix_of[t.start_R[i] + depth]])
        kid = np.int64(-1)
        if cell >= columns:
            for j in range(kids, kids_end):
                if nodes.token_N[nodes.kid_node[j]] == teacher_id:
                    kid = np.int64(nodes.kid_node[j])
        if cell < columns or (cell < 2 * columns and kid < 0):
            c = cell if cell < columns else cell - columns
            if cell >= columns:
                open_mass += p
                if p > least:
                    note(node, np.int64(teacher_id), p, w)
            if join_C[c] and w.is_illegal_C[c]:
                excluded += p
            else:
                w.mass_C[c] += p
                if cell < columns:
                    decided_mass += p
            continue
        column, opened, joins, _ = decode(t, table, cell)
        token = np.int64(t.columns[column]) if column >= 0 else np.int64(-1)
        waiting = settle_leaf(
            s, t, nodes, last, horizon, node, np.int64(teacher_id), kid, token, p, joins, opened, waiting, w
        )  # fmt: skip
    w.share[0] += decided_mass
    w.share[1] += open_mass
    w.share[2] += excluded
    w.share[3] += taken
    return waiting


def _inside_types(real):
    return (
        FLAT, TABLES, NODES, BOUNDS, real[:, ::1], int64, int64, int64, int64, float64, float64, int64, WORK,
    )  # fmt: skip


inside_tokens = kernel(*_inside_types(float32), also=_inside_types(float64))(_inside_tokens)


@kernel(NODES, BOUNDS, int64)
def heaviest(nodes, bounds, k):
    """float64: the largest log-weight of what boundary k has at hand, nats; other weights are relative to it."""
    top = bounds.pruned_K[k]
    for x in range(bounds.leaf_start[k], bounds.leaf_start[k + 1]):
        if nodes.row_N[bounds.leaf_node[x]] >= 0:
            top = max(top, nodes.logw_N[bounds.leaf_node[x]])
    for x in range(bounds.at_start[k], bounds.at_start[k + 1]):
        if nodes.row_N[bounds.at_node[x]] >= 0:
            top = max(top, nodes.logw_N[bounds.at_node[x]])
    return top


def _push(s, t, nodes, bounds, prob_RV, sums, end_ids, other_ids, end_id, begin, end, least, words, memo, w, out):
    """Boundaries begin .. end of a passage; those with table -1 are left alone.

    end_ids, other_ids: int64, the teacher's ids that end a text, and its other specials; end_id: the student's end, -1 for none.
    least: tokens of a smaller share are not asked one by one. words: the student has words that only `ignore_merges` makes.
    Fills `out`.
    """
    noting = out.note_mass.shape[0] > 0
    for k in range(begin, end):
        w.counts[4] = 0 if noting else -1
        table, last, place = np.int64(bounds.table_K[k]), np.int64(bounds.last_K[k]), np.int64(bounds.place_K[k])
        top = heaviest(nodes, bounds, k)
        if table < 0 or top == -np.inf:
            continue
        horizon, waiting = np.int64(bounds.horizon_K[k]), np.int64(0)
        lead = bounds.lead if k == 0 else bounds.lead[:0]
        w.share[:] = 0.0
        first, stop = illegal_of(s, t, last, w)
        illegal = stop - first
        for i in range(illegal):
            w.mine[i] = w.illegal[first + i]
            w.is_illegal_C[w.mine[i]] = 1
        for x in range(bounds.leaf_start[k], bounds.leaf_start[k + 1]):
            node = np.int64(bounds.leaf_node[x])
            weight = np.exp(nodes.logw_N[node] - top) if nodes.row_N[node] >= 0 else 0.0
            if weight == 0.0:
                continue
            if bounds.leaf_depth[x] == 0 and nodes.table_N[node] == table:
                waiting = own_row(
                    s, t, nodes, prob_RV, sums, node, table, last, horizon, weight, illegal, waiting, w
                )  # fmt: skip
            else:
                waiting = inside_tokens(
                    s, t, nodes, bounds, prob_RV, np.int64(x), table, last, horizon, least, weight, waiting, w
                )  # fmt: skip
        while waiting > 0:
            waiting = split(
                s, t, nodes, prob_RV, sums, lead, place, np.int64(bounds.begin_K[k]), last, horizon, waiting - 1, least, words,
                memo, w,
            )  # fmt: skip
        noncanonical = 0.0
        for x in range(bounds.at_start[k], bounds.at_start[k + 1]):
            node = np.int64(bounds.at_node[x])
            r = np.int64(nodes.row_N[node])
            if r < 0:
                continue
            weight, ends, others = np.exp(nodes.logw_N[node] - top), 0.0, 0.0
            for i in end_ids:
                ends += np.float64(prob_RV[r, i])
            for i in other_ids:
                others += np.float64(prob_RV[r, i])
            counts = end_id >= 0 and bounds.end_counts_K[k] == 1
            w.share[0] += weight * ends if counts else 0.0
            w.share[2] += weight * others if counts else weight * (ends + others)
            w.share[3] += weight * (ends + others)
            if counts:
                spill(t, end_id, weight * ends, w)
            if nodes.end_N[node] == place:
                noncanonical += weight * nodes.noncanonical_N[node]
        for i in range(illegal):
            w.is_illegal_C[w.mine[i]] = 0
        if noting:
            keep_notes(np.int64(k), w, out)
        else:
            keep(t, np.int64(k), bounds.gold_K[k], np.int64(out.ids.shape[1]), w, out)
        out.decided[k], out.open[k], out.excluded[k], out.live[k] = w.share[0], w.share[1], w.share[2], w.share[3]
        out.pruned[k], out.noncanonical[k] = np.exp(bounds.pruned_K[k] - top), noncanonical


def _push_types(real):
    return (
        FLAT, TABLES, NODES, BOUNDS, real[:, ::1], sums_type(real), int64[::1], int64[::1], int64, int64, int64, float64,
        boolean, MEMO, WORK, STORED,
    )  # fmt: skip


push = kernel(*_push_types(float32), also=_push_types(float64))(_push)
