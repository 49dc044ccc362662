"""Where the cuts of a pending part lie whose long runs were cut short: units of the short string -> units of the text.

`Splitter.fold` (bpe/pretokenizer.py) cuts runs of one class, so that thousands of `=` or spaces are one short string, and what
is known of it is known of all of them. A cut inside such a run keeps its distance to the nearer end of the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.bpe.pretokenizer import Splitter


def run_begins(splitter: Splitter, codes: np.ndarray) -> np.ndarray:
    """int64 [n]: for each unit of a class string the unit at which its run of equal units begins, added texts disregarded. codes:
    the classes as numbers."""
    codes = splitter.disowned(codes)
    begins = np.arange(len(codes))
    begins[1:][codes[1:] == codes[:-1]] = 0
    return np.maximum.accumulate(begins)


def unfold(
    splitter: Splitter, left: str, cuts: Sequence[int], start: int, unit: int, begins: np.ndarray
) -> tuple[int, ...]:
    """Units of the text at which the cuts of `left` (rising) lie. left: what `fold` made of the units start .. unit of the
    text. begins: `run_begins` of the text. Time: the runs behind the first cut."""
    if unit - start == len(left) or not cuts:
        return tuple(start + c for c in cuts)
    left = splitter.disown(left)
    out, stop, end = list[int](), len(left), unit  # the runs behind these two are passed: in `left`, in the text
    for cut in reversed(cuts):
        while cut < stop:
            first = stop - 1
            while first and left[first - 1] == left[stop - 1]:
                first -= 1
            begin = max(int(begins[end - 1]), start)
            if cut > first:
                is_near_begin = end - begin == stop - first or cut - first <= splitter.kept_run // 2
                out.append(begin + cut - first if is_near_begin else end - (stop - cut))
                break
            stop, end = first, begin
        else:
            out.append(end)
    return tuple(reversed(out))


def fold_unit(splitter: Splitter, left: str, place: int, start: int, unit: int, begins: np.ndarray) -> int | None:
    """The other way round: the unit of `left` for the unit `place` of the text; None inside a run that was cut short, where
    no cut lies."""
    left, stop, end = splitter.disown(left), len(left), unit
    while place < end:
        first = stop - 1
        while first and left[first - 1] == left[stop - 1]:
            first -= 1
        begin, half = max(int(begins[end - 1]), start), splitter.kept_run // 2
        if place >= begin:
            if end - begin == stop - first or place - begin <= half:
                return first + place - begin
            return stop - (end - place) if end - place < half else None
        stop, end = first, begin
    return stop
