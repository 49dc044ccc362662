"""Compiled: hash tables of integers in two arrays, and the tree of all beginnings of sorted byte strings.

In: arrays. Out: arrays. A hash table is `keys` int64 [size] (-1: free) and `values` int32 [size], size a power of two that is
at most half full; a key is looked for from its own slot on. A *trie* has a node for every distinct beginning of the
strings; node 0 is the empty one. The child of a node by a byte is the value of key `node << 8 | byte`.
"""

from __future__ import annotations

import numpy as np
from numba import int32, int64, uint8

from engine.kernels.jit import kernel

EMPTY = -1


@kernel(int64, int64)
def slot_of(key, mask):
    """Where the search for a key begins: the middle bits of a product with 2^64 divided by the golden ratio."""
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed >> np.uint64(24)) & np.uint64(mask))


@kernel(int64[::1], int32[::1], int64)
def find(keys, values, key):
    """int32: the value of a key, -1 when it is not in the table."""
    mask = len(keys) - 1
    at = slot_of(key, mask)
    while True:
        if keys[at] == key:
            return values[at]
        if keys[at] == EMPTY:
            return np.int32(-1)
        at = (at + 1) & mask


@kernel(int64[::1], int32[::1], int64, int32)
def put(keys, values, key, value):
    """Set the value of a key. The caller sees to it that the table does not fill up."""
    mask = len(keys) - 1
    at = slot_of(key, mask)
    while keys[at] != EMPTY and keys[at] != key:
        at = (at + 1) & mask
    keys[at] = key
    values[at] = value


@kernel(int64[::1], int32[::1], int64[::1], int32[::1])
def put_all(keys, values, new_keys, new_values):
    """`put` for each pair; of equal keys the last one counts."""
    for i in range(len(new_keys)):
        put(keys, values, new_keys[i], new_values[i])


@kernel(uint8[::1], int64[::1], int64[::1], int32[::1], allocates=True)
def build_trie(text, start, keys, values):
    """The trie of the n sorted strings text[start[i]:start[i+1]], into an empty hash table.

    Returns (nodes, lo_N, hi_N, end_n): how many nodes; per node the range of strings that begin with it and are longer (so
    that its own copies, which come first, are left out); per string the node that it ends at.
    """
    n = len(start) - 1
    most = len(text) + 1
    lo, hi, end = np.zeros(most, np.int32), np.zeros(most, np.int32), np.zeros(n, np.int32)
    hi[0] = n
    nodes = 1
    for i in range(n):
        node = np.int64(0)
        for p in range(start[i], start[i + 1]):
            key = (node << 8) | np.int64(text[p])
            child = np.int64(find(keys, values, key))
            if child < 0:
                child = np.int64(nodes)
                put(keys, values, key, np.int32(nodes))
                lo[nodes] = i
                nodes += 1
            node = child
            hi[node] = i + 1
        end[i] = node
        lo[node] = i + 1  # sorted: a string comes before all that go on from it, and after its own copies
    return nodes, lo[:nodes].copy(), hi[:nodes].copy(), end


@kernel(int64[::1], int32[::1], uint8[::1], int64, int64)
def node_of(keys, values, text, begin, end):
    """int64: the trie's node of text[begin:end], -1 when no string begins with it."""
    node = np.int64(0)
    for p in range(begin, end):
        node = np.int64(find(keys, values, (node << 8) | np.int64(text[p])))
        if node < 0:
            return np.int64(-1)
    return node


@kernel(uint8[::1], int64[::1], int32[::1], int32[::1], int64[::1], int32[::1], int64, allocates=True)
def likely_tokens(text, start, birth_n, ids_n, keys, values, nodes):
    """int32 [nodes]: of the strings that go on beyond a node the id of the one with the least birth, -1 when all are
    2^31-1."""
    least = np.full(nodes, np.iinfo(np.int32).max, np.int32)
    likely = np.full(nodes, -1, np.int32)
    for i in range(len(start) - 1):
        node = np.int64(0)
        for p in range(start[i], start[i + 1]):
            if birth_n[i] < least[node]:
                least[node], likely[node] = birth_n[i], ids_n[i]
            node = np.int64(find(keys, values, (node << 8) | np.int64(text[p])))
    return likely
