"""Words that only `ignore_merges` makes: what a state says behind a beginning of one.

Such a word is one token where it is a whole pre-token, though merges make other tokens of it. So a boundary behind its beginning
has a doubt that no class of characters knows: the bytes themselves decide. In: a state of a compiled pair and the words that
may be coming. Out: a state of its own, which differs for the few strings along these words. The slow twin is `RuleBook.make`
(alignment/rules.py) with `words`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from engine.alignment.rules import RuleBook
from engine.bpe.utf8 import successor
from engine.compiled.pair import CompiledPair
from engine.compiled.pair_kernels import JOIN, SURE
from engine.compiled.state import State
from engine.compiled.walk_kernels import begin_words, reach_words, words_within
from engine.kernels.flat import joined
from engine.kernels.hash_kernels import EMPTY, build_trie

MOST_STATES = 512
"""Beginnings of words that have a state of their own, some 2 MB each; boundaries behind others go by the slow rules. Where this
is reached, which ones these are depends on the order of the documents, and with it the last bits of some rows."""


class Begun(NamedTuple):
    """What words have begun at each of I places. start_I int64 [I+1], byte_J int64: the bytes start_I[i] .. start_I[i + 1] of the
    text at which beginnings of words begin that end at the place, rising. holds_I bool: whether a whole word lies in what is
    pending there, near one of its ends."""

    start_I: np.ndarray
    byte_J: np.ndarray
    holds_I: np.ndarray


class Words:
    """The words of one student, and the states behind their beginnings. Remembers how many it has made. Not thread-safe.

    every: the words.
    """

    def __init__(self, pair: CompiledPair, book: RuleBook) -> None:
        self.pair, self.book = pair, book
        # (id of a state, words that may be coming, each with its unit) -> the state behind them
        self.made: dict[tuple[int, tuple[tuple[int, int], ...]], State] = {}
        self.every = frozenset(book.segmenter.whole_words)
        self._rests: list[tuple[bytes, ...]] = []
        self._number: dict[tuple[bytes, ...], int] = {}  # its place in these
        self._number_behind: dict[bytes, int] = {}  # at most one entry for each beginning of a word
        self._beside: dict[
            bytes, np.ndarray
        ] = {}  # rest of a word -> strings beside it, at most one for each beginning
        text, start = joined(book.segmenter.whole_words or [b" "])
        size = 1 << (2 * len(text) + 2).bit_length()
        self._keys, self._nodes = np.full(size, EMPTY, np.int64), np.zeros(size, np.int32)
        nodes, _, _, end_n = build_trie(text, start, self._keys, self._nodes)
        self._is_word = np.zeros(nodes, bool)
        self._is_word[end_n] = True

    def begun(self, text: np.ndarray, from_I: np.ndarray, to_I: np.ndarray) -> np.ndarray:
        """bool [I]: whether text[from:to], uint8, is the beginning of a word, or one."""
        found = np.zeros(len(from_I), bool)
        begin_words(self._keys, self._nodes, text, from_I, to_I, found)
        return found

    def within(self, text: np.ndarray, from_I: np.ndarray, to_I: np.ndarray) -> Begun:
        """What words have begun in text[from:to], uint8, of whole characters. Of much that is pending only its end counts, and
        for whole words its beginning, each as long as a word can be: where long runs are cut short, cuts lie near their
        ends."""
        longest, start = self.book.segmenter.longest_apart, np.zeros(len(from_I) + 1, np.int64)
        reach, shortest = np.zeros(len(text), np.int32), np.zeros(len(text), np.int32)
        reach_words(self._keys, self._nodes, self._is_word, text, reach, shortest)
        holds = np.zeros(len(from_I), bool)
        given = (text, reach, shortest, longest, from_I, to_I)
        words_within(*given, False, start, np.empty(0, np.int64), holds)
        start = np.cumsum(start)
        byte = np.empty(int(start[-1]), np.int64)
        words_within(*given, True, start, byte, holds)
        return Begun(start, byte, holds)

    def behind(self, state: State, begun: Iterable[tuple[int, bytes]]) -> State | None:
        """The state behind these beginnings of words, `state` being the one of the classes of what is pending. begun: (unit that
        the state's cuts count, beginning) of each. None when there are too many states."""
        coming = tuple((unit, self._behind(part)) for unit, part in begun)
        coming = tuple((unit, number) for unit, number in coming if self._rests[number])
        if not coming:
            return state
        made = self.made.get((id(state), coming))
        if made is None and len(self.made) < MOST_STATES:
            rest = tuple((unit, more) for unit, number in coming for more in self._rests[number])
            made = self.made[id(state), coming] = with_words(self.pair, state, rest, self._beside)
        return made

    def _behind(self, begun: bytes) -> int:
        """The number of what may follow a beginning: the rests of all words that begin so and are longer."""
        known = self._number_behind.get(begun)
        if known is None:
            rests = tuple(more for _, more in self.book.whole_words_after(begun, b"", 1))
            known = self._number_behind[begun] = self._number.setdefault(rests, len(self._rests))
            if known == len(self._rests):
                self._rests.append(rests)
        return known


def with_words(
    pair: CompiledPair, state: State, words: tuple[tuple[int, bytes], ...], beside_of: dict[bytes, np.ndarray]
) -> State:
    """The state behind a beginning of words that only `ignore_merges` makes, none of which has a boundary inside. words:
    (unit of the pending part where it begins, the rest of it), as `RuleBook.whole_words_after` finds them. beside_of: what is
    known of rests, of this pair; grows.

    A string that such a rest begins with, or that begins with it, is not decided by merges (lemma 15 leaves it as it was),
    and where its pre-token is the word it begins no token. agrees_U is False there: no split may rely on these strings.
    """
    begins = [state.units if seam else cuts[-1] if cuts else 0 for cuts, seam in state.variants]
    answers, changed = pair.answers[b""], {}  # string -> no token begins there
    for unit, rest in words:
        beside = beside_of.get(rest)
        if beside is None:  # states have most of their rests in common
            beside = beside_of[rest] = np.array(_beside(pair, rest), np.int64)
        _, action, _ = pair.decode(state, state.cell_U[beside])
        for u in beside[action == JOIN].tolist():
            if unit == (0 if state.simple else begins[state.variant_U[u]]):
                begin = int(answers.start[u])
                piece = answers.text[begin : begin + int(state.stop_U[u])].tobytes()
                changed[u] = changed.get(u, False) or piece == rest
    if not changed:
        return state
    number, none = np.array(list(changed), np.int64), np.array(list(changed.values()))
    first, _, _ = pair.decode(state, state.cell_U[number])
    opened = state.sure_U[number] != SURE
    size, cell_U, agrees_U = len(pair.columns), state.cell_U.copy(), state.agrees_U.copy()
    column = pair.column_of_V[first]
    odd = ~none & (state.join_C[column] == 0)
    cell = np.where(none, 2 * size + opened, column + size * opened)
    kinds, at = np.unique(column[odd].astype(np.int64) << 1 | opened[odd], return_inverse=True)
    cell[odd] = state.cells + at
    cell_U[number], agrees_U[number] = cell, False
    return pair.shared(
        replace(
            state,
            cell_U=cell_U,
            whole_R=cell_U[pair.suffixes.suffix_of[pair.suffixes.token_start_R[:-1]]],
            odd_column=np.append(state.odd_column, (kinds >> 1).astype(np.int32)),
            odd_open=np.append(state.odd_open, (kinds & 1).astype(np.uint8)),
            odd_join=np.append(state.odd_join, np.ones(len(kinds), np.uint8)),
            agrees_U=agrees_U,
        )
    )


def _beside(pair: CompiledPair, rest: bytes) -> list[int]:
    """Strings that are a beginning of these bytes, or begin with them; with NFC also those of which no more is known."""
    text, start, known = pair.answers[b""].text, pair.answers[b""].start, pair.answers[b""].known
    every = range(len(pair.suffixes))

    def place(piece: bytes) -> int:
        return bisect.bisect_left(every, piece, key=lambda u: text[start[u] : start[u + 1]].tobytes())

    found = list(range(place(rest), place(successor(rest))))
    for size in range(1, len(rest)):
        at = place(rest[:size])
        if at < len(every) and text[start[at] : start[at + 1]].tobytes() == rest[:size]:
            found.append(at)
    if pair.vocabulary.nfc:
        for u in np.flatnonzero((known < np.diff(start)) & (known < len(rest))).tolist():
            if text[start[u] : start[u] + known[u]].tobytes() == rest[: known[u]]:
                found.append(u)
    return list(dict.fromkeys(found))
