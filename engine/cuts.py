"""Stage 3b: every way in which the pre-tokenizer may cut a string of unit classes, over all continuations.

In: class strings (engine/split.py), characters as units. Out: sets of ways. The certain cuts are the same in all; behind
them all continuations of two characters by class are tried, as for contexts (engine/contexts.py), but a second character
only where the first leaves a cut open (lemma 5), and remembered for the open part alone.
"""

from __future__ import annotations

from engine.split import Splitter

_MOST_TAILS = 100_000

Way = tuple[tuple[int, ...], bool, bool]  # cuts strictly inside, a cut at the end, the last piece is an added text


class Ways:
    """The ways of one splitter. units: the classes to continue with. Not thread-safe."""

    def __init__(self, splitter: Splitter, units: tuple[str, ...]) -> None:
        self.splitter, self.units = splitter, units
        self._added = frozenset(splitter.added)
        self._tails: dict[str, frozenset[Way]] = {}
        self._alone: dict[str, frozenset[Way]] = {}
        self._heads: dict[tuple[str, str], tuple[int, ...]] = {}
        self._next: dict[str, tuple[str, ...]] = {}

    def around(self, left: str, right: str) -> frozenset[Way]:
        """Ways of left + right without a cut strictly inside `right`; both canonical, `right` not empty. Cuts count from
        the start of `left`. A certain cut at the seam leaves the ways of `right` alone, which are shared by all lefts."""
        n = len(left)
        if not n:
            return self._by_itself(right)
        key = (left, right[:2])
        sure = self._heads.get(key)
        if sure is None:
            if len(self._heads) >= _MOST_TAILS:
                self._heads.clear()
            sure = self._heads[key] = self.splitter.certain(self.splitter.join(*key))
        if n in sure:
            head = tuple(c for c in sure if c <= n)
            return frozenset((head, end, added) for _, end, added in self._by_itself(right))
        both = self.splitter.join(left, right)
        return self._of(both, n)

    def _by_itself(self, right: str) -> frozenset[Way]:
        known = self._alone.get(right)
        if known is None:
            if len(self._alone) >= _MOST_TAILS:
                self._alone.clear()
            known = self._alone[right] = self._of(right, 0)
        return known

    def _of(self, s: str, n: int) -> frozenset[Way]:
        """Ways of s without cuts strictly between n and its end."""
        sure = self.splitter.certain(s)
        if any(n < c < len(s) for c in sure):
            return frozenset()
        done = sure[-1] if sure else 0
        if done == len(s):
            begin = sure[-2] if len(sure) > 1 else 0
            return frozenset({(sure[:-1], True, self._is_added(s, begin, done))})
        out = set()
        for cuts, end, added in self._tail(s[done:]):
            if not any(n < done + c for c in cuts):
                out.add(((*sure, *(done + c for c in cuts)), end, added))
        return frozenset(out)

    def _tail(self, rest: str) -> frozenset[Way]:
        """Ways of a string none of whose cuts is certain."""
        known = self._tails.get(rest)
        if known is None:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            known = self._tails[rest] = frozenset(self._find(rest))
        return known

    def _find(self, rest: str) -> set[Way]:
        splitter, n, out = self.splitter, len(rest), set()
        self._note(out, rest, splitter.pieces(rest), n)
        for unit in self._after(rest[-1]):
            longer = rest + unit
            sure = splitter.certain(longer)
            if sure and sure[-1] >= n:
                self._note(out, longer, sure, n)
                continue
            self._note(out, longer, splitter.pieces(longer), n)
            for second in self._after(unit):
                longest = longer + second
                self._note(out, longest, splitter.pieces(longest), n)
        return out

    def _after(self, unit: str) -> tuple[str, ...]:
        """The distinct units that may follow `unit`, as the splitter joins them."""
        known = self._next.get(unit)
        if known is None:
            known = self._next[unit] = tuple(sorted({self.splitter.join(unit, u)[1:] for u in self.units}))
        return known

    def _note(self, out: set[Way], s: str, ends: tuple[int, ...], n: int) -> None:
        cuts = tuple(e for e in ends if e < n)
        stop = next(e for e in ends if e >= n)
        added = self._is_added(s, cuts[-1] if cuts else 0, stop)
        if not (added and stop > n):  # an added text that reaches past the end is one token: nothing ends inside it
            out.add((cuts, stop == n, added))

    def _is_added(self, s: str, begin: int, stop: int) -> bool:
        return (
            bool(self._added)
            and self.splitter.own(s[begin]) != "\0"
            and self.splitter.own(s[begin:stop]) in self._added
        )
