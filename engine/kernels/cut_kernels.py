"""Compiled: a pre-tokenizer over characters, as instructions. Where a class string is cut, and which cuts are certain.

In: a class string as numbers, and a `CutProgram` (kernels/cut_program.py). Out: ends of pre-tokens, as `Splitter.pieces` and
`certain` give them; the closures of bpe/pattern.py and the stages of bpe/pretokenizer.py are the slow twin.

A pattern is run by backtracking, first alternative first, one unit at a time, and it is noted whether a unit past the end was
asked for (lemma 5). Instructions: kernels/instructions.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import boolean, int32, int64, types

from engine.kernels.hash_kernels import find
from engine.kernels.instructions import AHEAD, ATOMIC, JUMP, LINE_END, SPLIT, UNIT
from engine.kernels.jit import kernel

_NOT_AHEAD, _AHEAD, _ATOMIC = 0, 1, 2


class CutProgram(NamedTuple):
    """code: int32 [n, 3], instructions of all patterns. stage: int32, where each stage's pattern begins; -1: the stage of
    added texts.

    masks: int64 [K], answers of each class to the predicates, as bits. owns: int32 [K], the code point of classes that are
    one character of added texts, else 0. forget: int32 [K, K], (class before, class) -> class, -1: not asked yet. broken: the
    class of an incomplete character. added_key int64, added_node int32: hash table of the trie of added texts, node << 21 |
    code point; added_ends, added_goes_on: bool, of its nodes.
    """

    code: np.ndarray
    stage: np.ndarray
    masks: np.ndarray
    owns: np.ndarray
    forget: np.ndarray
    broken: int
    added_key: np.ndarray
    added_node: np.ndarray
    added_ends: np.ndarray
    added_goes_on: np.ndarray


PROGRAM = types.NamedTuple(
    [
        int32[:, ::1], int32[::1], int64[::1], int32[::1], int32[:, ::1], int64, int64[::1], int32[::1], boolean[::1],
        boolean[::1],
    ],
    CutProgram,
)  # fmt: skip


_BACKS, _FRAMES = 64, 32
WORK = 2 * _BACKS + 4 * _FRAMES
"""int64 that a match needs to work in; where it has to come back to more places, it takes more by itself."""


@kernel(PROGRAM, int64, int32[::1], int64, int64, int64[::1], allocates=True)
def match(program, at, units, i, end, work):
    """(int64, bool): end of the match of the pattern at `at` that begins at unit i, -1 for none; whether a unit at `end` was
    asked for. work: int64 [WORK], of any content."""
    code, masks = program.code, program.masks
    touched = False
    back_at, back_i, backs = work[:_BACKS], work[_BACKS : 2 * _BACKS], 0
    frame, frames = work[2 * _BACKS :].reshape((4, _FRAMES)), 0
    frame_back, frame_after, frame_i, frame_kind = frame[0], frame[1], frame[2], frame[3]
    while True:
        what, a, b = code[at, 0], np.int64(code[at, 1]), np.int64(code[at, 2])
        fails = False
        if what == UNIT:
            if i >= end:
                touched = True
                fails = True
            elif masks[units[i]] >> a & 1:
                i += 1
                at += 1
            else:
                fails = True
        elif what == SPLIT:
            if backs == len(back_at):
                back_at = np.concatenate((back_at, np.empty_like(back_at)))
                back_i = np.concatenate((back_i, np.empty_like(back_i)))
            back_at[backs], back_i[backs] = at + b, i
            backs += 1
            at += a
        elif what == JUMP:
            at += a
        elif what == LINE_END:
            if i >= end:
                touched = True
                at += 1
            elif masks[units[i]] >> a & 1:
                at += 1
            else:
                fails = True
        elif what == AHEAD or what == ATOMIC:
            frame_back[frames], frame_after[frames], frame_i[frames] = backs, at + b, i
            frame_kind[frames] = _ATOMIC if what == ATOMIC else _AHEAD if a == 1 else _NOT_AHEAD
            frames += 1
            at += 1
        else:  # MATCH
            if frames == 0:
                return i, touched
            frames -= 1
            backs = frame_back[frames]
            if frame_kind[frames] == _NOT_AHEAD:
                fails = True
            else:
                at = frame_after[frames]
                if frame_kind[frames] == _AHEAD:
                    i = frame_i[frames]
        while fails:
            if frames > 0 and backs == frame_back[frames - 1]:
                frames -= 1
                if frame_kind[frames] == _NOT_AHEAD:
                    at, i, fails = frame_after[frames], frame_i[frames], False
            elif backs == 0:
                return np.int64(-1), touched
            else:
                backs -= 1
                at, i, fails = back_at[backs], back_i[backs], False


@kernel(PROGRAM, int32[::1], int64, int64)
def _added(program, units, i, end):
    """(int64, bool): end of the longest added text at unit i, i for none; whether one may go on behind `end`."""
    node, found, p = np.int64(0), i, i
    while p < end:
        own = np.int64(program.owns[units[p]])
        if own == 0:
            return found, False
        node = np.int64(find(program.added_key, program.added_node, node << 21 | own))
        if node < 0:
            return found, False
        p += 1
        if program.added_ends[node]:
            found = p
    return found, p > i and program.added_goes_on[node]


@kernel(PROGRAM, int32[::1], int64, boolean, int32[::1], int64[:, ::1], boolean[:, ::1], int64[::1], allocates=True)
def cut(program, units, n, final, out, places, flags, work):
    """int64 m: out[:m] are the ends of the pre-tokens of units[:n]: all when the text ends there (final), else those that are
    certain. To work in, of any content: places, flags, int64 and bool [4, n + 2] or longer; work, int64 [WORK].

    Each stage cuts the spans that the one before left. A span is closed when its end is certain; only the last one may be
    open, and is then known up to its end. An added text is whole: no later stage cuts it. out: int32, room for n.
    """
    begins, stops, begins2, stops2 = places[0], places[1], places[2], places[3]
    closed, whole, closed2, whole2 = flags[0], flags[1], flags[2], flags[3]
    begins[0], stops[0], closed[0], whole[0] = 0, n, final, False
    count = 1
    for stage in range(len(program.stage)):
        made = 0
        for x in range(count):
            begin, end, is_closed = begins[x], stops[x], closed[x]
            if whole[x] or begin == end:
                begins2[made], stops2[made], closed2[made], whole2[made] = begin, end, is_closed, whole[x]
                made += 1
                continue
            gap, i, broke_off = begin, begin, False
            while i < end:
                if program.stage[stage] < 0:
                    stop, may_change = _added(program, units, i, end)
                else:
                    stop, may_change = match(program, np.int64(program.stage[stage]), units, i, end, work)
                if may_change and not is_closed:
                    begins2[made], stops2[made], whole2[made] = gap, i, False
                    # where an added text begins, and a longer one may come, the cut before it is certain all the same
                    closed2[made] = program.stage[stage] < 0 and stop > i
                    made += 1
                    broke_off = True
                    break
                if stop > i:
                    if i > gap:
                        begins2[made], stops2[made], closed2[made], whole2[made] = gap, i, True, False
                        made += 1
                    begins2[made], stops2[made], closed2[made] = i, stop, True
                    whole2[made] = program.stage[stage] < 0
                    made += 1
                    gap, i = stop, stop
                else:
                    i += 1
            if not broke_off and end > gap:
                begins2[made], stops2[made], closed2[made], whole2[made] = gap, end, is_closed, False
                made += 1
        begins, begins2, stops, stops2 = begins2, begins, stops2, stops
        closed, closed2, whole, whole2 = closed2, closed, whole2, whole
        count = made
    m = 0
    for x in range(count):
        if closed[x] and stops[x] > begins[x]:
            out[m] = stops[x]
            m += 1
    return m


@kernel(PROGRAM, int32[::1], int64, boolean, int32[::1], allocates=True)
def ends_of(program, units, n, final, out):
    """`cut` where it is asked once."""
    places, flags = np.empty((4, n + 2), np.int64), np.empty((4, n + 2), np.bool_)
    return cut(program, units, n, final, out, places, flags, np.empty(WORK, np.int64))
