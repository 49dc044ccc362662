"""What a student has pending at every place of a text, in one pass over the text.

In: a text as class units (bpe/pretokenizer.py). Out: for each unit the number of a pending part (its class string behind the
last certain cut) and where it begins. What a pending part becomes with one more unit depends on the two alone (definition 5,
lemma 5), so it is asked of the splitter once and kept in a table; compiled code walks the table. The slow twin is
`CutText.pendings` (bpe/pending.py).

Letters: S pending parts met so far, C classes of units.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np

from engine.bpe.pending import starts_of_units, too_long
from engine.bpe.pretokenizer import Splitter
from engine.compiled.walk_kernels import forget_units, walk_units

UNKNOWN = -1
SAME = -1
"""In `_size`: nothing was cut off, the pending part is one unit longer."""
_MOST_ENTRIES = 8_000_000  # of the table, at 8 bytes; given up between two texts


class PendingAutomaton:
    """The pending parts of one splitter. Not thread-safe.

    strings: class string of each pending part; 0 is the empty one. With bytes as units only its end, as far as later cuts depend
    on it. cleared: how often all numbers were given up.
    """

    def __init__(self, splitter: Splitter) -> None:
        self.splitter, self.cleared = splitter, -1
        self._forget = np.full((32, 32), UNKNOWN, np.int32)  # (unit before, unit) -> what is left of the unit
        self.clear()

    def clear(self) -> None:
        """Give up all numbers."""
        self.strings, self._number = [""], {"": 0}
        self._next = np.full((64, 32), UNKNOWN, np.int32)  # (pending part, unit) -> pending part
        self._size = np.zeros((64, 32), np.int32)  # its units, SAME where it only grew
        self.cleared += 1

    def walk(self, data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int32 [n+1], [n+1], [n] for a text of n units: number of the pending part before each unit, the unit where it begins;
        the units. Raises BadDocument("too_long")."""
        if self._next.size > _MOST_ENTRIES:
            self.clear()
        units = np.frombuffer(data, np.uint8).astype(np.int32) if self.splitter.byte_units else self._units(data)
        state, begin = np.zeros(len(units) + 1, np.int32), np.zeros(len(units) + 1, np.int32)
        at = 0
        while True:
            at = walk_units(units, self._next, self._size, at, state, begin)
            if at < 0:
                last = int(state[-1])  # no unit behind it asks
                if len(self.strings[last]) > self.splitter.longest_pending:
                    raise too_long(self.splitter, int(starts_of_units(self.splitter, data)[begin[-1]]))
                return state, begin, units
            is_followed = self._fill(int(state[at]), int(units[at]))
            # new parts would be made without end
            if len(self.strings[int(state[at])]) > self.splitter.longest_pending or not is_followed:
                raise too_long(self.splitter, int(starts_of_units(self.splitter, data)[begin[at]]))

    def _units(self, data: bytes) -> np.ndarray:
        """int32 [n]: what `Splitter.canonical` makes of the classes of a text."""
        classes = self.splitter.classes(data)
        units = np.frombuffer(classes.encode("utf-32-le"), np.int32).copy()
        if len(units):
            self._forget = _fitted(self._forget, int(units.max()), int(units.max()))
        at = 1
        while True:
            at = forget_units(units, self._forget, at)
            if at < 0:
                return units
            before, unit = int(units[at - 1]), int(units[at])
            left = ord(self.splitter.join(chr(before), chr(unit))[1])
            self._forget[before, unit] = left
            self._forget = _fitted(self._forget, left, left)

    def _fill(self, state: int, unit: int) -> bool:
        """One entry of the table: the splitter is asked. False where a cut lies between two runs that were cut short, so that
        nobody can say where: no pattern that is known does that."""
        splitter = self.splitter
        rest = pending = self.strings[state] + chr(unit)
        while ends := splitter.certain(rest):
            rest = rest[ends[-1] :]
        kept = splitter.that_matters(rest)
        size = SAME if len(rest) == len(pending) else self._size_of(state, len(pending), len(pending) - len(rest))
        if size is None:
            return False
        number = self._number.get(kept)
        if number is None:
            number = self._number[kept] = len(self.strings)
            self.strings.append(kept)
        self._next = _fitted(self._next, max(number, state), unit)
        self._size = _fitted(self._size, max(number, state), unit)
        self._next[state, unit] = number
        self._size[state, unit] = size
        return True

    def _size_of(self, state: int, size: int, cut: int) -> int | None:
        """What `_size` holds where a pending part is cut with one more unit. size: its units with that one. cut: the last that is
        certain."""
        splitter, left, kept = self.splitter, self.strings[state], self.splitter.kept_run
        at, before, behind = 0, False, False
        if splitter.byte_units or len(left) < kept:
            return size - cut
        for _, run in groupby(left[: len(left) - splitter.units_to_come(left)]):
            length = len(list(run))
            if length >= kept:  # perhaps longer in the text
                is_behind = cut - at <= kept // 2
                before, behind = before or not is_behind, behind or is_behind
            at += length
        if before and behind:
            return None
        return -2 - cut if behind else size - cut


def _fitted(table: np.ndarray, row: int, column: int) -> np.ndarray:
    """The table with room for this entry; new ones are UNKNOWN."""
    rows, columns = table.shape
    if row < rows and column < columns:
        return table
    rows, columns = max(rows, 2 * row if row >= rows else 0), max(columns, 2 * column if column >= columns else 0)
    out = np.full((rows, columns), UNKNOWN, np.int32)
    out[: table.shape[0], : table.shape[1]] = table
    return out
