"""Parts of the order of an epoch: what is still to be given, cut into shares, and joined again when the ranks become others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Spans:
    """Documents of an epoch by their places in its order.

    bounds  first and last + 1 of each span, rising, disjoint and none empty
    begun   place -> pieces of that document that are used already (packed batches cut long documents into pieces)

    A document's *number* is its place among the documents of the spans: what cursors and shares count.
    """

    bounds: tuple[tuple[int, int], ...]
    begun: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def whole(cls, documents: int) -> Spans:
        return cls(((0, documents),) if documents else ())

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.bounds)

    def cut(self, first: int, last: int) -> Spans:
        """The documents with the numbers first .. last - 1."""
        kept, before = [], 0
        for start, stop in self.bounds:
            a, b = max(start, start + first - before), min(stop, start + last - before)
            if a < b:
                kept.append((a, b))
            before += stop - start
        inside = {place: pieces for place, pieces in self.begun.items() if any(a <= place < b for a, b in kept)}
        return Spans(tuple(kept), inside)

    def share(self, number: int, of: int) -> Spans:
        """One of `of` parts that are equal up to one document, in their order."""
        return self.cut(self.size * number // of, self.size * (number + 1) // of)

    def numbers(self, places_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[N] the number of the document at each place; -1: in none of the spans."""
        if not self.bounds:
            return np.full(len(places_N), -1)
        starts, stops = np.array(self.bounds, np.int64).T
        before = np.cumsum(stops - starts) - (stops - starts)
        at = np.searchsorted(starts, places_N, "right") - 1
        inside = (at >= 0) & (places_N < stops[at])
        return np.where(inside, before[at] + places_N - starts[at], -1)

    def begun_numbers(self) -> dict[int, int]:
        """Number -> pieces used."""
        places = np.array([*self.begun], np.int64)
        return dict(zip(self.numbers(places).tolist(), self.begun.values(), strict=True))

    def behind(self, document: int, piece: int) -> Spans:
        """What is left behind a cursor: the documents from that number on, `piece` pieces of the first of them used."""
        left = self.cut(document, self.size)
        return Spans(left.bounds, {**left.begun, left.bounds[0][0]: piece}) if piece else left

    @classmethod
    def joined(cls, parts: Iterable[Spans]) -> Spans:
        """All documents of parts that have none in common. Raises ValueError where two have."""
        parts = list(parts)
        bounds: list[tuple[int, int]] = []
        for start, stop in sorted(bound for part in parts for bound in part.bounds):
            if bounds and start < bounds[-1][1]:
                raise ValueError(
                    f"documents {start} to {min(stop, bounds[-1][1])} of the order stand in two of the parts"
                )
            if bounds and start == bounds[-1][1]:
                start = bounds.pop()[0]
            bounds.append((start, stop))
        return cls(tuple(bounds), {place: n for part in parts for place, n in part.begun.items()})

    def to_json(self) -> dict[str, Any]:
        return {"spans": [list(bound) for bound in self.bounds], "begun": [list(item) for item in self.begun.items()]}

    @classmethod
    def from_json(cls, spans: Sequence[Sequence[int]], begun: Sequence[Sequence[int]]) -> Spans:
        return cls(tuple((int(a), int(b)) for a, b in spans), {int(place): int(n) for place, n in begun})
