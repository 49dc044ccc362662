"""Stage 4a: what is pending at a byte of a text, and the ways in which a continuation can cut it.

In: a byte string and a splitter. Out: `CutText`, which says for any byte where the last certain cut before it lies
(docs/design.md, definition 5), and `PendingCuts`, which says how what lies behind that cut may turn out to be cut, tried
on continuations of two characters (the premise of lemma 7). Both sides use the first, the teacher's contexts the second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.bpe.pretokenizer import Splitter
from engine.bpe.utf8 import characters_from
from engine.bpe.vocabulary import Vocabulary
from schemas.errors import BadDocument

_LONGEST_PENDING = 4096  # units; one pre-token longer than this has quadratic cost and is nobody's training text

# (unit cuts inside the pending part, whether it may end whole at the place, whether it may go on past the place)
Way = tuple[tuple[int, ...], bool, bool]


@dataclass(frozen=True, eq=False)
class CutText:
    """A byte string as class units, with what is pending at any byte. Shared by the teacher's and the student's side."""

    splitter: Splitter
    data: bytes
    units: str
    unit_at: np.ndarray  # int32 [n+1]: number of whole units in data[:b]
    byte_of: np.ndarray  # int32 [units+1]: byte at which unit u begins
    shift: int = 0  # of `data` in the document, for messages

    def pendings(self, places: Iterable[int]) -> list[tuple[int, int, int]]:
        """For each byte (rising): (unit where the pending part begins, unit count before the byte, its first byte).

        All cuts up to the pending part are certain whatever follows data[:byte].
        """
        asked = np.fromiter(places, np.int64)
        out, start = [], 0
        for unit in self.unit_at[asked].tolist():
            while True:
                if unit - start > _LONGEST_PENDING:
                    at = self.shift + int(self.byte_of[start])
                    raise BadDocument("too_long", f"one pre-token is longer than {_LONGEST_PENDING} units at byte {at}")
                ends = self.splitter.certain(self.units[start:unit])
                if not ends:
                    break
                start += ends[-1]
            out.append((start, unit, int(self.byte_of[start])))
        return out


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
    return np.append(np.flatnonzero((raw & 0xC0) != 0x80), len(data)).astype(np.int32)


class PendingCuts:
    """The ways to cut a pending part, by its classes; remembered. `forget` bounds what is remembered."""

    def __init__(self, vocabulary: Vocabulary, splitter: Splitter) -> None:
        self.vocabulary, self.splitter = vocabulary, splitter
        self._ways: dict[tuple[str, bool], list[Way]] = {}
        self._units: list[str] | None = None
        self._partials: dict[bytes, tuple[str, ...]] = {}

    def forget(self) -> None:
        """Empty the caches that grow with the text."""
        self._ways.clear()

    def ways(self, text: CutText, place: int, start: int, unit: int) -> list[Way]:
        """Ways in which the pending part may turn out to be cut, the cuts as units of the text."""
        rest = int(text.byte_of[unit])
        pending = text.units[start:unit]
        if rest == place:
            return [(tuple(start + c for c in cuts), ends, goes) for cuts, ends, goes in self._known(pending, False)]
        found: dict[tuple[int, ...], tuple[bool, bool]] = {}
        # the byte lies inside a character: its unit belongs to what is pending, and its bytes so far begin characters of
        # other classes too
        ahead = self._units_from(text.data[rest:place])
        for whole in dict.fromkeys(self.splitter.join(pending, u) for u in ahead):
            for cuts, ends, goes in self._known(whole, True):
                before = found.get(cuts, (False, False))
                found[cuts] = (before[0] or ends, before[1] or goes)
        return [(tuple(start + c for c in cuts), ends, goes) for cuts, (ends, goes) in found.items()]

    def _known(self, pending: str, inside: bool) -> list[Way]:
        known = self._ways.get((pending, inside))
        if known is None:
            known = self._ways[pending, inside] = self._find(pending, inside)
        return known

    def _find(self, pending: str, inside: bool) -> list[Way]:
        if self.splitter.byte_units or not pending:
            return [((), not inside, True)]
        found: dict[tuple[int, ...], list[bool]] = {}

        def note(ends: tuple[int, ...]) -> None:
            seam = len(pending) in ends and not inside
            flags = found.setdefault(tuple(e for e in ends if e < len(pending)), [False, False])
            flags[0] |= seam
            flags[1] |= not seam

        note(self.splitter.pieces(pending))
        for one in self._followed(pending):
            ends = self.splitter.certain(one)
            if ends and ends[-1] >= len(pending):
                note(ends)  # whatever comes second, nothing changes up to the place
                continue
            for text in (one, *self._followed(one)):
                note(self.splitter.pieces(text))
        return [(cuts, ends, goes) for cuts, (ends, goes) in found.items()]

    def _followed(self, units: str) -> dict[str, None]:
        """The class strings that one more character can make of these."""
        return dict.fromkeys(self.splitter.join(units, unit) for unit in self._all_units())

    def _units_from(self, partial: bytes) -> tuple[str, ...]:
        """The unit classes of all characters that begin with these bytes."""
        known = self._partials.get(partial)
        if known is None:
            units = self.splitter.classes("".join(characters_from(partial)).encode("utf-8"))
            known = self._partials[partial] = tuple(dict.fromkeys(units))
        return known

    def _all_units(self) -> list[str]:
        """All classes of single characters that the vocabulary's tokens begin with. Continuations of two of them are tried:
        no pattern of the dialect in use looks further than that (three characters in a contraction, the first of which
        is pending); tested on real continuations."""
        if self._units is None:
            heads = {b.decode("utf-8", "ignore")[:2] for b in self.vocabulary.token_bytes if b}
            if not self.splitter.byte_units:
                self.splitter.learn(set("".join(heads)))
            pairs = {self.splitter.canonical(self.splitter.classes(h.encode())) for h in heads if h}
            self._units = sorted({unit for pair in pairs for unit in pair})
        return self._units
