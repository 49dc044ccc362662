"""Compiled: what a merge list allows. Canonical pairs, encodings of all beginnings of a string, which token may not follow.

In: a `FlatTokenizer` (kernels/flat.py) and bytes. Out: the answers of `MergeTable` (bpe/merges.py) and `Openness.decided`
(alignment/openness.py), which are the slow twins in tests, a hundred times as fast and without a Python object.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import int32, int64, types, uint8, uint64

from engine.kernels.flat import FLAT, UNMADE
from engine.kernels.hash_kernels import EMPTY, find, node_of, put
from engine.kernels.jit import kernel

_CANONICAL, _BROKEN, _TIE = 1, 0, -1


@kernel(FLAT, int64, int64)
def seam(t, a, b):
    """int64: whether the pair a, b is canonical (1), not (0), or cannot be told by clocks (-1). Lemma 3.

    The walk undoes merges along the seam, the latest first: a goes down the right edge of its merge tree, b down the left
    edge of its own, so that it meets just the pairs of nodes that live at the same time. At one clock the left side's merges
    come before those across the seam, and these before the right side's: only a late merge can make that order unclear.
    """
    dies_a, dies_b = np.int64(UNMADE), np.int64(UNMADE)
    late_a, late_b = False, False
    while True:
        crossing = np.int64(find(t.pair_key_H, t.pair_rank_H, (a << 32) | b))
        if crossing >= 0:
            fires = max(crossing, np.int64(t.birth_V[a]), np.int64(t.birth_V[b]))
            if fires <= dies_a and fires <= dies_b:
                late = fires != crossing
                if (fires == dies_a and (late or late_a)) or (fires == dies_b and (late or late_b)):
                    return _TIE
                if fires < dies_a:
                    return _BROKEN
        birth_a, birth_b = np.int64(t.birth_V[a]), np.int64(t.birth_V[b])
        if birth_a == -1 and birth_b == -1:
            return _CANONICAL
        if birth_a > birth_b:
            dies_a, late_a, a = birth_a, t.late_V[a], np.int64(t.right_V[a])
        else:
            dies_b, late_b, b = birth_b, t.late_V[b], np.int64(t.left_V[b])


@kernel(FLAT, int64, int64, allocates=True)
def survives_play(t, a, b):
    """bool: whether BPE, merge by merge, makes a b of the symbols of a and b. For the ties that `seam` leaves."""
    most = np.int64(t.length_V[a]) + np.int64(t.length_V[b]) + 2
    stack, tokens = np.empty(most, np.int64), np.empty(most, np.int64)
    stack[0], stack[1] = b, a
    top, n = 2, 0
    while top > 0:
        top -= 1
        node = stack[top]
        if t.left_V[node] < 0:
            tokens[n] = node
            n += 1
        else:
            stack[top], stack[top + 1] = t.right_V[node], t.left_V[node]
            top += 2
    while n > 1:
        best, at = np.int64(UNMADE), -1
        for i in range(n - 1):
            rank = np.int64(find(t.pair_key_H, t.pair_rank_H, (tokens[i] << 32) | tokens[i + 1]))
            if 0 <= rank < best:
                best, at = rank, i
        if at < 0:
            break
        tokens[at] = t.merged_M[best]
        for i in range(at + 1, n - 1):
            tokens[i] = tokens[i + 1]
        n -= 1
    return n == 2 and tokens[0] == a and tokens[1] == b


@kernel(FLAT, int64, int64)
def pair_is_canonical(t, a, b):
    """bool: whether `a b` stays as it is when its bytes are encoded inside one pre-token (lemma 3). Both reachable."""
    told = seam(t, a, b)
    if told == _TIE:
        return survives_play(t, a, b)
    return told == _CANONICAL


@kernel(uint8[::1], int64, int64)
def valid_utf8_end(text, begin, end):
    """int64: where the first character of text[begin:end] begins that is incomplete or no UTF-8; `end` when there is none."""
    i = begin
    while i < end:
        b = text[i]
        if b < 0x80:
            i += 1
            continue
        if b < 0xC2 or b > 0xF4:
            return i
        size = 2 if b < 0xE0 else 3 if b < 0xF0 else 4
        if i + size > end:
            return i
        least = 0xA0 if b == 0xE0 else 0x90 if b == 0xF0 else 0x80  # no overlong forms
        most = 0x9F if b == 0xED else 0x8F if b == 0xF4 else 0xBF  # no surrogates, nothing above U+10FFFF
        if text[i + 1] < least or text[i + 1] > most:
            return i
        for p in range(i + 2, i + size):
            if text[p] & 0xC0 != 0x80:
                return i
        i += size
    return end


@kernel(FLAT, uint8[::1], int64, int32[::1], int32[::1], int32[::1])
def prefix_tree(t, text, n, last, parent, first):
    """Canonical encodings of all beginnings of text[:n], inside one pre-token, as one tree (lemma 4).

    Fills last, parent, first [n+1]: the encoding of text[:i] is that of text[:parent[i]] and the token last[i], and begins
    with first[i]. -1 where there is none: at 0, and where a byte or character has no token. From each place that an encoding
    ends at, the tokens that go on from there are found along the trie; a place is reached by one of them only.
    """
    for i in range(n + 1):
        last[i], parent[i], first[i] = -1, -1, -1
    if t.by_characters:
        _tree_of_characters(t, text, n, last, parent, first)
        return
    for j in range(n):
        if j == 0 or last[j] >= 0:
            _extend(t, text, j, n, last, parent, first)


@kernel(FLAT, uint8[::1], int64, int64, int32[::1], int32[::1], int32[::1])
def _extend(t, text, j, n, last, parent, first):
    """The tokens that may follow the encoding of text[:j], up to n. Where symbols are characters none ends inside one."""
    node = np.int64(0)
    for i in range(j, n):
        node = np.int64(find(t.node_key_H, t.node_H, (node << 8) | np.int64(text[i])))
        if node < 0:
            return
        token = t.own_N[node]
        if token < 0 or last[i + 1] >= 0 or (t.by_characters and i + 1 < n and text[i + 1] & 0xC0 == 0x80):
            continue
        if j == 0 or pair_is_canonical(t, np.int64(last[j]), np.int64(token)):
            last[i + 1], parent[i + 1] = token, j
            first[i + 1] = token if j == 0 else first[j]


@kernel(FLAT, uint8[::1], int64, int64, int32[::1], int32[::1], int32[::1])
def _spell(t, text, begin, end, last, parent, first):
    """text[begin:end] by byte tokens, each behind the one before it; overwrites."""
    for i in range(begin, end):
        token = t.byte_token[text[i]]
        if token >= 0:
            last[i + 1], parent[i + 1] = token, i
            first[i + 1] = token if i == 0 else first[i]
        else:
            last[i + 1], parent[i + 1], first[i + 1] = -1, -1, -1


@kernel(FLAT, uint8[::1], int64, int32[::1], int32[::1], int32[::1])
def _tree_of_characters(t, text, n, last, parent, first):
    """`prefix_tree` for SentencePiece: symbols are characters; one without a token is spelt by byte tokens as a whole, and so
    are, by convention, beginnings that end inside a character."""
    whole = valid_utf8_end(text, np.int64(0), n)
    i = np.int64(0)
    while i < whole:
        lead = text[i]
        size = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        node = node_of(t.node_key_H, t.node_H, text, i, i + size)
        symbol = node > 0 and t.own_N[node] >= 0 and not (size == 1 and t.own_N[node] == t.byte_token[lead])
        if symbol:
            if i == 0 or last[i] >= 0:
                _extend(t, text, i, whole, last, parent, first)
            _spell(t, text, i, i + size - 1, last, parent, first)
        else:
            _spell(t, text, i, i + size, last, parent, first)
        i += size
    _spell(t, text, whole, n, last, parent, first)


class Memo(NamedTuple):
    """What `may_pass` remembers, made by `new_memo`. Answers: a hash table of token << 32 | node, until it is half full;
    count int64 [2]: entries, and how much of `lists` is used. lists: for some tokens the places (in made_Q) of all that may
    not follow them, rising; list_at, list_end: int64 [V], where, -1 for none. When `lists` is full all of it is forgotten.
    bits, ids: for `illegal_after`, sorted: uint64, for places."""

    key: np.ndarray
    answer: np.ndarray
    used: np.ndarray
    lists: np.ndarray
    list_at: np.ndarray
    list_end: np.ndarray
    bits: np.ndarray
    ids: np.ndarray
    sorted: np.ndarray


MEMO = types.NamedTuple(
    [int64[::1], int32[::1], int64[::1], int32[::1], int64[::1], int64[::1], uint64[::1], int32[::1], uint64[::1]], Memo
)
_FEW = 24  # tokens that are asked one by one before all that may not follow are listed


def new_memo(size: int, *, answers: int = 1 << 20, listed: int = 1 << 23) -> Memo:
    """An empty memo for a tokenizer of `size` ids. answers: slots, a power of two; listed: numbers kept in lists."""
    words = size // 64 + 1
    return Memo(
        np.full(answers, EMPTY, np.int64),
        np.zeros(answers, np.int32),
        np.zeros(2, np.int64),
        np.empty(max(listed, size), np.int32),
        np.full(size, -1, np.int64),
        np.full(size, -1, np.int64),
        np.zeros(words, np.uint64),
        np.empty(size, np.int32),
        np.zeros(words, np.uint64),
    )


@kernel(FLAT, int64, int64, MEMO)
def may_pass(t, token, node, memo):
    """bool: whether some token that goes on beyond the node's bytes may stand behind `token` (lemma 2).

    The likeliest is tried first. Where it may not, mostly none may: a few are tried, then counted against all that may not.
    """
    key = (token << 32) | node
    known = find(memo.key, memo.answer, key)
    if known >= 0:
        return known == 1
    begin, end = np.int64(t.made_lo_N[node]), np.int64(t.made_hi_N[node])
    found = begin < end and pair_is_canonical(t, token, np.int64(t.likely_N[node]))
    if not found and end - begin <= _FEW:
        for i in range(begin, end):
            if pair_is_canonical(t, token, np.int64(t.made_Q[i])):
                found = True
                break
    elif not found:
        if memo.list_at[token] < 0:
            _list_illegal(t, token, memo)
        places = memo.lists[memo.list_at[token] : memo.list_end[token]]
        found = np.searchsorted(places, end) - np.searchsorted(places, begin) < end - begin
    if 2 * memo.used[0] < len(memo.key):
        put(memo.key, memo.answer, key, np.int32(found))
        memo.used[0] += 1
    return found


@kernel(FLAT, int64, MEMO)
def _list_illegal(t, token, memo):
    """Keep the places of all tokens that may not follow `token`."""
    n = illegal_after(t, token, memo.bits, memo.ids)
    if memo.used[1] + n > len(memo.lists):
        memo.list_at[:] = -1
        memo.used[1] = 0
    at = memo.used[1]
    for i in range(n):
        place = np.int64(t.place_V[memo.ids[i]])
        memo.sorted[place >> 6] |= np.uint64(1) << np.uint64(place & 63)
    _take_bits(memo.sorted, memo.lists[at : at + n])
    memo.list_at[token], memo.list_end[token] = at, at + n
    memo.used[1] += n


@kernel(FLAT, uint8[::1], int64, int32[::1], int32[::1], MEMO)
def decided(t, text, n, last, first, memo):
    """bool: whether the encoding of text[:n] w begins with first[n] for every w inside the pre-token, the empty one too.

    Lemma 15 (a): a token that crosses n begins at some j <= n, goes on beyond text[j:n], and may stand behind the encoding of
    text[:j]; the first token is then first[j], or for j = 0 that token itself. So all of these have to be first[n]. last,
    first: the prefix tree of the text, to n at least. SentencePiece: n is the end of a character.
    """
    if n == 0 or last[n] < 0:
        return False
    node = node_of(t.node_key_H, t.node_H, text, np.int64(0), n)
    if node > 0 and t.begun_N[node]:
        return False
    for j in range(n - 1, 0, -1):
        if last[j] < 0 or first[j] == first[n]:
            continue
        node = node_of(t.node_key_H, t.node_H, text, j, n)
        if node > 0 and t.made_hi_N[node] > t.made_lo_N[node] and may_pass(t, np.int64(last[j]), node, memo):
            return False
    return True


@kernel(FLAT, int64, uint64[::1], int32[::1])
def illegal_after(t, a, bits, out):
    """int64 n: fills out[:n] with the ids b, rising, for which `a b` is not canonical inside one pre-token (lemma 3).

    bits: uint64 [V / 64 + 1], all 0, and left so. out: int32 [V]. For each node on the right edge of a, each merge of it with
    some x that fires while the node lives: the tokens that have x on their left edge, alive at that moment. Ties are played.
    """
    node, dies, late_a = a, np.int64(UNMADE), False
    while node >= 0:
        birth = np.int64(t.birth_V[node])
        for i in range(t.partner_start_V[node], t.partner_start_V[node + 1]):
            x, rank = t.partner[i], np.int64(t.partner_rank[i])
            fires = max(rank, birth, np.int64(t.birth_V[x]))
            late = fires != rank
            if fires > dies or (fires == dies and not (late or late_a)):
                continue
            for e in range(t.edge_start_V[x], t.edge_start_V[x + 1]):
                death = np.int64(t.edge_death[e])
                if death < fires:
                    continue
                b = np.int64(t.edge_token[e])
                bit = np.uint64(1) << np.uint64(b & 63)
                if bits[b >> 6] & bit:
                    continue
                tie = fires == dies or (death == fires and (late or t.edge_late[e]))
                if not tie or not pair_is_canonical(t, a, b):
                    bits[b >> 6] |= bit
        dies, late_a, node = birth, t.late_V[node], np.int64(t.right_V[node])
    return _take_bits(bits, out)


@kernel(uint64[::1], int32[::1])
def _take_bits(bits, out):
    """int64 n: the numbers of the bits that are set, rising, in out[:n]; the bits are cleared."""
    n = 0
    for word in range(len(bits)):
        left = bits[word]
        if left == 0:
            continue
        bits[word] = 0
        for place in range(64):
            if left >> np.uint64(place) & np.uint64(1):
                out[n] = word * 64 + place
                n += 1
    return n
