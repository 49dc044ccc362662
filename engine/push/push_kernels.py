"""Compiled: rows of teacher probabilities, as far as the host keeps them -> the parts that a student's boundaries are made of.

In: `Rows` of a window of contexts (push/row_kernels.py), the boundaries of one passage as arrays (compiled/walk.py) and the
tables of their states. Out: `Parts`, few numbers a boundary: which rows' sums belong to it, what single tokens and split leaves
add; and the masses of definition 8, but for what only the sums by columns tell (push/sum_kernels.py puts that right). So
probabilities and sums may stay on a device. The slow twin is targets/pushforward.py with the splits of beam/frontier.py.

A context's row meets a boundary in three ways. *Its own boundary*, where the context ends: all tokens begin there, and the
boundary takes the row's sums. *A later boundary*, inside some of its tokens: these are one range of the sorted vocabulary,
and are taken one by one. *An earlier boundary*, of which the context is behind an open leaf: the row splits the leaf
(push/split_kernels.py).
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float64, int64

from engine.kernels.flat import FLAT
from engine.kernels.jit import kernel
from engine.kernels.merge_kernels import MEMO
from engine.push.push_arrays import BOUNDS, NODES, ROWS, STORED, TABLES
from engine.push.scratch_arrays import ADDS, FOLDS, OWN, PARTS, WORK
from engine.push.split_kernels import decode, give, illegal_of, note, put, settle_leaf, spill, split
from engine.push.top_k_kernels import keep_notes


@kernel(FLAT, TABLES, NODES, ROWS, int64, int64, int64, int64, int64, float64, int64, WORK, PARTS)
def own_row(s, t, nodes, rows, k, node, table, last, horizon, weight, waiting, w, parts):
    """A context that ends at boundary k: its light tokens by their sums, its heavy ones one by one. Returns how many leaves
    wait."""
    r, columns, n = np.int64(nodes.row_N[node]), len(t.columns), parts.used[OWN]
    parts.own_k[n], parts.own_row[n], parts.own_table[n], parts.own_weight[n] = k, r, table, weight
    parts.used[OWN] += 1
    join_C, share = t.join_SC[t.of_S6[table, 4]], rows.share_R5[r]
    w.share[0] += weight * share[4]
    w.share[1] += weight * share[3]
    w.share[2] += weight * (rows.none_R2[r, 0] + rows.none_R2[r, 1])
    first = t.odd_start_S[table]
    for o in range(first, t.odd_start_S[table + 1]):
        light = weight * rows.odd_RO[r, o - first]
        if light > 0.0:
            opened = t.odd_open[o] == 1
            if opened:  # share[3] has it
                w.share[1] -= light
            put(s, t, last, np.int64(t.columns[t.odd_column[o]]), t.odd_join[o] == 1, opened, light, w)
    whole_V = t.whole_SV[t.of_S6[table, 0]]
    decided_mass, open_mass, excluded = 0.0, 0.0, 0.0
    for h in range(rows.heavy_R[r]):
        i = np.int64(rows.heavy_RH[r, h])
        cell, p = np.int64(whole_V[i]), weight * rows.heavy_p_RH[r, h]
        if cell < columns or (cell < 2 * columns and rows.kid_RH[r, h] < 0):  # nearly all: no call for these
            c = cell if cell < columns else cell - columns
            if cell >= columns:
                open_mass += p
                note(node, i, p, w)
            if join_C[c] and w.is_illegal_C[c]:
                excluded += p
            else:
                give(c, p, w)
                if cell < columns:
                    decided_mass += p
            continue
        column, opened, joins, _ = decode(t, table, cell)
        token = np.int64(t.columns[column]) if column >= 0 else np.int64(-1)
        kid = np.int64(rows.kid_RH[r, h])
        waiting = settle_leaf(s, t, nodes, last, horizon, node, i, kid, token, p, joins, opened, waiting, w)
    w.share[0] += decided_mass
    w.share[1] += open_mass
    w.share[2] += excluded
    w.share[3] += weight * rows.text_R[r]
    return waiting


@kernel(
    FLAT, TABLES, NODES, BOUNDS, float64[::1], int64[::1], int64, int64, int64, int64, float64, float64, int64, WORK
)  # fmt: skip
def inside_tokens(s, t, nodes, bounds, inside_p, inside_X, x, table, last, horizon, least, weight, waiting, w):
    """Leaf x, a context before the boundary: the tokens that reach past it, one by one. Returns how many leaves wait."""
    node, depth, lo = np.int64(bounds.leaf_node[x]), np.int64(bounds.leaf_depth[x]), bounds.leaf_lo[x]
    columns, at = len(t.columns), inside_X[x]
    join_C, cell_U = t.join_SC[t.of_S6[table, 4]], t.cell_SU[t.of_S6[table, 1]]
    kids, kids_end = nodes.kid_start[node], nodes.kid_start[node + 1]
    decided_mass, open_mass, excluded, taken = 0.0, 0.0, 0.0, 0.0
    for i in range(lo, bounds.leaf_hi[x]):
        teacher_id = t.ids_R[i]
        p = weight * inside_p[at + i - lo]
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
                give(c, p, w)
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


@kernel(TABLES, int64, WORK, PARTS)
def hand_over(t, k, w, parts):
    """The masses of a boundary in the scratch as `parts`; leaves the scratch at 0. False: no room for them."""
    count, spilt = w.counts[5], w.counts[1]
    n, columns = parts.used[ADDS], len(t.columns)
    room = n + count + spilt <= len(parts.add_k)
    for i in range(count):
        column = w.touched[i]
        if room:
            parts.add_k[n], parts.add_at[n], parts.add_mass[n] = k, column, w.mass_C[column]
            n += 1
        w.mass_C[column] = 0.0
    for i in range(spilt):
        token = w.spill_id[i]
        if room:
            parts.add_k[n], parts.add_at[n], parts.add_mass[n] = k, columns + token, w.spill[i]
            n += 1
        w.spill_at[token] = -1
    parts.used[ADDS] = n
    w.counts[5], w.counts[1] = 0, 0
    return room


@kernel(
    FLAT, TABLES, NODES, BOUNDS, ROWS, float64[::1], int64[::1], int64, int64, int64, float64, boolean, MEMO, WORK, PARTS,
    STORED,
)  # fmt: skip
def push(s, t, nodes, bounds, rows, inside_p, inside_X, end_id, begin, end, least, words, memo, w, parts, out):
    """Boundaries begin .. end of a passage, as far as there is room in `parts`, which is emptied first; those with table -1 are
    left alone. Returns the first that is not done.

    inside_p: float64, for leaf x from inside_X[x] on the probabilities of its range. end_id: the student's end, -1 for none.
    least: tokens of a smaller share are not asked one by one. words: the student has words that only `ignore_merges` makes.
    """
    noting = out.note_mass.shape[0] > 0
    parts.used[:] = 0
    for k in range(begin, end):
        w.counts[4] = 0 if noting else -1
        table, last, place = np.int64(bounds.table_K[k]), np.int64(bounds.last_K[k]), np.int64(bounds.place_K[k])
        top = heaviest(nodes, bounds, k)
        if table < 0 or top == -np.inf:
            continue
        own_used, folds_used = parts.used[OWN], parts.used[FOLDS]
        if own_used + bounds.leaf_start[k + 1] - bounds.leaf_start[k] > len(parts.own_k) and own_used > 0:
            return k
        if 2 * folds_used > len(parts.fold_k):
            return k
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
            if inside_X[x] < 0:
                waiting = own_row(
                    s, t, nodes, rows, np.int64(k), node, table, last, horizon, weight, waiting, w, parts
                )  # fmt: skip
            else:
                waiting = inside_tokens(
                    s, t, nodes, bounds, inside_p, inside_X, np.int64(x), table, last, horizon, least, weight, waiting, w
                )  # fmt: skip
        while waiting > 0:
            waiting = split(
                s, t, nodes, rows, np.int64(k), lead, place, np.int64(bounds.begin_K[k]), last, horizon, waiting - 1, least,
                words, memo, w, parts,
            )  # fmt: skip
        noncanonical = 0.0
        for x in range(bounds.at_start[k], bounds.at_start[k + 1]):
            node = np.int64(bounds.at_node[x])
            r = np.int64(nodes.row_N[node])
            if r < 0:
                continue
            weight, ends, others = np.exp(nodes.logw_N[node] - top), rows.ends_R[r], rows.others_R[r]
            counts = end_id >= 0 and bounds.end_counts_K[k] == 1
            w.share[0] += weight * ends if counts else 0.0
            w.share[2] += weight * others if counts else weight * (ends + others)
            w.share[3] += weight * (ends + others)
            if counts and ends > 0.0:
                spill(t, end_id, weight * ends, w)
            if nodes.end_N[node] == place:
                noncanonical += weight * nodes.noncanonical_N[node]
        for i in range(illegal):
            w.is_illegal_C[w.mine[i]] = 0
        if noting:
            keep_notes(np.int64(k), w, out)
        if not hand_over(t, np.int64(k), w, parts):
            parts.used[OWN], parts.used[FOLDS] = own_used, folds_used
            return k
        if noting:
            parts.used[:] = 0  # nobody asks for the masses
        out.decided[k], out.open[k], out.excluded[k], out.live[k] = w.share[0], w.share[1], w.share[2], w.share[3]
        out.pruned[k], out.noncanonical[k] = np.exp(bounds.pruned_K[k] - top), noncanonical
    return end
