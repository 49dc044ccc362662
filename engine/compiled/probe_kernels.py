"""Compiled: in what all ways agree in which a pending part and a string behind it may turn out to be cut.

In: class strings whose cuts are not certain, as numbers, and a `CutProgram` (kernels/cut_program.py). Out: arrays of
`Openness.cuts` (alignment/openness.py), which is the slow twin: the text as it is, followed by one unit of each class, and by two
where one leaves a cut open (bpe/continuations.py, with its premise).

Letters: M class strings, n units of the pending part, P units to continue with, K classes.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int32, int64, uint8

from engine.kernels.cut_kernels import PROGRAM, WORK, cut
from engine.kernels.jit import kernel

AGREED, APART = 1, 0
_SELF = 0  # `NO_UNIT`: what is behind a certain cut has nothing before it


@kernel(int32[::1], int64, int32[::1], int64, int64, uint8[::1], uint8[::1], boolean)
def _note(head, heads, ends, count, done, inside, stops, first):
    """Note one way: cuts at head[:heads], and at ends[:count], counted from unit `done`, all before the end of the string.
    inside: uint8 [n + 1], which places up to the boundary are cut; stops [..]: seen[0], the piece goes on behind the string; else
    where it ends behind the boundary. Returns whether `inside` is as before (`first`: is filled)."""
    n, stop, cuts = len(inside) - 1, np.int64(0), np.int64(0)
    for e in range(heads + count):
        place = np.int64(head[e]) if e < heads else done + ends[e - heads]
        if place > n:
            stop = place - n
            break
        cuts += 1
        if first:
            inside[place] = 1
        elif inside[place] == 0:
            return False
    stops[stop] = 1
    if first:
        return True
    for place in range(n + 1):
        cuts -= inside[place]
    return cuts == 0


@kernel(int32[::1], int64, int64)
def _before(ends, count, size):
    """int64: how many of ends[:count] lie before `size`."""
    while count > 0 and ends[count - 1] >= size:
        count -= 1
    return count


@kernel(PROGRAM, int64, int32[::1], int32[::1], uint8[::1], int64[::1])
def _following(program, unit, units_P, out, seen, asked):
    """int64: how many distinct units may stand behind `unit`, in `out`; -1 where program.forget lacks an answer. seen: uint8 [K],
    zero."""
    count, stop = np.int64(0), len(units_P)
    for p in range(len(units_P)):
        kept = program.forget[unit, units_P[p]]
        if kept < 0:
            asked[0], asked[1], stop = unit, units_P[p], p
            break
        if seen[kept] == 0:
            seen[kept] = 1
            out[count] = kept
            count += 1
    for p in range(count):
        seen[out[p]] = 0
    return count if stop == len(units_P) else np.int64(-1)


@kernel(
    PROGRAM, int32[::1], int64[::1], int64, int32[::1], int64, uint8[::1], uint8[:, ::1], uint8[:, ::1], int64[::1],
    allocates=True,
)  # fmt: skip
def agree(program, units, start_M, n, units_P, begin, agreed_M, inside_Mn, stops_MS, asked):
    """For the class strings units[start_M[i]:start_M[i + 1]] from number `begin` on, longer than n each, without a unit of an
    added text. units_P: one of each class to continue with. agreed_M: AGREED or APART. inside_Mn: uint8 [M, n + 1], the cuts
    up to the boundary behind n units. stops_MS: uint8 [M, longest - n + 1], 1 at the units behind the boundary where the piece
    may end, at 0 where it may go on behind the string.

    Returns M; or a string at which program.forget lacks an answer, the pair in asked[0:2].
    """
    longest = np.int64(0)
    for i in range(begin, len(start_M) - 1):
        longest = max(longest, start_M[i + 1] - start_M[i])
    text, head, ends = np.empty(longest + 3, np.int32), np.empty(longest + 3, np.int32), np.empty(longest + 3, np.int32)
    places, flags = np.empty((4, longest + 4), np.int64), np.empty((4, longest + 4), np.bool_)
    nothing, work = np.empty(0, np.int32), np.empty(WORK, np.int64)
    after, seen = np.empty((2, len(units_P)), np.int32), np.zeros(len(program.masks), np.uint8)
    for i in range(begin, len(start_M) - 1):
        inside, stops, size = inside_Mn[i], stops_MS[i], start_M[i + 1] - start_M[i]
        inside[:], stops[:] = 0, 0
        text[:size] = units[start_M[i] : start_M[i + 1]]
        heads = cut(program, text, size, False, head, places, flags, work)
        done = np.int64(head[heads - 1]) if heads > 0 else np.int64(0)
        if done == size:  # all is certain
            _note(head, heads - 1, nothing, np.int64(0), done, inside, stops, True)
            agreed_M[i] = AGREED
            continue
        size -= done
        before = np.int32(_SELF)
        for p in range(size):
            unit = np.int32(units[start_M[i] + done + p])
            text[p] = program.forget[before, unit]
            if text[p] < 0:
                asked[0], asked[1] = before, unit
                return np.int64(i)
            before = text[p]
        count = cut(program, text, size, True, ends, places, flags, work)
        same = _note(head, heads, ends, count - 1, done, inside, stops, True)
        firsts = _following(program, np.int64(text[size - 1]), units_P, after[0], seen, asked)
        if firsts < 0:
            return np.int64(i)
        for a in range(firsts):
            if not same:
                break
            text[size] = after[0, a]
            count = cut(program, text, size + 1, False, ends, places, flags, work)
            settled = count > 0 and ends[count - 1] >= size
            if not settled:
                count = cut(program, text, size + 1, True, ends, places, flags, work)
            same = _note(head, heads, ends, _before(ends, count, size), done, inside, stops, False)
            if settled or not same:
                continue
            seconds = _following(program, np.int64(text[size]), units_P, after[1], seen, asked)
            if seconds < 0:
                return np.int64(i)
            for b in range(seconds):
                text[size + 1] = after[1, b]
                count = cut(program, text, size + 2, True, ends, places, flags, work)
                same = _note(head, heads, ends, _before(ends, count, size), done, inside, stops, False)
                if not same:
                    break
        agreed_M[i] = AGREED if same else APART
    return np.int64(len(start_M) - 1)
