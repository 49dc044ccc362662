"""Compiled: what a student has pending along a text, and which of its boundaries lie inside the next token of which context.

In: the units of a text and the tables of compiled/automaton.py; the bytes of a passage, where its contexts end, where a
student's boundaries lie, and the trie of the teacher's tokens. Out: pending parts; the leaves of definition 6, as ranges of the
sorted vocabulary. The slow twins are `CutText.pendings` (bpe/pending.py) and `Aligner` (alignment/boundaries.py).
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int32, int64, uint8

from engine.kernels.flat import FLAT
from engine.kernels.hash_kernels import find
from engine.kernels.jit import kernel


@kernel(
    FLAT, uint8[::1], int64[::1], int32[::1], int64[::1], int64[::1], int32[::1], boolean, int64[::1], int32[:, ::1]
)
def find_leaves(t, text, node_I, end_N, place_K, at_start, at_node, fill, start_K, leaf_4L):
    """Leaves of all boundaries. node_I: contexts by rising `end_N`, the given one and those behind it. place_K: rising.

    fill False: counts, start_K[k + 1] is how many leaves boundary k has. fill True: start_K is where each boundary's leaves
    go; each (context, lo, hi, bytes of the token before the boundary), and start_K is moved on. A context that ends at the
    place itself counts where it is one of the boundary's own (at_start, at_node).
    """
    first = np.int64(0)
    for node in node_I:
        end = np.int64(end_N[node])
        while first < len(place_K) and place_K[first] < end:
            first += 1
        inside, at, begun = np.int64(0), end, True
        for k in range(first, len(place_K)):
            while at < place_K[k] and begun:
                inside = np.int64(find(t.node_key_H, t.node_H, inside << 8 | np.int64(text[at])))
                begun = inside >= 0
                at += 1
            if not begun:
                break
            lo, hi = (t.lo_N[inside], t.hi_N[inside]) if inside > 0 else (np.int32(0), np.int32(len(t.ids_R)))
            if lo >= hi:
                break  # no token starts with these bytes and goes on
            if place_K[k] == end:
                own = False
                for x in range(at_start[k], at_start[k + 1]):
                    own |= at_node[x] == node
                if not own:
                    continue
            if fill:
                x = start_K[k]
                leaf_4L[0, x], leaf_4L[1, x], leaf_4L[2, x], leaf_4L[3, x] = node, lo, hi, place_K[k] - end
                start_K[k] += 1
            else:
                start_K[k + 1] += 1


@kernel(int32[::1], int32[:, ::1], int64)
def forget_units(units, forget, at):
    """Make units canonical from `at` (not 0) on, in place (`Splitter.canonical`). forget: (canonical unit before, unit) -> unit,
    -1 for what is not known. Returns -1, or the unit that it stopped at, which the table does not know."""
    for i in range(at, len(units)):
        unit = forget[units[i - 1], units[i]]
        if unit < 0:
            return np.int64(i)
        units[i] = unit
    return np.int64(-1)


@kernel(int32[::1], int32[:, ::1], int32[:, ::1], int64, int32[::1], int32[::1])
def walk_units(units, next_SC, size_SC, at, state, begin):
    """Pending parts behind each unit from `at` on: state[i], begin[i] are those before unit i. next_SC: (pending part, unit) ->
    pending part, -1 for what is not known; size_SC: its units, -1 where it only grew, -2 - c where it begins c units behind the
    one before. Returns -1, or the unit that it stopped at, which the table does not know."""
    for i in range(at, len(units)):
        s, u = np.int64(state[i]), np.int64(units[i])
        if s >= next_SC.shape[0] or u >= next_SC.shape[1] or next_SC[s, u] < 0:
            return np.int64(i)
        state[i + 1] = next_SC[s, u]
        size = size_SC[s, u]
        begin[i + 1] = i + 1 - size if size >= 0 else begin[i] if size == -1 else begin[i] - 2 - size
    return np.int64(-1)


@kernel(int64[::1], int32[::1], uint8[::1], int64[::1], int64[::1], boolean[::1])
def begin_words(keys, nodes, text, from_I, to_I, found_I):
    """Whether text[from_I[i]:to_I[i]], not empty, is the beginning of a word, or one. By the trie of the words."""
    for i in range(len(from_I)):
        node = np.int64(0)
        for p in range(from_I[i], to_I[i]):
            node = np.int64(find(keys, nodes, node << 8 | np.int64(text[p])))
            if node < 0:
                break
        found_I[i] = node > 0


@kernel(int64[::1], int32[::1], boolean[::1], uint8[::1], int32[::1], int32[::1])
def reach_words(keys, nodes, is_word_N, text, reach, shortest):
    """For each byte of a text: reach, the length of the longest beginning of a word that begins there; shortest, that of the
    shortest word, 0 for none. is_word_N: of the nodes of the trie, whether a word ends there."""
    for begin in range(len(text)):
        node, p = np.int64(0), begin
        shortest[begin] = 0
        while p < len(text):
            node = np.int64(find(keys, nodes, node << 8 | np.int64(text[p])))
            if node < 0:
                break
            p += 1
            if is_word_N[node] and shortest[begin] == 0:
                shortest[begin] = p - begin
        reach[begin] = p - begin


@kernel(
    uint8[::1], int32[::1], int32[::1], int64, int64[::1], int64[::1], boolean, int64[::1], int64[::1], boolean[::1]
)
def words_within(text, reach, shortest, longest, from_I, to_I, fill, start_I, byte_J, holds_I):
    """Which beginnings of words end at to_I[i] and begin in what is pending there, text[from_I[i]:to_I[i]], at most `longest`
    bytes before; only where characters begin. reach, shortest: of `reach_words`.

    fill False: counts, start_I[i + 1] is how many. fill True: their bytes, byte_J[start_I[i]:start_I[i + 1]], rising. holds_I:
    whether a whole word lies within `longest` bytes of either end of what is pending.
    """
    for i in range(len(from_I)):
        begin, end = from_I[i], to_I[i]
        first = max(begin, end - longest)
        while first < end and text[first] & 0xC0 == 0x80:
            first += 1  # units are whole characters
        count, holds = np.int64(0), False
        for p in range(first, end):
            holds |= shortest[p] > 0 and p + shortest[p] <= end
            if p + reach[p] >= end and text[p] & 0xC0 != 0x80:
                if fill:
                    byte_J[start_I[i] + count] = p
                count += 1
        if first > begin:
            for p in range(begin, begin + longest):
                holds |= shortest[p] > 0 and p + shortest[p] <= begin + longest
        holds_I[i] = holds
        if not fill:
            start_I[i + 1] = count
