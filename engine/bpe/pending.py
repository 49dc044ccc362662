"""What is pending at a byte of a text: the part behind the last cut that is certain, and how it may turn out to be cut.

In: a byte string and a splitter. Out: `CutText`, which says for any byte where the last certain cut before it lies
(docs/design.md, definition 5), and `PendingCuts`, which says how what lies behind that cut may turn out to be cut (lemma 7).
Teacher and student use the first, the teacher's contexts the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.continuations import Probe, Probes, units_of_tokens
from engine.bpe.folding import Folded, Runs, unfold
from engine.bpe.pretokenizer import Splitter
from engine.bpe.unit_classes import NO_UNIT
from engine.bpe.utf8 import characters_from, is_continuation
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import BadDocument


def too_long(splitter: Splitter, at: int) -> BadDocument:
    """The error for a pending part that begins at this byte of its document and is longer than the splitter's bound."""
    return BadDocument(
        "too_long",
        f"what is not cut for certain from byte {at} on is longer than {splitter.longest_pending} units, with long runs of one "
        "kind counted as short ones",
    )


class PendingPart(NamedTuple):
    """What is pending at a byte. start: the unit where it begins; unit: how many whole units lie before the byte; begin: its
    first byte. left: its classes as far as they matter (`Splitter.that_matters`): long runs are cut short."""

    start: int
    unit: int
    begin: int
    left: str


class PendingWay(NamedTuple):
    """All ways of a pending part with the same cuts (bpe/continuations.py) as one. cuts: units inside the pending part, rising.
    may_end: its last piece may end at the place. may_go_on: it may go on past the place. Neither: behind the last cut an added
    text begins that reaches past the place, so that no token ends there."""

    cuts: tuple[int, ...]
    may_end: bool
    may_go_on: bool


@dataclass(frozen=True, eq=False)
class CutText:
    """A byte string as class units, with what is pending at any byte. Teacher and student have one each."""

    splitter: Splitter
    data: bytes
    units: str
    unit_at: np.ndarray  # int32 [n+1]: number of whole units in data[:b]
    byte_of: np.ndarray  # int32 [units+1]: byte at which unit u begins
    shift: int = 0  # of `data` in the document, for messages

    def pendings(self, places: Iterable[int]) -> list[tuple[int, int, int]]:
        """For each byte (rising): (unit where the pending part begins, unit count before the byte, its first byte)."""
        return [part[:3] for part in self.parts(places)]

    def parts(self, places: Iterable[int]) -> list[PendingPart]:
        """What is pending at each byte (rising): all cuts up to it are certain whatever follows data[:byte]. O(1) a byte, however
        much is pending. Raises BadDocument("too_long")."""
        asked = np.fromiter(places, np.int64)
        splitter, out, start, at, left = self.splitter, list[PendingPart](), 0, 0, ""
        for unit in self.unit_at[asked].tolist():
            left, at = left + self.units[at:unit], unit
            while ends := splitter.certain(left):
                start = self.true_units(left, ends[-1:], start, unit)[0]
                left = left[ends[-1] :]
            left = splitter.that_matters(left)
            if len(left) > splitter.longest_pending:
                raise too_long(splitter, self.shift + int(self.byte_of[start]))
            out.append(PendingPart(start, unit, int(self.byte_of[start]), left))
        return out

    def true_units(self, left: str, cuts: Sequence[int], start: int, unit: int) -> tuple[int, ...]:
        """Units of the text for units of a pending part (start, unit, left as in `PendingPart`)."""
        if self.splitter.byte_units:  # the end of what is pending, as it is
            return tuple(unit - len(left) + c for c in cuts)
        if unit - start == len(left):
            return tuple(start + c for c in cuts)
        return unfold(self.splitter, left, cuts, start, unit, self._runs)

    def folded_unit(self, left: str, place: int, start: int, unit: int) -> int | None:
        """The unit of a pending part's classes for a unit of the text, None where no cut of it can lie (bpe/folding.py)."""
        return Folded(self.splitter, left, start, unit, self._runs).place(place)

    @cached_property
    def _runs(self) -> Runs:
        return Runs(self.splitter, np.frombuffer(self.units.encode("utf-32-le"), np.uint32))


def cut_text(splitter: Splitter, data: bytes, *, before: str | None = None, shift: int = 0) -> CutText:
    """Prepare a byte string. O(n). `before` as in `Splitter.canonical`; `shift`: where `data` begins in its document."""
    units = splitter.canonical(splitter.classes(data), before)
    byte_of = starts_of_units(splitter, data)
    if splitter.byte_units:
        return CutText(splitter, data, units, byte_of, byte_of, shift)
    unit_at = np.searchsorted(byte_of, np.arange(len(data) + 1), side="right").astype(np.int32) - 1
    return CutText(splitter, data, units, unit_at, byte_of, shift)


def starts_of_units(splitter: Splitter, data: bytes) -> np.ndarray:
    """int32 [units+1]: the byte at which each unit of valid UTF-8 begins, and the end."""
    if splitter.byte_units or data.isascii():
        return np.arange(len(data) + 1, dtype=np.int32)
    raw = np.frombuffer(data, np.uint8)
    return np.append(np.flatnonzero(~is_continuation(raw)), len(data)).astype(np.int32)


class PendingCuts:
    """The ways to cut a pending part, by its classes, remembered. Not thread-safe.

    Where a token ends at the place, the added texts before it are those of the text that ends there (bpe/added_texts.py): each
    closes what is before it, and what is left behind the last of them is tried with the probes of `Ways`. Beside these ways
    stand those in which an added text lies across the place: what is before it ends as a text does.
    """

    def __init__(self, vocabulary: Vocabulary, splitter: Splitter) -> None:
        self.vocabulary, self.splitter = vocabulary, splitter
        self._ways: BoundedCache[tuple[str, bool], list[PendingWay]] = BoundedCache()
        self._partials: dict[bytes, tuple[str, ...]] = {}  # as many as there are beginnings of characters

    def forget(self) -> None:
        """Empty the cache that grows with the text."""
        self._ways.clear()

    def ways(self, text: CutText, place: int, start: int, unit: int, left: str | None = None) -> list[PendingWay]:
        """Ways in which the pending part may turn out to be cut, the cuts as units of the text. Arguments: a byte, and of
        `CutText.parts` for it where the pending part begins, how many whole units lie before the byte, and its classes (None: all
        of them)."""
        rest = int(text.byte_of[unit])
        pending = text.units[start:unit] if left is None else left

        def true_units(cuts: tuple[int, ...]) -> tuple[int, ...]:
            return text.true_units(pending, cuts, start, unit)

        if rest == place:
            return [PendingWay(true_units(w.cuts), *w[1:]) for w in self._known(pending, False)]
        found: dict[tuple[int, ...], tuple[bool, bool]] = {}
        # the byte lies inside a character: its unit belongs to what is pending, and its bytes so far begin characters of
        # other classes too
        ahead = self._units_from(text.data[rest:place])
        for whole in dict.fromkeys(self.splitter.join(pending, u) for u in ahead):
            for cuts, ends, goes in self._known(whole, True):
                before = found.get(cuts, (False, False))
                found[cuts] = (before[0] or ends, before[1] or goes)
        return [PendingWay(true_units(cuts), *flags) for cuts, flags in found.items()]

    def _known(self, pending: str, inside: bool) -> list[PendingWay]:
        known = self._ways.get((pending, inside))
        if known is None:
            known = self._ways[pending, inside] = self._find(pending, inside)
        return known

    def _find(self, pending: str, inside: bool) -> list[PendingWay]:
        """inside: the place lies inside the last unit, so that no piece ends there."""
        if not pending or (self.splitter.byte_units and not self.splitter.added):
            return [PendingWay((), not inside, True)]  # lemma 6: cuts between bytes that are there are certain
        n, splitter, found = len(pending), self.splitter, dict[tuple[int, ...], list[bool]]()

        def note(cuts: tuple[int, ...], *, ends: bool, goes: bool) -> None:
            flags = found.setdefault(cuts, [False, False])
            flags[0] |= ends
            flags[1] |= goes

        added, units = splitter.added_texts, splitter.own(pending) if splitter.added else ""
        matches = added.matches(units)
        across = {begin for begin in added.across(units) if begin < n}
        rest = matches[-1][1] if matches else 0
        if rest == n and inside:
            across.add(matches[-1][0])
        elif rest == n:
            note(tuple(e for e in splitter.pieces(pending) if e < n), ends=True, goes=False)
        elif splitter.byte_units:
            note(tuple(e for e in splitter.pieces(pending) if e < n), ends=not inside, goes=True)
        else:
            before = tuple(e for e in splitter.pieces(pending) if e <= rest) if rest else ()
            behind = splitter.disown(splitter.join(NO_UNIT, pending[rest:])[1:] if rest else pending)
            for probe in self._continued(behind):
                seam = len(behind) in probe.ends and not inside
                cuts = (*before, *(rest + e for e in probe.ends if e < len(behind)))
                note(cuts, ends=seam, goes=not seam)
        for begin in across:
            if begin:  # else what is before it is the trunk
                note(splitter.pieces(pending[:begin]), ends=False, goes=False)
        return [PendingWay(cuts, ends, goes) for cuts, (ends, goes) in found.items()]

    def _continued(self, text: str) -> Iterator[Probe]:
        for one in self._probes.one(text):
            yield one
            if not one.settled:
                yield from self._probes.two(one)

    @cached_property
    def _probes(self) -> Probes:
        units = units_of_tokens(self.vocabulary, self.splitter)
        return Probes(self.splitter, tuple(sorted({self.splitter.disown(u) for u in units})))

    def _units_from(self, partial: bytes) -> tuple[str, ...]:
        """The unit classes of all characters that begin with these bytes."""
        known = self._partials.get(partial)
        if known is None:
            units = self.splitter.classes("".join(characters_from(partial)).encode("utf-8"))
            known = self._partials[partial] = tuple(dict.fromkeys(units))
        return known
