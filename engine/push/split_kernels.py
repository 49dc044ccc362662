"""Compiled: what a leaf gives to which student token, and how an open leaf is split by the row behind it.

In: one leaf of one boundary, and the sums of rows (push/row_kernels.py). Out: masses in the scratch of the boundary.
docs/design.md, definitions 7 and 8, lemmas 2, 15, 16 and 21; the slow twins are targets/pushforward.py and beam/frontier.py.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float64, int32, int64, uint8

from engine.compiled.pair_kernels import GROWS, SURE
from engine.kernels.flat import FLAT
from engine.kernels.hash_kernels import node_of
from engine.kernels.jit import kernel
from engine.kernels.merge_kernels import MEMO, decided, illegal_after, pair_is_canonical, prefix_tree
from engine.push.push_arrays import NODES, ROWS, TABLES
from engine.push.scratch_arrays import FOLDS, PARTS, WORK


@kernel(FLAT, TABLES, int64, WORK)
def illegal_of(s, t, token, w):
    """(int64, int64): where in w.illegal the columns lie that may not follow a student token (lemma 2), listed if need be."""
    if token < 0:
        return np.int64(0), np.int64(0)
    if w.illegal_at[token] < 0:
        n = illegal_after(s, token, w.bits, w.ids)
        if w.counts[0] + n > len(w.illegal):
            w.illegal_at[:] = -1
            w.counts[0] = 0
        at = w.counts[0]
        for i in range(n):
            column = t.column_of_V[w.ids[i]]
            if column >= 0:
                w.illegal[w.counts[0]] = column
                w.counts[0] += 1
        w.illegal_at[token], w.illegal_end[token] = at, w.counts[0]
    return w.illegal_at[token], w.illegal_end[token]


@kernel(TABLES, int64, int64, inline=True)
def decode(t, table, cell):
    """(column or -1, open, joins, doubt) of a cell."""
    columns = len(t.columns)
    if cell < columns:
        return cell, False, t.join_SC[t.of_S6[table, 4], cell] == 1, False
    if cell < 2 * columns:
        return cell - columns, True, t.join_SC[t.of_S6[table, 4], cell - columns] == 1, False
    if cell < 2 * columns + 2:
        return np.int64(-1), cell == 2 * columns + 1, False, False
    o = t.odd_start_S[table] + cell - 2 * columns - 2
    return np.int64(t.odd_column[o]), t.odd_open[o] == 1, t.odd_join[o] == 1, t.odd_doubt[o] == 1


@kernel(int64, float64, WORK, inline=True)
def give(column, mass, w):
    """Mass on a column."""
    if w.mass_C[column] == 0.0:
        if mass == 0.0:
            return
        w.touched[w.counts[5]] = column
        w.counts[5] += 1
    w.mass_C[column] += mass


@kernel(TABLES, int64, float64, WORK, inline=True)
def spill(t, token, mass, w):
    """Mass on a student token, by column or in the list of those without one."""
    column = np.int64(t.column_of_V[token])
    if column >= 0:
        give(column, mass, w)
        return
    at = np.int64(w.spill_at[token])
    if at >= 0:
        w.spill[at] += mass
        return
    n = w.counts[1]
    w.spill_id[n], w.spill[n], w.spill_at[token] = token, mass, n
    w.counts[1] += 1


@kernel(FLAT, TABLES, int64, int64, boolean, WORK, inline=True)
def is_barred(s, t, last, token, joined, w):
    """bool: whether a token may not be joined to `last`, the token before the boundary at hand (lemma 2)."""
    if token < 0 or not joined or last < 0:
        return False
    column = t.column_of_V[token]
    return w.is_illegal_C[column] == 1 if column >= 0 else not pair_is_canonical(s, last, token)


@kernel(FLAT, TABLES, int64, int64, boolean, boolean, float64, WORK)
def put(s, t, last, token, joined, opened, mass, w):
    """Give a leaf's mass to the student token that it begins, or to none: excluded (definitions 7 and 8)."""
    if opened:
        w.share[1] += mass
    if token < 0 or is_barred(s, t, last, token, joined, w):
        w.share[2] += mass
        return
    if not opened:
        w.share[0] += mass
    spill(t, token, mass, w)


@kernel(int64, int64, float64, WORK)
def note(node, teacher_id, mass, w):
    """Note an open leaf that no row splits: context and token. Of a boundary with many the heaviest stay."""
    n = w.counts[4]
    if n < 0:
        return
    if n == len(w.note_mass):
        n = np.argmin(w.note_mass)
        if w.note_mass[n] >= mass:
            return
    else:
        w.counts[4] += 1
    w.note_node[n], w.note_token[n], w.note_mass[n] = node, teacher_id, mass


@kernel(FLAT, TABLES, NODES, int64, int64, int64, int64, int64, int64, float64, boolean, boolean, int64, WORK)
def settle_leaf(s, t, nodes, last, horizon, node, teacher_id, kid, token, mass, joins, opened, waiting, w):
    """One leaf, a context and a teacher's token behind it: split later if it is open and the teacher was evaluated there (kid),
    else put. Returns how many leaves wait."""
    if opened and kid >= 0 and waiting < len(w.stack) and nodes.row_N[kid] >= 0 and nodes.end_N[kid] <= horizon:
        w.stack[waiting, 0], w.stack[waiting, 1], w.stack[waiting, 2] = kid, token, joins
        w.stack_mass[waiting] = mass
        return waiting + 1
    if opened and kid < 0:
        note(node, teacher_id, mass, w)
    put(s, t, last, token, joins, opened, mass, w)
    return waiting


@kernel(FLAT, uint8[::1], int64)
def _is_word(s, text, n):
    """bool: whether text[:n] is a token that merges do not make of it (`ignore_merges`)."""
    node = node_of(s.node_key_H, s.node_H, text, np.int64(0), n)
    if node <= 0:
        return False
    rank = np.int64(s.lo_N[node]) - 1
    if rank < 0 or s.start_R[rank + 1] - s.start_R[rank] != n:
        return False
    for i in range(n):
        if s.bytes_B[s.start_R[rank] + i] != text[i]:
            return False
    return s.ids_R[rank] != s.own_N[node]


@kernel(int32[::1], int64, int64, int64)
def holds(columns, begin, end, column):
    """bool: whether the rising list columns[begin:end] holds a column."""
    stop = end
    while begin < end:
        middle = (begin + end) // 2
        if columns[middle] < column:
            begin = middle + 1
        else:
            end = middle
    return begin < stop and columns[begin] == column


@kernel(FLAT, TABLES, int64, int64, int64, boolean, MEMO, WORK)
def ask_string(s, t, table, n, token, sure, memo, w):
    """(int64, bool): first token of the string w.text[:n] with one more token's bytes, -1 for none, and whether it is decided.
    table: of the state at w.text[:n]; sure: the cuts there are."""
    rank = np.int64(t.rank_V[token])
    at = t.start_R[rank]
    size = t.start_R[rank + 1] - at
    u = np.int64(t.suffix_of[at])
    ends = np.int64(t.stop_SU[t.of_S6[table, 2], u])
    if n + size > len(w.text):
        return np.int64(-1), False
    for i in range(size):
        w.text[n + i] = t.bytes_B[at + i]
    prefix_tree(s, w.text, n + ends, w.last, w.parent, w.first)
    v = np.int64(w.first[n + ends])
    if v < 0:
        return v, False
    settled = t.settled_SU[t.of_S6[table, 3], u] == SURE
    # (a pre-token that may also end inside the token's bytes is none for lemma 15 a: "\n\n" before a letter)
    grows = t.settled_SU[t.of_S6[table, 3], u] == GROWS
    known = n + np.int64(t.known_U[u])
    if grows and n + ends >= known and np.int64(w.first[known]) == v:
        settled = decided(s, w.text, known, w.last, w.first, memo)
    return v, settled and sure


@kernel(
    FLAT, TABLES, NODES, ROWS, int64, int64, int64, float64, boolean, int64, float64, boolean, MEMO, int64, WORK
)  # fmt: skip
def split_apart(s, t, nodes, rows, last, horizon, kid, mass, joined, n, least, words, memo, waiting, w):
    """`_split` where what comes next may cut inside the pending part: "\n\n" is one pre-token at the end, two before a letter.

    y is w.text[:n], and w.first its first tokens by length (lemma 4). Where a next token certainly cuts, the pre-token behind the
    boundary ends at the first cut behind it, after c bytes of y: the first token of enc(y[:c]) is decided (lemma 1). A cut at the
    boundary itself begins a pre-token there: then no pair counts. A cut before it changes the tokens there: open, as all
    else, the end of the text (which may cut in its own way) among it, and closed to y's answer.
    """
    r, table = np.int64(nodes.row_N[kid]), np.int64(nodes.table_N[kid])
    v0, total, first = np.int64(w.first[n]), rows.total_R[r], t.odd_start_S[table]
    scale, whole_V, cells = mass / total, t.whole_SV[t.of_S6[table, 0]], 2 * len(t.columns) + 2
    hard, characters, first_of = total - rows.text_R[r], 0, w.kept
    for i in range(n + 1):  # w.first is used again for the strings that are asked
        first_of[i] = w.first[i]
    for i in range(n):
        characters += w.text[i] & 0xC0 != 0x80
    for o in range(t.odd_start_S[table + 1] - first):
        cuts = np.int64(t.odd_column[first + o])
        before = characters < 62 and cuts >> (characters + 1) != 0
        fresh = characters < 62 and cuts >> characters & 1 == 1
        c, back = np.int64(0), characters
        while c < n:  # over the characters behind the boundary
            c += 1
            while c < n and w.text[c] & 0xC0 == 0x80:
                c += 1
            back -= 1
            if back < 62 and cuts >> back & 1 == 1:
                break
        certain = t.odd_open[first + o] == 0 and not before
        told = certain and back < 62 and cuts >> back & 1 == 1
        v = np.int64(first_of[c]) if told else np.int64(-1)
        told = told and v >= 0 and not (words and _is_word(s, w.text, c))
        tied, light = joined and not fresh, rows.odd_RO[r, o]
        if told:
            put(s, t, last, v, tied, np.bool_(False), scale * light, w)
        else:
            hard += light
        for h in range(rows.heavy_R[r]):
            token = np.int64(rows.heavy_RH[r, h])
            if np.int64(whole_V[token]) != cells + o:
                continue
            p, behind = rows.heavy_p_RH[r, h], np.int64(rows.kid_RH[r, h])
            if told:
                put(s, t, last, v, tied, np.bool_(False), scale * p, w)
                continue
            if behind < 0 and scale * p <= least:
                hard += p
                continue
            asked, settled = v0, False
            if certain:  # no cut behind the boundary: its pre-token goes on into the token
                asked, settled = ask_string(s, t, table, n, token, np.bool_(True), memo, w)
            if asked < 0:
                hard += p
            elif settled:
                put(s, t, last, asked, tied, np.bool_(False), scale * p, w)
            else:
                waiting = settle_leaf(
                    s, t, nodes, last, horizon, kid, token, behind, asked, scale * p, tied, np.bool_(True), waiting, w
                )  # fmt: skip
    put(s, t, last, v0, joined, np.bool_(True), scale * hard, w)
    return waiting


@kernel(
    FLAT, TABLES, NODES, ROWS, int64, uint8[::1], int64, int64, int64, int64, int64, float64, boolean, MEMO, WORK, PARTS
)  # fmt: skip
def split(s, t, nodes, rows, k, lead, place, pending, last, horizon, at, least, words, memo, w, parts):
    """Split the waiting leaf `at`, the last one, by the row behind it (lemmas 16 and 21). Returns how many leaves wait then.

    lead: uint8, the student's prefix at the very start of a text, else empty. pending: byte where the pending part begins at the
    boundary. y: lead and the bytes from the boundary to where
    the context `kid` ends, all inside one pre-token. v0, l0: first and last token of enc(y). Of what may follow: behind a
    certain cut, or a token v that is decided and may follow l0, y keeps v0, decided. All else is hard: heavy tokens are asked
    one by one, the rest stays open, closed to v0.
    """
    kid, closing, joins, mass = w.stack[at, 0], w.stack[at, 1], w.stack[at, 2] == 1, w.stack_mass[at]
    waiting = at
    r, table, end = np.int64(nodes.row_N[kid]), np.int64(nodes.table_N[kid]), np.int64(nodes.end_N[kid])
    ahead, shift = len(lead), nodes.shift_N[kid]
    n, total, f = ahead + end - place, rows.total_R[r], parts.used[FOLDS]
    # a cut that has become certain before the boundary, inside what was pending there: other tokens may stand before it
    inside = nodes.begin_N[kid] < place and nodes.begin_N[kid] != pending
    if (
        table < 0
        or inside
        or nodes.begin_N[kid] > place
        or 2 * n > len(w.text) - 2
        or not total > 0.0
        or f == len(parts.fold_k)
    ):
        put(s, t, last, closing, joins, np.bool_(True), mass, w)
        return waiting
    for i in range(ahead):
        w.text[i] = lead[i]
    for i in range(ahead, n):
        w.text[i] = nodes.text[shift + place + i - ahead]
    prefix_tree(s, w.text, n, w.last, w.parent, w.first)
    v0, l0 = np.int64(w.first[n]), np.int64(w.last[n])
    joined = nodes.begin_N[kid] < place  # at the very start nothing comes before: `last` is -1, all may follow it
    if v0 < 0 or l0 < 0 or (words and _is_word(s, w.text, n)):
        put(s, t, last, closing, joins, np.bool_(True), mass, w)
        return waiting
    if t.of_S6[table, 5] == 1:
        if w.text[0] & 0xC0 == 0x80:  # the boundary lies inside a character: such cuts are counted in whole ones
            put(s, t, last, closing, joins, np.bool_(True), mass, w)
            return waiting
        return split_apart(s, t, nodes, rows, last, horizon, kid, mass, joined, n, least, words, memo, waiting, w)
    begin, stop = illegal_of(s, t, l0, w)
    share = rows.share_R5[r]
    # light decided mass that JOINs where the pair with l0 is not canonical is hard, too: it goes to v0 all the same, and
    # is taken out of what is decided when the parts are added up
    sure = share[0] + share[1] + total - rows.text_R[r]
    hard = share[2] + rows.none_R2[r, 0] + rows.none_R2[r, 1]
    first = t.odd_start_S[table]
    for o in range(first, t.odd_start_S[table + 1]):
        light = rows.odd_RO[r, o - first]
        column = np.int64(t.odd_column[o])
        keeps = not t.odd_doubt[o] and (
            not t.odd_join[o] or (not t.odd_open[o] and not holds(w.illegal, begin, stop, column))
        )
        if keeps:
            sure += light
        else:
            hard += light
    scale = mass / total
    w.counts[2] += 1
    for h in range(rows.heavy_R[r]):
        token = np.int64(rows.heavy_RH[r, h])
        p, behind = rows.heavy_p_RH[r, h], np.int64(rows.kid_RH[r, h])
        column, opened, joins_here, doubt = decode(t, table, np.int64(t.whole_SV[t.of_S6[table, 0], token]))
        if not doubt and column >= 0:
            if not joins_here or (not opened and not holds(w.illegal, begin, stop, column)):
                sure += p
                continue
        if column < 0 or (behind < 0 and scale * p <= least):
            hard += p
            continue
        w.counts[3] += 1
        v, settled = v0, False
        if joins_here:
            v, settled = ask_string(s, t, table, n, token, not doubt, memo, w)
            if v < 0:
                hard += p
                continue
        if settled:
            put(s, t, last, v, joined, np.bool_(False), scale * p, w)
        else:
            waiting = settle_leaf(
                s, t, nodes, last, horizon, kid, token, behind, v, scale * p, joined, np.bool_(True), waiting, w
            )  # fmt: skip
    put(s, t, last, v0, joined, np.bool_(False), scale * sure, w)
    parts.fold_k[f], parts.fold_row[f], parts.fold_table[f], parts.fold_token[f] = k, r, table, l0
    parts.fold_scale[f], parts.fold_lost[f] = scale, is_barred(s, t, last, v0, joined, w)
    parts.used[FOLDS] += 1
    put(s, t, last, v0, joined, np.bool_(True), scale * hard, w)
    return waiting
