"""Words that only `ignore_merges` makes: what a state says behind a beginning of one.

Such a word is one token where it is a whole pre-token, though merges make other tokens of it. So a boundary behind its beginning
has a doubt that no class of characters knows: the bytes themselves decide. In: a state of a compiled pair and the words that
may be coming. Out: a state of its own, which differs for the few strings along these words. The slow twin is `RuleBook.make`
(alignment/rules.py) with `words`.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engine.alignment.rules import RuleBook
from engine.bpe.utf8 import successor
from engine.compiled.pair import CompiledPair
from engine.compiled.pair_kernels import JOIN, SURE
from engine.compiled.state import State
from engine.compiled.walk_kernels import begin_words
from engine.kernels.flat import joined
from engine.kernels.hash_kernels import EMPTY, build_trie

MOST_STATES = 512
"""Beginnings of words that have a state of their own, some 2 MB each; boundaries behind others go by the slow rules. Where this
is reached, which ones these are depends on the order of the documents, and with it the last bits of some rows."""


class Words:
    """The words of one student, and the states behind their beginnings. Remembers how many it has made. Not thread-safe."""

    def __init__(self, pair: CompiledPair, book: RuleBook) -> None:
        self.pair, self.book = pair, book
        self.made: dict[
            tuple[int, tuple[tuple[int, bytes], ...]], State
        ] = {}  # (id of a state, words) -> state behind them
        self.words = book.segmenter.whole_words
        self.every = frozenset(self.words)
        text, start = joined(list(self.words) or [b" "])
        size = 1 << (2 * len(text) + 2).bit_length()
        self._keys, self._nodes = np.full(size, EMPTY, np.int64), np.zeros(size, np.int32)
        build_trie(text, start, self._keys, self._nodes)

    def begun(self, text: np.ndarray, from_I: np.ndarray, to_I: np.ndarray) -> np.ndarray:
        """bool [I]: whether text[from:to], uint8, is the beginning of a word, or one."""
        found = np.zeros(len(from_I), bool)
        begin_words(self._keys, self._nodes, text, from_I, to_I, found)
        return found

    def behind(
        self, state: State, part: bytes, *, head: bytes = b"", place: Callable[[int], int | None] = lambda unit: unit
    ) -> State | None:
        """The state behind these pending bytes, for which `state` is the one of their classes. None where a word is in them as
        a whole, since then a cut behind it changes the tokens before the boundary; and when there are too many states.

        Of much that is pending `part` is the end and `head` the beginning, each as long as a word can be: where long runs are
        cut short, cuts lie near their ends. place: unit of `part` -> unit that the state's cuts count, None where no cut lies.
        """
        if (
            not head and part in self.every
            if state.simple
            else any(word in part or word in head for word in self.words)
        ):
            return None
        after = self.book.whole_words_after(part, b"", len(part.decode("utf-8")))
        unit_of = {u: place(u) for u in dict.fromkeys(u for u, _ in after)}  # many words begin at one unit
        rest = tuple((unit, more) for u, more in after if (unit := unit_of[u]) is not None)
        if not rest:
            return state
        made = self.made.get((id(state), rest))
        if made is None and len(self.made) < MOST_STATES:
            made = self.made[id(state), rest] = with_words(self.pair, state, rest)
        return made


def with_words(pair: CompiledPair, state: State, words: tuple[tuple[int, bytes], ...]) -> State:
    """The state behind a beginning of words that only `ignore_merges` makes, none of which has a boundary inside. words:
    (unit of the pending part where it begins, the rest of it), as `RuleBook.whole_words_after` finds them.

    A string that such a rest begins with, or that begins with it, is not decided by merges (lemma 15 leaves it as it was),
    and where its pre-token is the word it begins no token. agrees_U is False there: no split may rely on these strings.
    """
    begins = [state.units if seam else cuts[-1] if cuts else 0 for cuts, seam in state.variants]
    answers, changed = pair.answers[b""], {}  # string -> no token begins there
    for unit, rest in words:
        beside = np.array(_beside(pair, rest), np.int64)
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
