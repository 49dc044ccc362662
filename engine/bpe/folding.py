"""Where the cuts of a pending part lie whose long runs were cut short: units of the short string -> units of the text.

`Splitter.fold` (bpe/pretokenizer.py) cuts runs of one class, so that thousands of `=` or spaces are one short string, and what
is known of it is known of all of them. A cut inside such a run keeps its distance to the nearer end of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from engine.bpe.pretokenizer import Splitter


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
            return max(int(self._begins[end - 1]), start)
        last = chr(self._codes[stop - 1])
        if end == stop and last != blanks.plain:
            return end - 1
        kept = -1 if last in blanks.sticky else int(self._last_sticky[stop - 2])
        if kept < start:
            return start
        return kept if end - 1 == kept else kept + 1 if end - 1 > kept else start

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
        ends = np.where(self._among("every"), len(self._codes), np.arange(len(self._codes)))
        return np.minimum.accumulate(ends[::-1])[::-1]

    @cached_property
    def _last_sticky(self) -> np.ndarray:
        """For each unit the last sticky one (`Blanks`) up to it, -1 for none."""
        return np.maximum.accumulate(np.where(self._among("sticky"), np.arange(len(self._codes)), -1))

    def _among(self, name: str) -> np.ndarray:
        return np.isin(self._codes, [ord(unit) for unit in getattr(self.splitter.blanks, name)])


def unfold(splitter: Splitter, left: str, cuts: Sequence[int], start: int, unit: int, runs: Runs) -> tuple[int, ...]:
    """Units of the text at which the cuts of `left` (rising) lie. left: what `fold` made of the units start .. unit of the
    text. runs: those of the text. Time: the runs behind the first cut."""
    if unit - start == len(left) or not cuts:
        return tuple(start + c for c in cuts)
    left = splitter.even(splitter.disown(left))
    out, stop, end = list[int](), len(left), unit  # the runs behind these two are passed: in `left`, in the text
    for cut in reversed(cuts):
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


def fold_unit(splitter: Splitter, left: str, place: int, start: int, unit: int, runs: Runs) -> int | None:
    """The other way round: the unit of `left` for the unit `place` of the text; None inside a run that was cut short, where
    no cut lies."""
    left, stop, end = splitter.even(splitter.disown(left)), len(left), unit
    while place < end:
        first = _run_before(left, stop)
        begin, half = runs.begin(end, start, unit), splitter.kept_run // 2
        if place >= begin:
            if end - begin == stop - first or place - begin <= half:
                return first + place - begin
            return stop - (end - place) if end - place < half else None
        stop, end = first, begin
    return stop


def _run_before(left: str, stop: int) -> int:
    """Where the run of equal units begins that ends at `stop`."""
    first = stop - 1
    while first and left[first - 1] == left[stop - 1]:
        first -= 1
    return first
