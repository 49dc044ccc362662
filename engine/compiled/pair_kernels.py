"""Compiled: what a student makes of every string that a teacher token can bring behind a boundary.

In: the strings (all distinct ends of teacher tokens), the student as a `FlatTokenizer`, and how its pre-tokenizer cuts them.
Out: per string the student token that it begins, what it does at the boundary, and whether what follows can change that. The
slow twin is engine/alignment (`TokenRange`, `Openness`, `RuleBook.make`), compared in tests.

Strings: text[start[r]:start[r+1]]. A place i of string r is entry start[r] + r + i of arrays `[.. places]`. NONE, CUT, JOIN =
0, 1, 2.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int8, int32, int64, uint8

from engine.kernels.cut_kernels import PROGRAM, WORK, cut
from engine.kernels.flat import FLAT
from engine.kernels.hash_kernels import find, node_of, put
from engine.kernels.jit import kernel
from engine.kernels.merge_kernels import MEMO, may_pass, pair_is_canonical, valid_utf8_end

NONE, CUT, JOIN = 0, 1, 2
SURE, GROWS = 1, 2
_MOST_BYTES = 8192  # of one string; a tokenizer with longer tokens is refused where the arrays are made


@kernel(uint8[::1], int64[::1], int32[::1])
def known_bytes(text, start, known):
    """Fills known: the bytes of each string without an incomplete character at its end."""
    for r in range(len(start) - 1):
        known[r] = valid_utf8_end(text, start[r], start[r + 1]) - start[r]


@kernel(
    FLAT, uint8[::1], int64[::1], int32[::1], int32[::1], int64, int64, int32[::1], int32[::1], MEMO, allocates=True
)
def answer_strings(t, text, start, whole, known, begin, end, firsts, settled, memo):
    """The sorted strings begin .. end inside one pre-token. Fills firsts [places], the first token of every beginning (-1:
    none), and settled: the first token of the known bytes where it is decided whatever follows them (lemma 15 a), else -1.

    This is `prefix_tree` and `decided` of each string, but what a string shares with the one before it is not done again: for
    each place i it keeps the *walks* that are alive there, as (place j where a token may begin, trie node of the bytes from j
    to i). A walk that finds a token ends an encoding (lemma 4); one that can go on at the last known place may become a token
    that crosses it. whole: bytes without an incomplete character; known: of these, the bytes that no continuation changes.
    """
    last, first = np.empty(_MOST_BYTES + 1, np.int32), np.empty(_MOST_BYTES + 1, np.int32)
    walk_end = np.zeros(_MOST_BYTES + 1, np.int64)  # walks of place i: walk_end[i - 1] .. walk_end[i]
    walk_j, walk_node = np.empty(1 << 12, np.int64), np.empty(1 << 12, np.int64)
    last[0], first[0] = -1, -1
    for r in range(begin, end):
        a = start[r]
        n = start[r + 1] - a
        i = np.int64(0)
        if r > begin:  # how much is shared, in whole characters
            b = start[r - 1]
            most = min(n, a - b, np.int64(whole[r]), np.int64(whole[r - 1])) if t.by_characters else min(n, a - b)
            while i < most and text[a + i] == text[b + i]:
                i += 1
            while t.by_characters and i > 0 and i < n and text[a + i] & 0xC0 == 0x80:
                i -= 1
        while i < n:
            size, symbol = np.int64(1), True
            if t.by_characters:
                if i >= whole[r]:
                    _spell_on(t, text, a, i, n, last, first, walk_end)
                    break
                lead = text[a + i]
                size = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
                node = node_of(t.node_key_H, t.node_H, text, a + i, a + i + size)
                symbol = node > 0 and t.own_N[node] >= 0 and not (size == 1 and t.own_N[node] == t.byte_token[lead])
                _spell_on(t, text, a, i, i + size, last, first, walk_end)
            to = i + size
            if symbol:
                last[to], first[to] = -1, -1
            old, stop = walk_end[i - 1] if i > 0 else np.int64(0), walk_end[i]
            if 2 * stop - old + 1 > len(walk_j):
                walk_j = np.concatenate((walk_j, np.empty_like(walk_j)))
                walk_node = np.concatenate((walk_node, np.empty_like(walk_node)))
            count = stop
            for w in range(old, stop + 1):
                j, node = i, np.int64(0)
                if w < stop:
                    j, node = walk_j[w], walk_node[w]
                elif i > 0 and last[i] < 0:
                    continue  # no encoding ends here
                for p in range(a + i, a + to):
                    node = np.int64(find(t.node_key_H, t.node_H, (node << 8) | np.int64(text[p])))
                    if node < 0:
                        break
                if node < 0:
                    continue
                walk_j[count], walk_node[count] = j, node
                count += 1
                token = np.int64(t.own_N[node])
                if not symbol or token < 0 or last[to] >= 0:
                    continue
                if j == 0 or pair_is_canonical(t, np.int64(last[j]), token):
                    last[to] = token
                    first[to] = token if j == 0 else first[j]
            walk_end[to] = count
            i = to
        for i in range(n + 1):
            firsts[a + r + i] = first[i]
        k = np.int64(known[r])
        settled[r] = -1
        if k > 0 and last[k] >= 0:
            passes = False
            for w in range(walk_end[k - 1], walk_end[k]):
                j, node = walk_j[w], walk_node[w]
                if j == 0:
                    passes = t.begun_N[node]
                elif t.made_hi_N[node] > t.made_lo_N[node] and first[j] != first[k]:
                    passes = may_pass(t, np.int64(last[j]), node, memo)
                if passes:
                    break
            if not passes:
                settled[r] = first[k]


@kernel(FLAT, uint8[::1], int64, int64, int64, int32[::1], int32[::1], int64[::1])
def _spell_on(t, text, a, begin, end, last, first, walk_end):
    """Byte tokens for the places behind `begin` up to `end` of the string at a; no walk of a token goes through them."""
    for i in range(begin, end):
        token = t.byte_token[text[a + i]]
        last[i + 1] = token
        first[i + 1] = -1 if token < 0 else token if i == 0 else first[i]
        walk_end[i + 1] = walk_end[begin]


# ==== pre-tokenizers over characters: strings as paths in a trie of class strings


@kernel(
    uint8[::1],
    int64[::1],
    int32[::1],
    int64,
    int32[::1],
    int32[:, ::1],
    int32,
    int64[::1],
    int32[::1],
    int32[::1],
    int32[::1],
    int32[::1],
    int64[::1],
)
def class_nodes(text, start, known, begin, class_of, forget, broken, keys, nodes, parent, unit_of, node_U, state):
    """Fills node_U: the class string of each string from `begin` on, as a node of the trie (keys, nodes; parent, unit_of).

    class_of: class of each code point. forget [K, K]: `Splitter._forget` of (class before, class), -1 where it was not asked
    yet: then returns that string's number, with the pair in state[1:3], to be called again from there. broken: the class of
    an incomplete character. state[0]: nodes so far. Returns the number of strings when all are done, -1 when the table is
    full.
    """
    for r in range(begin, len(start) - 1):
        i, stop, end = start[r], start[r] + known[r], start[r + 1]
        node, before = np.int64(0), np.int64(-1)
        while i < end:
            if i < stop:
                b = np.int64(text[i])
                if b < 0x80:
                    code, size = b, 1
                elif b < 0xE0:
                    code, size = (b & 0x1F) << 6 | np.int64(text[i + 1]) & 0x3F, 2
                elif b < 0xF0:
                    code = (b & 0x0F) << 12 | (np.int64(text[i + 1]) & 0x3F) << 6 | np.int64(text[i + 2]) & 0x3F
                    size = 3
                else:
                    code = (b & 0x07) << 18 | (np.int64(text[i + 1]) & 0x3F) << 12
                    code |= (np.int64(text[i + 2]) & 0x3F) << 6 | np.int64(text[i + 3]) & 0x3F
                    size = 4
                unit = np.int64(class_of[code])
                i += size
            else:
                unit = np.int64(broken)
                i = end
            if before >= 0:
                kept = np.int64(forget[before, unit])
                if kept < 0:
                    state[1], state[2] = before, unit
                    return r
                unit = kept
            before = unit
            key = node << 20 | unit
            child = np.int64(find(keys, nodes, key))
            if child < 0:
                child = state[0]
                if child >= len(parent):
                    return -1
                state[0] += 1
                put(keys, nodes, key, np.int32(child))
                parent[child], unit_of[child] = node, unit
            node = child
        node_U[r] = node
    return len(start) - 1


@kernel(
    PROGRAM, int32[::1], int32[::1], int32[::1], boolean[::1], int64, int32[::1], int32[::1], boolean[::1], boolean[::1],
    int32[::1], int64[::1],
    allocates=True,
)  # fmt: skip
def locate_classes(program, left, parent_N, unit_N, asked_N, begin, depth_N, stop_N, seam_N, sure_N, inside_N, state):
    """`Splitter.locate` of every class string of a trie behind the classes `left`, from node `begin` on. A string that begins
    with one whose cuts are certain has the same (lemma 5), and is not looked at.

    unit_N: the last unit of each class string. asked_N: nodes that are wanted; of others only whether their cuts are certain.
    depth_N: units of each. Fills stop_N (units behind the boundary), seam_N, sure_N, and inside_N: how many cuts lie inside
    `left`. Returns the number of nodes; or a node where program.forget lacks an answer, the pair in state[0:2].
    """
    n, deepest = len(left), 0
    for node in range(len(parent_N)):
        deepest = max(deepest, depth_N[node])
    both, out = np.empty(n + deepest + 1, np.int32), np.empty(n + deepest + 1, np.int32)
    both[:n] = left
    places, flags = np.empty((4, n + deepest + 2), np.int64), np.empty((4, n + deepest + 2), np.bool_)
    work = np.empty(WORK, np.int64)
    for node in range(max(begin, 1), len(parent_N)):
        parent = parent_N[node]
        if sure_N[parent]:
            stop_N[node], seam_N[node], sure_N[node], inside_N[node] = (
                stop_N[parent],
                seam_N[parent],
                True,
                inside_N[parent],
            )
            continue
        m = n + np.int64(depth_N[node])
        up, p = node, m
        while p > n:
            p -= 1
            both[p] = unit_N[up]
            up = parent_N[up]
        p = n
        while 0 < p < m:  # only the first units behind the boundary can still change
            unit = program.forget[both[p - 1], both[p]]
            if unit < 0:
                state[0], state[1] = both[p - 1], both[p]
                return node
            if unit == both[p]:
                break
            both[p] = unit
            p += 1
        known = m - 1 if both[m - 1] == program.broken else m
        count = cut(program, both, known, m < 0, out, places, flags, work)
        sure = count > 0 and out[count - 1] > n
        if not sure:
            if not asked_N[node]:
                continue
            count = cut(program, both, m, m >= 0, out, places, flags, work)
        stop, seam, inside = n, n == 0, 0
        for e in range(count):
            if out[e] < n:
                inside += 1
            elif out[e] == n:
                seam = True
            else:
                stop = np.int64(out[e])
                break
        stop_N[node], seam_N[node], sure_N[node], inside_N[node] = stop - n, seam, sure, inside
    return len(parent_N)


@kernel(uint8[::1], int64, int64, int64, int64)
def bytes_of_units(text, begin, end, known, units):
    """int64: how many bytes the first `units` characters of text[begin:end] are; an incomplete one at the end is one."""
    i, stop = begin, begin + known
    for _ in range(units):
        if i >= stop:
            return end - begin
        b = text[i]
        i += 1 if b < 0x80 else 2 if b < 0xE0 else 3 if b < 0xF0 else 4
    return i - begin


@kernel(
    uint8[::1], int64[::1], int32[::1], int32[::1], int32[::1], int32[::1], boolean[::1], int32[::1], int8[::1], int32[::1],
    int32[::1], boolean[::1], int32[::1], boolean[::1], int32[::1], int32[::1], int32[::1], int32[::1], int32[::1],
    int32[::1], boolean[::1], int32[::1], uint8[::1], boolean[::1],
)  # fmt: skip
def settle_characters(
    text, start, whole, known, node_U, known_node_U, composing, settled, kind_N, stop_N, variant_N, sure_N, ways_N, goes_on_N,
    other_start_N, other, firsts, firsts_whole, first_U, action_U, open_U, stop_U, sure_U, agrees_U,
):  # fmt: skip
    """Definition 7 and lemma 15 (b) for every string in one state of the student, from how the state cuts its class string.

    whole, known: bytes without an incomplete character, and of these those that nothing changes. Per class string (node) as of
    `ClassCuts`: what a string does as if the text ended there is that of its own, what may follow that of its known part.
    firsts_whole: as firsts, where the piece is a whole pre-token. Fills first_U (-1: none), action_U, open_U, stop_U (bytes),
    sure_U (SURE: the end of that pre-token is certain; GROWS: it may end later but not sooner; else 0), agrees_U: nothing changes
    the cuts before the boundary, whether one lies there, and what stands before it.
    """
    for r in range(len(start) - 1):
        node, part, a, end = node_U[r], known_node_U[r], start[r], start[r + 1]
        kind, stop = kind_N[node], stop_N[node]
        place = bytes_of_units(text, a, end, np.int64(whole[r]), np.int64(stop))
        table = firsts_whole if kind == CUT else firsts
        first = table[a + r + place]
        sure = sure_N[part] and place <= known[r] and not composing[r]
        agrees = not composing[r] and (sure_N[part] or ways_N[part] == variant_N[node])
        choose = not sure and agrees and first >= 0
        grows = agrees
        if choose and (place >= known[r] or goes_on_N[part]):
            choose = settled[r] == first
        for o in range(other_start_N[part], other_start_N[part + 1]):
            if other[o] != stop:
                grows = False
                at = bytes_of_units(text, a, end, np.int64(whole[r]), np.int64(other[o]))
                if table[a + r + at] != first:
                    choose = False
        if kind == NONE:
            first = np.int32(-1)
        first_U[r] = first
        action_U[r] = kind if first >= 0 else NONE
        open_U[r] = not (sure or choose)
        stop_U[r] = place
        sure_U[r] = SURE if sure else GROWS if grows else 0
        agrees_U[r] = agrees
