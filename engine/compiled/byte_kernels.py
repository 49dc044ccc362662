"""Compiled: SentencePiece students, whose units are bytes: cuts lie where no token holds two bytes side by side, and around added
texts.

In: the strings behind a boundary, what the student makes of them (compiled/pair_kernels.py), and the bytes that are pending.
Out: per string the token that it begins, what it does at the boundary, and what may still change that. The slow twin is
`Splitter` (bpe/pretokenizer.py) with `RuleBook.make`, compared in tests.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int32, int64, uint8

from engine.compiled.pair_kernels import CUT, GROWS, JOIN, NONE, SURE
from engine.kernels.hash_kernels import find
from engine.kernels.jit import kernel

_MOST_BYTES = 8192  # of one string; a tokenizer with longer tokens is refused where the arrays are made


@kernel(uint8[::1], int64, int64, int64[::1], int32[::1], boolean[::1], boolean[::1])
def added_at(text, i, end, keys, nodes, added_ends, added_goes_on):
    """(int64, bool): end of the longest added text that begins at i, i when none does; whether one may go on behind `end`."""
    node, found = np.int64(0), i
    p = i
    while p < end:
        node = np.int64(find(keys, nodes, node << 8 | np.int64(text[p])))
        if node < 0:
            return found, False
        p += 1
        if added_ends[node]:
            found = p
    return found, added_goes_on[node] and p > i


@kernel(uint8[::1], int64, int64, boolean, boolean[:, ::1], int64[::1], int32[::1], boolean[::1], boolean[::1])
def ends_around(text, m, n, final, never, keys, nodes, added_ends, added_goes_on):
    """(int64, bool, int64): `Splitter.pieces` (final) or `certain` of text[:m] around place n: cuts before n as bits, whether
    one is at n, and the first end behind n (-1: none)."""
    inside, seam, piece_begin, i = np.int64(0), n == 0, np.int64(0), np.int64(0)
    any_added = len(added_ends) > 1
    while i < m:
        stop, may_grow = i, False
        if any_added:
            stop, may_grow = added_at(text, i, m, keys, nodes, added_ends, added_goes_on)
            if may_grow and not final:  # the cut before an added text is certain, whatever longer one comes
                return inside, seam, i if stop > i and i > n and i > piece_begin else np.int64(-1)
        for at in (i, stop):  # where a piece ends: before an added text, and behind it
            is_end = at > piece_begin and (stop > i or (at == i and never[text[at - 1], text[at]]))
            if is_end:
                piece_begin = at
                if at > n:
                    return inside, seam, at
                if at == n:
                    seam = True
                else:
                    inside |= np.int64(1) << at
        i = stop if stop > i else i + 1
    if final and m > piece_begin:
        if m > n:
            return inside, seam, m
        if m == n:
            seam = True
        else:
            inside |= np.int64(1) << m
    return inside, seam, np.int64(-1)


@kernel(uint8[::1], int64, int64, boolean[:, ::1], int64[::1], int32[::1], boolean[::1], boolean[::1])
def locate(text, m, n, never, keys, nodes, added_ends, added_goes_on):
    """(int64, bool, int64, bool): `Splitter.locate` of text[:m] at place n: cuts before n as bits, whether one is at n, the
    end behind n (n when there is none), and whether all this is certain."""
    for final in (m < 0, m >= 0):  # no, yes; constants would be types of their own
        inside, seam, end = ends_around(text, m, n, final, never, keys, nodes, added_ends, added_goes_on)
        if end >= 0:
            return inside, seam, end, not final
    return inside, seam, n, False


@kernel(uint8[::1], int64, int64, int64[::1], int32[::1], boolean[::1])
def is_added(text, begin, end, keys, nodes, added_ends):
    """bool: whether text[begin:end] is an added text."""
    node = np.int64(0)
    for p in range(begin, end):
        node = np.int64(find(keys, nodes, node << 8 | np.int64(text[p])))
        if node < 0:
            return False
    return added_ends[node]


@kernel(
    uint8[::1], int64[::1], int32[::1], boolean[::1], boolean, uint8[::1], boolean[:, ::1], int64[::1], int32[::1],
    boolean[::1], boolean[::1], int32[::1], int32[::1], int32[::1], int32[::1], int32[::1], boolean[::1], int32[::1],
    uint8[::1], boolean[::1], int64[::1],
    allocates=True,
)  # fmt: skip
def settle_bytes(
    text, start, known, composing, nfc, left, never, keys, nodes, added_ends,
    added_goes_on, settled, firsts, firsts_whole, first_U, action_U, open_U, stop_U, sure_U, agrees_U, variant_U,
):  # fmt: skip
    """`settle_characters` for pre-tokenizers over bytes. left: the pending bytes that count. never [256, 256]: lemma 6.

    known: bytes that nothing changes; with NFC cuts are certain only between these. added_ends, added_goes_on: of the nodes of
    the trie of added texts (only node 0 when there are none). agrees_U: no added text may be coming that begins at the boundary
    or before it, so that nothing changes the cuts there; sure_U has GROWS where none begins anywhere, so that no pre-token ends
    sooner. variant_U: cuts inside the pending part as bits, times 2, plus a cut at the boundary.
    """
    n = len(left)
    both = np.empty(n + _MOST_BYTES, np.uint8)
    both[:n] = left
    any_added = len(added_ends) > 1
    for r in range(len(start) - 1):
        a, size = start[r], start[r + 1] - start[r]
        both[n : n + size] = text[a : start[r + 1]]
        inside, seam, end, sure = locate(both, n + size, n, never, keys, nodes, added_ends, added_goes_on)
        stop = end - n
        if nfc and sure and known[r] < size:
            _, _, _, sure = locate(both, n + known[r], n, never, keys, nodes, added_ends, added_goes_on)
        across = False
        if any_added and not seam:
            begin = n
            while begin > 0 and (begin == n or not inside >> begin & 1):
                begin -= 1
            across = is_added(both, begin, n + stop, keys, nodes, added_ends)
        table = firsts_whole if seam else firsts
        first = table[a + r + stop]
        opened = not sure or composing[r]
        choose = opened and not composing[r] and first >= 0 and settled[r] == first
        if choose and not any_added:
            choose = stop >= known[r]
        elif choose:
            m = n + known[r]
            for i in range(m):  # an added text may be coming
                node = np.int64(0)
                p = i
                while p < m and node >= 0:
                    node = np.int64(find(keys, nodes, node << 8 | np.int64(both[p])))
                    p += 1
                if node >= 0 and added_goes_on[node]:
                    choose = False
                    break
            if choose and known[r] < size:
                inside2, seam2, _, _ = locate(both, m, n, never, keys, nodes, added_ends, added_goes_on)
                choose = inside2 == inside and seam2 == seam
        if across:
            first = np.int32(-1)
        first_U[r] = first
        action_U[r] = NONE if first < 0 else CUT if seam else JOIN
        open_U[r] = opened and not choose
        stop_U[r] = stop
        variant_U[r] = inside << 1 | np.int64(seam)
        agrees_U[r] = not (nfc and (composing[r] or known[r] == 0))
        grows = agrees_U[r]
        i = np.int64(0)
        while any_added and not sure and agrees_U[r] and i < n + size:
            node, p = np.int64(0), i
            while p < n + size and node >= 0:
                node = np.int64(find(keys, nodes, node << 8 | np.int64(both[p])))
                p += 1
            if node >= 0 and added_goes_on[node]:
                grows, agrees_U[r] = False, i > n
            i += 1
        sure_U[r] = SURE if sure and not composing[r] else GROWS if grows else 0
