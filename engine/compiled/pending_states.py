"""The compiled state of what a student has pending at any byte of a text.

In: a text in the student's own bytes, and places in it. Out: `Pending`: for each place where the pending part begins, the
number of its state (compiled/pair.py), and what is in doubt there. States are numbered once, for all texts.

Letters: I places, U units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.alignment.rules import RuleBook
from engine.alignment.student_view import NO_STATE
from engine.bpe.folding import Folded, Runs
from engine.bpe.pending import starts_of_units
from engine.bpe.utf8 import is_continuation
from engine.compiled.automaton import PendingAutomaton
from engine.compiled.odd_cells import MOST_ODD, odd_cells
from engine.compiled.pair import CompiledPair
from engine.compiled.state import State
from engine.compiled.words import Words

_NOT_ASKED = -2
CUT_INSIDE, HOLDS_ADDED = 1, 2
"""Why the student's tokens may not be what the merges make of a pending part: it is cut inside if the text ends there; it
holds an added text."""


class Pending(NamedTuple):
    """What is pending at each of some bytes. state_I: int32, number of its state, NO_STATE where none holds. begin_I: int64, the
    byte where it begins. part_I: int32, the automaton's number. doubt_I: uint8. unit_I, first_I: int64, whole units before the
    byte, and before where it begins. partial_I: int64, bytes before the byte of the character that it cuts, 0 at borders of
    characters. runs: those of the text. byte_of: int64 [units + 1]."""

    state_I: np.ndarray
    begin_I: np.ndarray
    part_I: np.ndarray
    doubt_I: np.ndarray
    unit_I: np.ndarray
    first_I: np.ndarray
    partial_I: np.ndarray
    runs: Runs
    byte_of: np.ndarray


class PendingStates:
    """The states of one pair, as far as texts have met them. Not thread-safe.

    states: by number. units_of: int32, of each state the units that its cuts count, 0 for simple ones; the last entry stands for
    NO_STATE.
    """

    def __init__(self, pair: CompiledPair, book: RuleBook) -> None:
        self.pair, self.segmenter = pair, book.segmenter
        self.states: list[State] = []
        self.units_of = np.zeros(1, np.int32)
        self._number, self._held = dict[int, int](), list[State]()
        self._automaton = PendingAutomaton(self.segmenter.splitter)
        self._of_pending = np.full(0, _NOT_ASKED, np.int32)  # the automaton's pending part -> number of its state
        self._doubt = np.zeros(0, np.uint8)  # of the same: `CUT_INSIDE`, `HOLDS_ADDED`
        self._of_inside: dict[tuple[int, bytes], int] = {}  # the same, and bytes of a character -> number
        self._cleared = self._automaton.cleared
        self._words = Words(pair, book)

    def classes(self, pending: Pending, i: int) -> str:
        """Class string of what is pending at place i, long runs cut short."""
        return self._automaton.strings[int(pending.part_I[i])]

    def at(self, data: bytes, own_K: np.ndarray, own_N: np.ndarray) -> Pending:
        """What is pending at bytes of the student's own string: at its boundaries, then at the ends of contexts."""
        splitter, own_I = self.segmenter.splitter, np.concatenate([own_K, own_N])
        state_U, begin_U, units = self._automaton.walk(data)
        if self._cleared != self._automaton.cleared:
            self._of_pending, self._doubt = np.full(0, _NOT_ASKED, np.int32), np.zeros(0, np.uint8)
            self._cleared = self._automaton.cleared
            self._of_inside.clear()
        raw = np.frombuffer(bytearray(data + b"\0"), np.uint8)
        byte_of = starts_of_units(splitter, data).astype(np.int64)
        if splitter.byte_units:
            unit_I, inside_I = own_I, is_continuation(raw[own_I])
        elif len(state_U) == len(raw):
            unit_I, inside_I = own_I, np.zeros(len(own_I), bool)
        else:
            unit_I = np.searchsorted(byte_of, own_I, side="right") - 1
            inside_I = byte_of[unit_I] != own_I
        first_I = begin_U[unit_I].astype(np.int64)
        begin_I, part_I = byte_of[first_I], state_U[unit_I]
        # with bytes as units only `Aligner` knows what is pending inside a character
        partial_I = np.where(inside_I, own_I - byte_of[unit_I], 0)
        asked = np.flatnonzero(inside_I[: len(own_K)]) if self.pair.cuts_characters else np.empty(0, np.int64)
        self._ask(part_I[~inside_I])
        self._ask(part_I[asked])
        state_I, doubt_I = self._of_pending[part_I], self._doubt[part_I]
        state_I[inside_I] = NO_STATE
        self._ask_inside(data, own_I, part_I, partial_I, asked[doubt_I[asked] & HOLDS_ADDED == 0], state_I)
        found = Pending(state_I, begin_I, part_I, doubt_I, unit_I, first_I, partial_I, Runs(splitter, units), byte_of)
        if self.pair.has_words:
            begun = self._words.begun(raw, begin_I, own_I)
            apart = (begun | (self.units_of[state_I] > 0)) & inside_I
            state_I[apart] = NO_STATE
            # words may begin behind a cut inside what is pending, too
            asked = np.flatnonzero((begun | (self.units_of[state_I] > 0)) & (state_I != NO_STATE))
            within = self._words.within(raw, begin_I[asked], own_I[asked])
            # a cut behind a whole word would change the tokens before the boundary
            state_I[asked[within.holds_I & (self.units_of[state_I[asked]] > 0)]] = NO_STATE
            for j in np.flatnonzero((np.diff(within.start_I) > 0) & (state_I[asked] != NO_STATE)).tolist():
                at, i = within.byte_J[within.start_I[j] : within.start_I[j + 1]], int(asked[j])
                state_I[i] = self._within_words(found, i, data, int(own_I[i]), at)
        return found

    def _ask(self, parts: np.ndarray) -> None:
        """Find the state of these pending parts, and what is in doubt there."""
        strings, splitter = self._automaton.strings, self.segmenter.splitter
        more = len(strings) - len(self._of_pending)
        if more > 0:
            self._of_pending = np.append(self._of_pending, np.full(more, _NOT_ASKED, np.int32))
            self._doubt = np.append(self._doubt, np.zeros(more, np.uint8))
        for part in np.unique(parts[self._of_pending[parts] == _NOT_ASKED]).tolist():
            left = splitter.reduce(strings[part])
            self._of_pending[part] = self.numbered(left, b"")
            if left and any(u < len(left) for u in splitter.pieces(left)):
                self._doubt[part] |= CUT_INSIDE
            text = strings[part] if splitter.byte_units else splitter.own(strings[part])
            if splitter.holds_added(text):
                self._doubt[part] |= HOLDS_ADDED

    def _ask_inside(
        self,
        data: bytes,
        own_I: np.ndarray,
        part_I: np.ndarray,
        partial_I: np.ndarray,
        asked: np.ndarray,
        state_I: np.ndarray,
    ) -> None:
        """Set the states of the places `asked`, which cut characters."""
        for i in asked.tolist():
            part, end = int(part_I[i]), int(own_I[i])
            partial = data[end - int(partial_I[i]) : end]
            known = self._of_inside.get((part, partial))
            if known is None:
                left = self.segmenter.splitter.reduce(self._automaton.strings[part])
                known = self._of_inside[part, partial] = self.numbered(left, b"", partial)
            state_I[i] = known

    def may_cut_inside(self, text: bytes) -> bool:
        """Whether what comes behind this text, of whole characters, decides about cuts inside what is pending there. States are
        made only of those few pending parts where that is so."""
        part = int(self._automaton.walk(text)[0][-1])
        known = (
            self._of_pending[part]
            if self._cleared == self._automaton.cleared and part < len(self._of_pending)
            else _NOT_ASKED
        )
        left = self.segmenter.splitter.reduce(self._automaton.strings[part])
        if known == _NOT_ASKED and not self.segmenter.splitter.byte_units and not self.pair.cuts_inside(left):
            return False
        state = int(self.at(text, np.array([0]), np.array([len(text)])).state_I[1])
        return state != NO_STATE and bool(self.units_of[state] > 0)

    def numbered(self, left: str, lead: bytes, partial: bytes = b"") -> int:
        """The number of a state of the pair, NO_STATE where the slow rules are to be asked."""
        state = self.pair.state(left, lead, partial)
        if not state.simple and (self.segmenter.splitter.byte_units or len(state.variants) >= 256):
            return NO_STATE
        return self.number_of(state)

    def number_of(self, state: State) -> int:
        """Its place in `states`, NO_STATE where it has more odd cells than sums have room for."""
        number = self._number.get(id(state))
        if number is None:
            self._held.append(state)  # its id is a key
            if len(odd_cells(state)[1]) > MOST_ODD:
                number = NO_STATE
            else:
                number = len(self.states)
                self.states.append(state)
                self.units_of = np.append(np.insert(self.units_of[:-1], number, state.units), 0).astype(np.int32)
            self._number[id(state)] = number
        return number

    def _within_words(self, pending: Pending, i: int, data: bytes, end: int, begun: np.ndarray) -> int:
        """The state behind a pending part that ends at byte `end`, where words of `ignore_merges` begin at the bytes `begun`."""
        number, begin = int(pending.state_I[i]), int(pending.begin_I[i])
        simple = self.states[number].simple
        if simple and int(begun[0]) == begin and data[begin:end] in self._words.every:
            return NO_STATE  # a cut behind it changes the tokens before the boundary
        left = self.classes(pending, i)
        folded = Folded(self.segmenter.splitter, left, int(pending.first_I[i]), int(pending.unit_I[i]), pending.runs)
        units = [folded.place(unit) for unit in np.searchsorted(pending.byte_of, begun).tolist()]
        found = [(u, data[b:end]) for u, b in zip(units, begun.tolist(), strict=True) if u is not None]
        state = self._words.behind(self.states[number], found)
        return NO_STATE if state is None else self.number_of(state)
