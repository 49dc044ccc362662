"""One document and one student go in; out comes, for every place where a student token ends, which teacher contexts and which
rules make the student's next-token target there.

Row k (0..n) predicts student token k, given tokens < k; its boundary is byte e_k, where token k-1 ends (0 for k = 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from engine.alignment.rules import Rule, RuleBook
from engine.alignment.strings import BoundaryStrings, StringRules
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.folding import Folded, Runs, unfold
from engine.bpe.pending import CutText, PendingPart, cut_text
from engine.bpe.spelling import LONG_BYTES, Spelling
from engine.bpe.utf8 import is_continuation
from engine.contexts.tree import ContextTree

_MOST_LEFTS = 100_000  # remembered, at about a KiB each; text makes new ones without end


@dataclass(frozen=True, slots=True)
class Extra:
    """What replaces the leaves that were split (definition 13). All [E]: node int64, context in the tree; first int64, student
    token or -1 for excluded; mass float64, relative to the context's weight; open bool."""

    node: np.ndarray
    first: np.ndarray
    mass: np.ndarray
    open: np.ndarray


@dataclass(slots=True)
class Boundary:
    """What the push-forward needs at one row.

    place: byte e_k in the teacher's byte string (prefix + text). last: student token before it, -1 for none.
    leaves: (node, rule) of every context with a token that reaches past the place. at: contexts that end there.
    fringe: (node, token) as of `ContextTree`, contexts that are not evaluated; their mass is the bound R of lemma 7.
    skip: context -> tokens whose leaves were split; `extra` stands for them. strings: answers for strings behind the place,
    only where leaves may be split.
    end_counts: whether "the text ends here" agrees with the student's tokens so far (else that mass is excluded).
    """

    place: int
    last: int
    leaves: list[tuple[int, Rule]] = field(default_factory=list)
    skip: dict[int, list[int]] = field(default_factory=dict)
    at: list[int] = field(default_factory=list)
    fringe: list[tuple[int, int]] = field(default_factory=list)
    end_counts: bool = True
    strings: BoundaryStrings | None = None
    extra: Extra | None = None


@dataclass(slots=True, eq=False)
class _Left:
    """What the student has read before a boundary, as far as it matters: the pending part. Of short ones there is one object for
    each, so that what was found out about it is found again.

    classes: class string of its whole units, reduced (`Splitter.reduce`, `Splitter.fold`). partial: bytes of the incomplete
    character that the boundary cuts. words: `RuleBook.whole_words_after`, in units of `classes`. agrees: (cuts, seam) -> whether
    the pending bytes, cut like this, encode to the student's own tokens; remembered in `allowed`. rules: (z, lead) -> rule.
    may_end: `Aligner._may_end`.
    """

    classes: str
    partial: bytes
    words: tuple[tuple[int, bytes], ...]
    agrees: Callable[[tuple[int, ...], bool], bool]
    rules: dict[tuple[bytes, bytes], Rule] = field(default_factory=dict)
    allowed: dict[tuple[tuple[int, ...], bool], bool] = field(default_factory=dict)
    may_end: bool | None = None


class Aligner:
    """Makes boundaries for one student; remembers which cuts agree with which tokens. Not thread-safe.

    prefix: what the teacher puts before a text. strings: given where leaves may be split (regimes fast and beam).
    """

    def __init__(self, book: RuleBook, prefix: bytes, strings: StringRules | None = None) -> None:
        self.book, self.prefix, self.strings = book, prefix, strings
        self.student = book.student
        self._known: BoundedCache[tuple[str, bytes, bytes, tuple[int, ...]], _Left] = BoundedCache(_MOST_LEFTS)
        self._cleared = book.cleared

    def boundaries(self, tree: ContextTree, text: bytes, ids: list[int], ends: list[int]) -> list[Boundary]:
        """All n + 1 boundaries of a document. ids [n], ends [n]: student tokens and their byte ends in the text.

        Boundaries before the teacher's given token have no contexts (`at` and `leaves` empty).
        """
        found = self.boundaries_at(range(len(ids) + 1), tree, text, ids, ends)
        return [found[k] for k in range(len(ids) + 1)]

    def boundaries_at(
        self, chosen: Sequence[int], tree: ContextTree, text: bytes, ids: list[int], ends: list[int]
    ) -> dict[int, Boundary]:
        """Some of these boundaries, by number."""
        if self._cleared != self.book.cleared:
            self._known.clear()  # rules that the book has given up would live on here
            self._cleared = self.book.cleared
        places = [len(self.prefix), *(e + len(self.prefix) for e in ends)]
        lefts = self._lefts(text, ids)
        parts = zip(places, [-1, *ids], tree.at_bytes(places), tree.fringes(places), strict=True)
        out = [Boundary(place, last, at=at, fringe=fringe) for place, last, at, fringe in parts]
        data = self.prefix + text
        for k, boundary in enumerate(out):
            if k == 0 and self.prefix and tree.end[tree.given] == 0:
                boundary.at = [tree.given, *boundary.at]  # the end right after BOS: the empty text gets no prefix
            if boundary.at:
                # not where the student's prefix stands alone: the empty text has no tokens
                boundary.end_counts = not (k and ends[k - 1] == 0) and self._may_end(lefts[k])
        self._add_leaves(tree, data, out, lefts, frozenset(chosen))
        if self.strings is not None:
            self.strings.trim()
            for k in chosen:
                if out[k].leaves:
                    out[k].strings = self._strings_at(self.strings, k, lefts[k], out[k].last)
        return {k: out[k] for k in chosen}

    def _strings_at(self, rules: StringRules, k: int, left: _Left, last: int) -> BoundaryStrings:
        lead = self.student.prefix_bytes if k == 0 else b""
        strings = rules.strings(lead, left.partial, left.classes, left.words)
        return BoundaryStrings(strings, partial(self._allowed, left), last)

    def _lefts(self, text: bytes, ids: list[int]) -> list[_Left]:
        """The pending part at each boundary, in the student's own byte string."""
        data = self.student.prefix_bytes + text
        splitter, segmenter = self.book.splitter, self.book.segmenter
        cut = cut_text(splitter, data)
        byte_of, own_ends = cut.byte_of.tolist(), [0]
        for token in ids:
            own_ends.append(own_ends[-1] + len(self.student.token_bytes[token] or b""))
        index_of = {e: i for i, e in enumerate(own_ends)}
        row: Spelling | None = None
        lefts: list[_Left] = []
        for k, part in enumerate(cut.parts(own_ends)):
            place = own_ends[k]
            partial = self._partial(data, place, byte_of[part.unit])
            whole, classes = place - len(partial), part.left
            if splitter.byte_units:
                classes = splitter.reduce(cut.units[max(part.start, whole - splitter.added_texts.longest - 1) : whole])
            if place - part.begin > LONG_BYTES:
                row = row or Spelling(segmenter, data, list(ids), list(range(-1, len(ids) - 1)), own_ends[1:])
                lefts.append(self._long_left(cut, part, classes, partial, whole, row, k - 1))
                continue
            tokens = tuple(ids[index_of[part.begin] : k]) if part.begin in index_of else (-1,)
            key = (classes, partial, data[part.begin : place], tokens)
            left = self._known.get(key)
            if left is None:
                left = self._known[key] = self._left(*key, cut.units[part.start : part.unit])
            lefts.append(left)
        return lefts

    def _left(self, classes: str, partial: bytes, pending: bytes, tokens: tuple[int, ...], units: str) -> _Left:
        """units: the classes of all that is pending, where runs are not cut short."""
        splitter, segmenter, count = self.book.splitter, self.book.segmenter, len(units)
        is_folded = not splitter.byte_units and len(classes) < count
        runs = Runs(splitter, np.frombuffer(units.encode("utf-32-le"), np.uint32))

        def agrees(cuts: tuple[int, ...], seam: bool) -> bool:
            if is_folded:
                cuts = unfold(splitter, classes, cuts, 0, count, runs)
            return segmenter.agrees(pending, partial, cuts, seam, tokens, units=len(classes))

        words = self.book.whole_words_after(pending, partial, count if is_folded else len(classes))
        if is_folded:
            folded = Folded(splitter, classes, 0, count, runs)
            placed = [(folded.place(unit), rest) for unit, rest in words]
            words = tuple((unit, rest) for unit, rest in placed if unit is not None)
        return _Left(classes, partial, words, agrees)

    def _long_left(
        self, cut: CutText, part: PendingPart, classes: str, partial: bytes, whole: int, row: Spelling, node: int
    ) -> _Left:
        """The same, without a look at all that is pending. row: the student's tokens; node: the one before the boundary."""

        def agrees(cuts: tuple[int, ...], seam: bool) -> bool:
            if self.book.splitter.byte_units:
                bounds = [whole - len(classes) + c for c in cuts]
            else:
                bounds = [int(cut.byte_of[u]) for u in cut.true_units(classes, cuts, part.start, part.unit)]
            return row.agrees(node, part.begin, bounds, whole, seam)

        words, begin = [], max(whole - self.book.segmenter.longest_apart, part.begin)
        if self.book.segmenter.whole_words:  # only their beginnings at the end of what is pending can go on
            first = int(np.searchsorted(cut.byte_of, begin))
            pending = cut.data[int(cut.byte_of[first]) : whole] + partial
            for unit, rest in self.book.whole_words_after(pending, partial, part.unit - first):
                at = cut.folded_unit(classes, first + unit, part.start, part.unit)
                words += [] if at is None else [(at, rest)]
        return _Left(classes, partial, tuple(words), agrees)

    def _partial(self, data: bytes, place: int, unit_begin: int) -> bytes:
        """The bytes before `place` of the character that it cuts, b"" at a border of characters."""
        if not self.book.splitter.byte_units:
            return data[unit_begin:place]
        begin = place
        while begin < len(data) and begin > 0 and is_continuation(data[begin]):
            begin -= 1
        return data[begin:place]

    def _add_leaves(
        self, tree: ContextTree, data: bytes, boundaries: list[Boundary], lefts: list[_Left], chosen: frozenset[int]
    ) -> None:
        """Pair every context with the chosen boundaries inside its next token (definition 6: dec(t) begins with z = x[p:e] and is
        longer).

        Contexts in the order of their ends, so that the first boundary not before an end only moves on. From there the next
        boundaries are tried until no teacher token begins with the text up to them.
        """
        teacher = self.book.teacher
        where: dict[int, list[int]] = {}
        for k, b in enumerate(boundaries):
            if k in chosen:
                where.setdefault(b.place, []).append(k)
        places = sorted(where)
        position = 0
        by_end = tree.given + np.argsort(tree.end[tree.given :], kind="stable")
        for node, end in zip(by_end.tolist(), tree.end[by_end].tolist(), strict=True):
            while position < len(places) and places[position] < end:
                position += 1
            for index in range(position, len(places)):
                place = places[index]
                z = data[end:place]
                begin, stop = teacher.range_of(z)
                if begin == stop:
                    break  # no token starts with z, so none starts with more of the text
                for k in where[place]:
                    if place > end or node in boundaries[k].at:
                        boundaries[k].leaves.append((node, self._rule(z, k, lefts[k])))

    def _rule(self, z: bytes, k: int, left: _Left) -> Rule:
        """What the tokens that begin with z do at boundary k. The student's prefix lies between its first boundary and the
        text."""
        lead = self.student.prefix_bytes if k == 0 else b""
        known = left.rules.get((z, lead))
        if known is None:
            known = left.rules[z, lead] = self._restricted_rule(z, lead, left)
        return known

    def _restricted_rule(self, z: bytes, lead: bytes, left: _Left) -> Rule:
        """The rule for these classes, less what the student's own tokens contradict (definition 7, NONE)."""
        rule = self.book.rule(z, lead, left.partial, left.classes, left.words)
        if len(rule.variants) == 1 and not rule.variants[0][0]:
            return self.book.restricted(rule, (self._allowed(left, *rule.variants[0]),))
        return self.book.restricted(rule, tuple(self._allowed(left, cuts, seam) for cuts, seam in rule.variants))

    def _allowed(self, left: _Left, cuts: tuple[int, ...], seam: bool) -> bool:
        """Whether the pending bytes, cut like this, encode to the student's own tokens."""
        known = left.allowed.get((cuts, seam))
        if known is None:
            known = left.allowed[cuts, seam] = left.agrees(cuts, seam)
        return known

    def _may_end(self, left: _Left) -> bool:
        """Whether a text that ends here has the student's own tokens."""
        if left.may_end is None:
            units = self.book.splitter.pieces(left.classes) if left.classes else ()
            cuts = tuple(u for u in units if u < len(left.classes))
            left.may_end = not left.partial and self._allowed(left, cuts, True)
        return left.may_end
