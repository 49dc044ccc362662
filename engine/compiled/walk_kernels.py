"""Compiled: which of a passage's boundaries lie inside the next token of which context.

In: the bytes of a passage, where its contexts end, where a student's boundaries lie, and the trie of the teacher's tokens.
Out: the leaves of definition 6, as ranges of the sorted vocabulary. The slow twin is `Aligner` (alignment/boundaries.py).
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int32, int64, uint8

from engine.bpe.flat import FLAT
from engine.bpe.hash_kernels import find
from engine.bpe.jit import kernel


@kernel(
    FLAT, uint8[::1], int64[::1], int32[::1], int64[::1], int64[::1], int32[::1], boolean, int64[::1], int32[:, ::1]
)
def find_leaves(t, text, node_I, end_N, place_K, at_start, at_node, fill, start_K, leaf_L4):
    """Leaves of all boundaries. node_I: contexts by rising `end_N`, the given one and those behind it. place_K: rising.

    fill False: counts, start_K[k + 1] is how many leaves boundary k has. fill True: start_K is where each boundary's leaves
    go; rows (context, lo, hi, bytes of the token before the boundary), and start_K is moved on. A context that ends at the
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
                leaf_L4[x, 0], leaf_L4[x, 1], leaf_L4[x, 2], leaf_L4[x, 3] = node, lo, hi, place_K[k] - end
                start_K[k] += 1
            else:
                start_K[k + 1] += 1
