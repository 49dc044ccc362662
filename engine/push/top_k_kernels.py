"""Compiled: the masses of one boundary, in the scratch -> what is stored of them: the heaviest, their tail, the gold token's.

In: `Work` with the mass of every student token that got some (push/sum_kernels.py). Out: one row of `Stored`. The heaviest are
found in one pass over the columns with a heap of k; the tail is summed over what is left, so that stored + tail = valid can fail.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64

from engine.kernels.jit import kernel
from engine.push.push_arrays import STORED, TABLES
from engine.push.scratch_arrays import WORK


@kernel(float64[::1], int64[::1], int64, float64, int64)
def _sink(value, token, size, x, t):
    """Put (x, t) in the place of the first entry of a heap whose first entry is the lightest (of equal ones the higher id)."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            value[other] < value[child] or (value[other] == value[child] and token[other] > token[child])
        ):
            child = other
        if x < value[child] or (x == value[child] and t > token[child]):
            break
        value[at], token[at] = value[child], token[child]
        at = child
    value[at], token[at] = x, t


@kernel(float64[::1], int64[::1], int64, float64, int64)
def _rise(value, token, at, x, t):
    """Put (x, t) behind the `at` entries of such a heap."""
    while at > 0:
        above = (at - 1) // 2
        if value[above] < x or (value[above] == x and token[above] > t):
            break
        value[at], token[at] = value[above], token[above]
        at = above
    value[at], token[at] = x, t


@kernel(float64[::1])
def _sum_of(values):
    """float64: the sum, in four parts: one addition need not wait for the one before."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    whole = len(values) // 4 * 4
    for i in range(0, whole, 4):
        a += values[i]
        b += values[i + 1]
        c += values[i + 2]
        d += values[i + 3]
    for i in range(whole, len(values)):
        a += values[i]
    return (a + b) + (c + d)


@kernel(TABLES, int64, int64, int64, WORK, STORED)
def keep(t, k, gold, top_k, w, out):
    """Take the masses of a boundary out of the scratch: the top_k heaviest (ties: lower id first), the sum of all others, the
    gold token's. Leaves the scratch at 0."""
    mass_C, columns, spilt = w.mass_C, t.columns, w.counts[1]
    value, token = w.heap_value, w.heap_id
    size, valid, tail = np.int64(0), _sum_of(mass_C), 0.0
    column = t.column_of_V[gold] if gold >= 0 else np.int32(-1)
    if column >= 0:
        out.gold[k] = mass_C[column]
    for i in range(spilt):
        valid += w.spill[i]
        if w.spill_id[i] == gold:
            out.gold[k] = w.spill[i]
    out.valid[k] = valid
    w.counts[1] = 0
    if out.dense_KV.shape[0] > 0:
        for c in range(len(columns)):
            out.dense_KV[k, columns[c]] = mass_C[c]
        for i in range(spilt):
            out.dense_KV[k, w.spill_id[i]] = w.spill[i]
        mass_C[:] = 0.0
        return
    least = 0.0  # of the heap, once it is full; columns rise by id, so of equal masses the first stays
    for c in range(len(columns)):
        x = mass_C[c]
        if x > least:
            if size < top_k:
                _rise(value, token, size, x, np.int64(columns[c]))
                size += 1
            else:
                _sink(value, token, size, x, np.int64(columns[c]))
            if size == top_k:
                least = value[0]
    for i in range(spilt):
        x, spilt_id = w.spill[i], w.spill_id[i]
        if x > 0.0 and size < top_k:
            _rise(value, token, size, x, spilt_id)
            size += 1
        elif x > 0.0 and (x > value[0] or (x == value[0] and spilt_id < token[0])):
            _sink(value, token, size, x, spilt_id)
    # the tail: summed over what is left, so that stored + tail = valid can fail
    for i in range(size):
        column = t.column_of_V[token[i]]
        if column >= 0:
            mass_C[column] = 0.0
        for j in range(spilt if column < 0 else 0):
            if w.spill_id[j] == token[i]:
                w.spill[j] = 0.0
    tail = _sum_of(mass_C)
    for i in range(spilt):
        tail += w.spill[i]
    out.tail[k] = tail
    mass_C[:] = 0.0
    while size > 0:  # the lightest comes out first
        size -= 1
        out.ids[k, size], out.mass[k, size] = token[0], value[0]
        if size > 0:
            _sink(value, token, size, value[size], token[size])


@kernel(int64, WORK, STORED)
def keep_notes(k, w, out):
    """Take the noted leaves of a boundary out of the scratch."""
    for i in range(w.counts[4]):
        out.note_node[k, i], out.note_token[k, i], out.note_mass[k, i] = w.note_node[i], w.note_token[i], w.note_mass[i]
