"""The units of a text as classes: characters with the same answers to all that a pre-tokenizer asks are one class.

In: bytes, and the one-character predicates of the patterns (`\\p{L}`, `\\s`, `'`, ...). Out: class strings, one code point a
unit, so that `hello` and `world` are one string. An answer that no pattern can ask at a place is forgotten there.
SentencePiece tokenizers have bytes as units, which are their own classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from engine.bpe.added_texts import AddedTexts
from engine.bpe.utf8 import valid_utf8_prefix

_BROKEN_OWN = "\ufdd0"  # a code point that is no character; keeps the class below apart from U+FFFD itself
NO_UNIT = "\0"  # the class of no character: answers no predicate, belongs to no added text
_BROKEN = "\ufffd"  # stands for a character whose bytes are not all known yet


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitClasses:
    """The classes of one pre-tokenizer; they are made while texts are read. Not thread-safe.

    A class is `chr(number)`. For characters: masks[number], bit p set where predicate p of the patterns holds; owns[number], the
    character itself where added texts need it, else "". added: added texts, longest first. needs_before: (bit q, mask): q is
    asked only after a unit with a bit of the mask.
    """

    byte_units: bool
    predicates: tuple[Any, ...] = ()
    needs_before: tuple[tuple[int, int], ...] = ()
    added: tuple[str, ...] = ()
    masks: list[int] = field(default_factory=lambda: [0])
    owns: list[str] = field(default_factory=lambda: [""])
    _forgotten: dict[tuple[str, str], str] = field(default_factory=dict)  # (unit before, unit) -> its canonical unit
    _by_answers: dict[tuple[int, str], str] = field(default_factory=dict)  # (mask, own) -> class
    _named: set[str] = field(default_factory=set)  # classes of one character of added texts, and of an incomplete one

    def classes(self, data: bytes) -> str:
        """Bytes -> class string, one character a unit. An incomplete character at the end is one unit of class U+FFFD."""
        if self.byte_units:
            return data.decode("latin-1")
        whole = valid_utf8_prefix(data)
        known = data[:whole].decode("utf-8").translate(self._table)
        return known + self.broken if whole < len(data) else known

    @cached_property
    def broken(self) -> str:
        """The class of an incomplete character: cut like U+FFFD when the text ends there, never taken as certain."""
        mask = self.masks[ord(self._classify(_BROKEN))]
        return self._class_with(mask, _BROKEN_OWN)

    @cached_property
    def _table(self) -> dict[int, str]:
        splitter = self

        class Table(dict[int, str]):
            def __missing__(self, code: int) -> str:
                self[code] = splitter._classify(chr(code))
                return self[code]

        return Table()

    def _classify(self, char: str) -> str:
        mask = sum(1 << i for i, p in enumerate(self.predicates) if not p.pre_tokenize_str(char))
        return self._class_with(mask, char if char in self._added_characters else "")

    def learn(self, chars: set[str]) -> None:
        """Classify these characters at once: `classes` would ask the library about each one by itself. Characters as
        units."""
        new = [c for c in sorted(chars) if ord(c) not in self._table]
        if not new:
            return
        holds = np.ones((len(self.predicates), len(new)), bool)
        for row, predicate in zip(holds, self.predicates, strict=True):
            for _, (begin, stop) in predicate.pre_tokenize_str("\n".join(new)):  # what does not match is left, in runs
                row[(begin + 1) // 2 : (stop + 1) // 2] = False
        for char, bits in zip(new, np.packbits(holds, axis=0, bitorder="little").T, strict=True):
            own = char if char in self._added_characters else ""
            self._table[ord(char)] = self._class_with(int.from_bytes(bits.tobytes(), "little"), own)

    @cached_property
    def _added_characters(self) -> frozenset[str]:
        return frozenset("".join(self.added))

    def _class_with(self, mask: int, own: str) -> str:
        if (mask, own) not in self._by_answers:
            self.masks.append(mask)
            self.owns.append(own)
            self._by_answers[mask, own] = chr(len(self.masks) - 1)
            if own:
                self._named.add(self._by_answers[mask, own])
        return self._by_answers[mask, own]

    def own(self, classes: str) -> str:
        """The units of a class string as added texts have them: bytes, or characters, NUL for those that no added text
        needs."""
        if self.byte_units:
            return classes
        if self._named.isdisjoint(classes):
            return "\0" * len(classes)
        return "".join(self.owns[ord(u)] or "\0" for u in classes)

    def describe(self, unit: str) -> tuple[int, str]:
        """What makes a class: (answers to the predicates as bits, the character itself where added texts need it). The
        number of a class is that of this object only; this is the same in every process."""
        return self.masks[ord(unit)], self.owns[ord(unit)]

    def unit(self, described: tuple[int, str]) -> str:
        """The class that was described so."""
        return self._class_with(*described)

    def canonical(self, classes: str, before: str | None = None) -> str:
        """Forget answers that no pattern can ask: the `s` of `cats` is any letter, the `s` of `it's` is not.

        `before`: the (canonical) unit in front of the first one; None when it is not known, which keeps the first unit.
        """
        if self.byte_units:
            return classes
        out = []
        for unit in classes:
            if before is not None:
                unit = self._forget(before, unit)
            out.append(unit)
            before = unit
        return "".join(out)

    def _forget(self, before: str, unit: str) -> str:
        known = self._forgotten.get((before, unit))
        if known is not None:
            return known
        mask, own = self.masks[ord(unit)], self.owns[ord(unit)]
        if own == _BROKEN_OWN:
            return unit
        before_mask, before_own = self.masks[ord(before)], self.owns[ord(before)]
        for q, needed in self.needs_before:
            if mask >> q & 1 and not before_mask & needed:
                mask &= ~(1 << q)
        if own and own not in self._added_starts and before_own + own not in self._added_pairs:
            own = ""
        known = self._forgotten[before, unit] = self._class_with(mask, own)
        return known

    def disown(self, classes: str) -> str:
        """The classes of characters with the same answers that are in no added text. Characters as units."""
        if not self.added or self._named.isdisjoint(classes):
            return classes
        owned = {ord(u) for u in classes if self.owns[ord(u)] not in ("", _BROKEN_OWN)}
        return classes.translate({code: self._class_with(self.masks[code], "") for code in owned})

    def disowned(self, codes: np.ndarray) -> np.ndarray:
        """The same for classes as numbers."""
        if not self.added or self.byte_units or not len(codes):
            return codes
        table = np.arange(int(codes.max()) + 1)
        for code in (ord(unit) for unit in self._named if ord(unit) < len(table)):
            table[code] = ord(self.disown(chr(code)))
        return table[codes]

    def join(self, left: str, right: str) -> str:
        """left + right, both canonical, as one canonical string: only the first units of right can still change."""
        before, changed = left[-1:], []
        if self.byte_units or not before:
            return left + right
        for unit in right:
            new = self._forget(before, unit)
            if new == unit:
                break
            changed.append(new)
            before = new
        return left + "".join(changed) + right[len(changed) :]

    @cached_property
    def _added_starts(self) -> frozenset[str]:
        return frozenset(a[0] for a in self.added)

    @cached_property
    def _added_pairs(self) -> frozenset[str]:
        return frozenset(a[i : i + 2] for a in self.added for i in range(len(a) - 1))

    def holds_added(self, own: str) -> bool:
        """Whether an added text lies in these units; characters (`own`), or bytes as units."""
        return bool(self.added_texts.matches(own))

    @cached_property
    def added_texts(self) -> AddedTexts:
        """The added texts in units."""
        return (
            AddedTexts(a.encode().decode("latin-1") for a in self.added) if self.byte_units else AddedTexts(self.added)
        )
