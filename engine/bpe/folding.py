"""Where the cuts of a pending part lie whose long runs were cut short: units of the short string -> units of the text.

`Splitter.fold` (bpe/pretokenizer.py) cuts runs of one class, so that thousands of `=` or spaces are one short string, and what
is known of it is known of all of them. A cut inside such a run keeps its distance to the nearer end of the run. Units at the end
that an added text may still own are all there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from engine.bpe.blanks import Blanks
from engine.bpe.pretokenizer import Splitter
from engine.bpe.signs import Signs


class Runs:
    """The runs of a text, found when they are first asked for. codes: its classes as numbers."""

    def __init__(self, splitter: Splitter, codes: np.ndarray) -> None:
        self.splitter, self._given = splitter, codes

    def begin(self, end: int, start: int, unit: int) -> int:
        """Where the run begins that ends at `end` in the pending part start .. unit, as `Splitter.even` leaves it."""
        blanks, stop = self.splitter.blanks, start
        if blanks is not None:
            stop = min(int(self._stretch_end[start]), unit)
        if blanks is None or end > stop or stop - start < 2:
            return self._begin_outside_blanks(end, start, unit)
        last = chr(self._codes[stop - 1])
        if end == stop and last != blanks.plain:
            return end - 1
        kept = -1 if last in blanks.sticky else int(self._last_sticky[stop - 2])
        if kept < start:
            return start
        return kept if end - 1 == kept else kept + 1 if end - 1 > kept else start

    def _begin_outside_blanks(self, end: int, start: int, unit: int) -> int:
        signs, plainly = self.splitter.signs, max(int(self._begins[end - 1]), start)
        if signs is None:
            return plainly
        first = start + (chr(self._codes[start]) in signs.leads)
        stop = min(int(self._sign_end[first]), unit) if first < unit else first
        if stop - first < 3 or not first < end <= stop:
            return plainly
        if end == stop and chr(self._codes[end - 1]) != signs.plain:
            return end - 1
        return first if end - 1 == first or chr(self._codes[first]) == signs.plain else first + 1

    @cached_property
    def _codes(self) -> np.ndarray:
        """Those of added texts as others with the same answers."""
        return self.splitter.disowned(self._given)

    @cached_property
    def _begins(self) -> np.ndarray:
        """For each unit the unit at which its run of equal units begins."""
        begins = np.arange(len(self._codes))
        begins[1:][self._codes[1:] == self._codes[:-1]] = 0
        return np.maximum.accumulate(begins)

    @cached_property
    def _stretch_end(self) -> np.ndarray:
        """For each unit the end of its stretch of white space, the unit itself outside of one."""
        return self._ends(self.splitter.blanks)

    @cached_property
    def _sign_end(self) -> np.ndarray:
        """For each unit the end of its stretch of signs, the unit itself outside of one."""
        return self._ends(self.splitter.signs)

    def _ends(self, alike: Blanks | Signs | None) -> np.ndarray:
        every = [ord(unit) for unit in alike.every] if alike else []
        ends = np.where(np.isin(self._codes, every), len(self._codes), np.arange(len(self._codes)))
        return np.minimum.accumulate(ends[::-1])[::-1]

    @cached_property
    def _last_sticky(self) -> np.ndarray:
        """For each unit the last sticky one (`Blanks`) up to it, -1 for none."""
        sticky = [ord(unit) for unit in self.splitter.blanks.sticky] if self.splitter.blanks else []
        return np.maximum.accumulate(np.where(np.isin(self._codes, sticky), np.arange(len(self._codes)), -1))


def unfold(splitter: Splitter, left: str, cuts: Sequence[int], start: int, unit: int, runs: Runs) -> tuple[int, ...]:
    """Units of the text at which the cuts of `left` (rising) lie. left: what `fold` made of the units start .. unit of the
    text. runs: those of the text. Time: the runs behind the first cut."""
    if unit - start == len(left) or not cuts:
        return tuple(start + c for c in cuts)
    left, unit = _past(splitter, left, unit)
    out, stop, end = list[int](), len(left), unit  # the runs behind these two are passed: in `left`, in the text
    for cut in reversed(cuts):
        if cut > len(left):
            out.append(unit + cut - len(left))
            continue
        while cut < stop:
            first = _run_before(left, stop)
            begin = runs.begin(end, start, unit)
            if cut > first:
                is_near_begin = end - begin == stop - first or cut - first <= splitter.kept_run // 2
                out.append(begin + cut - first if is_near_begin else end - (stop - cut))
                break
            stop, end = first, begin
        else:
            out.append(end)
    return tuple(reversed(out))


class Folded:
    """The other way round, for one pending part: units of the text -> units of `left`. Remembers the runs that it has passed."""

    def __init__(self, splitter: Splitter, left: str, start: int, unit: int, runs: Runs) -> None:
        """left: what `fold` made of the units start .. unit of the text. runs: those of the text."""
        self._left, self._unit = _past(splitter, left, unit)
        self._start, self._half, self._runs = start, splitter.kept_run // 2, runs
        self._passed = list[
            tuple[int, int, int, int]
        ]()  # from the last one on: begin and end in the text, and in `left`

    def place(self, place: int) -> int | None:
        """The unit of `left` for a unit of the text; None inside a run that was cut short, where no cut lies."""
        at, end, stop = 0, self._unit, len(self._left)
        if place > end:
            return stop + place - end
        while place < end:
            if at == len(self._passed):
                first, begin = _run_before(self._left, stop), self._runs.begin(end, self._start, self._unit)
                self._passed.append((begin, end, first, stop))
            begin, end, first, stop = self._passed[at]
            if place >= begin:
                if end - begin == stop - first or place - begin <= self._half:
                    return first + place - begin
                return stop - (end - place) if end - place < self._half else None
            at, end, stop = at + 1, begin, first
        return stop


def _past(splitter: Splitter, left: str, unit: int) -> tuple[str, int]:
    """A folded pending part and the unit of the text where it ends, without what an added text may still own."""
    to_come = splitter.units_to_come(left)
    return splitter.even(splitter.disown(left[: len(left) - to_come])), unit - to_come


def _run_before(left: str, stop: int) -> int:
    """Where the run of equal units begins that ends at `stop`."""
    first = stop - 1
    while first and left[first - 1] == left[stop - 1]:
        first -= 1
    return first
