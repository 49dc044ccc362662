"""Stage 3b: every way in which the pre-tokenizer may cut a string of unit classes, over all continuations.

In: class strings (bpe/pretokenizer.py), characters as units. Out: sets of ways. The certain cuts are the same in all; behind
them all continuations of two characters by class are tried, as for contexts (engine/contexts/builder.py), but a second character
only where the first leaves a cut open (lemma 5), and remembered for the open part alone. No continuation is the beginning
of an added text: one that follows closes what is before it, as the end of the text does, and one that began earlier and
goes on leaves no token end here.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.bpe.pretokenizer import NO_UNIT, Splitter

_MOST_TAILS = 100_000

Way = tuple[tuple[int, ...], bool, bool]  # cuts strictly inside, a cut at the end, the last piece is an added text


class Ways:
    """The ways of one splitter. units: the classes to continue with, none that belongs to an added text. Not thread-safe."""

    def __init__(self, splitter: Splitter, units: tuple[str, ...]) -> None:
        self.splitter, self.units = splitter, units
        self._added = frozenset(splitter.added)
        self._tails: dict[str, frozenset[Way]] = {}
        self._opens: dict[tuple[str, int], frozenset[Way]] = {}
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
        return self._of(self.splitter.join(left, right), n)

    def all_of(self, s: str) -> frozenset[Way]:
        """All ways of s, canonical, wherever they cut."""
        s = s if self._holds_added(s) else self.splitter.disown(s)
        sure = self.splitter.certain(s)
        done = sure[-1] if sure else 0
        if done == len(s):
            return frozenset({(sure[:-1], True, self._is_added(s, sure[-2] if len(sure) > 1 else 0, done))})
        rest = self.splitter.join(NO_UNIT, s[done:])[1:]
        return frozenset(((*sure, *(done + c for c in cuts)), end, added) for cuts, end, added in self._tail(rest))

    def _by_itself(self, right: str) -> frozenset[Way]:
        """Ways behind a cut: nothing before it can be the reason to ask anything of the first units."""
        right = self.splitter.join(NO_UNIT, right)[1:]
        known = self._alone.get(right)
        if known is None:
            if len(self._alone) >= _MOST_TAILS:
                self._alone.clear()
            known = self._alone[right] = self._of(right, 0)
        return known

    def _of(self, s: str, n: int) -> frozenset[Way]:
        """Ways of s without cuts strictly between n and its end. An added text that begins in s and ends behind it leaves
        no token end there, so that its characters are like any others unless s holds all of one."""
        holds = self._holds_added(s)
        s = s if holds else self.splitter.disown(s)
        sure = self.splitter.certain(s)
        if any(n < c < len(s) for c in sure):
            return frozenset()
        done = sure[-1] if sure else 0
        if done == len(s):
            begin = sure[-2] if len(sure) > 1 else 0
            return frozenset({(sure[:-1], True, self._is_added(s, begin, done))})
        ways = self._all_open(s[done:], n - done) if holds else self._open(s[done:], n - done)
        return frozenset(((*sure, *(done + c for c in cuts)), end, added) for cuts, end, added in ways)

    def _holds_added(self, s: str) -> bool:
        if not self._added:
            return False
        own = self.splitter.own(s)
        return any(text in own for text in self._added)

    def _open(self, rest: str, n: int) -> frozenset[Way]:
        """Ways of a string without certain cuts and added texts, without cuts behind n. What is cut up to n is among
        the ways of the first n + 2 units (two characters decide it, as for contexts): once each of these is found with
        and without a cut at the end no other continuation can add one."""
        if len(rest) <= n + 2:
            return self._all_open(rest, n)
        known = self._opens.get((rest, n))
        if known is None:
            if len(self._opens) >= _MOST_TAILS:
                self._opens.clear()
            missing = {
                (tuple(c for c in cuts if c <= n), end, False)
                for cuts, _, _ in self._tail(rest[: n + 2])
                for end in (True, False)
            }
            found: set[Way] = set()
            for way in self._find(rest):
                if all(c <= n for c in way[0]):
                    found.add(way)
                    missing.discard(way)
                    if not missing:
                        break
            known = self._opens[rest, n] = frozenset(found)
        return known

    def _all_open(self, rest: str, n: int) -> frozenset[Way]:
        return frozenset(way for way in self._tail(rest) if all(c <= n for c in way[0]))

    def _tail(self, rest: str) -> frozenset[Way]:
        """Ways of a string none of whose cuts is certain."""
        known = self._tails.get(rest)
        if known is None:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            known = self._tails[rest] = frozenset(self._find(rest))
        return known

    def _find(self, rest: str) -> Iterator[Way]:
        splitter, n = self.splitter, len(rest)
        yield from self._way(rest, splitter.pieces(rest), n)
        left_open = []
        for unit in self._after(rest[-1]):
            longer = rest + unit
            sure = splitter.certain(longer)
            if sure and sure[-1] >= n:
                yield from self._way(longer, sure, n)
            else:
                yield from self._way(longer, splitter.pieces(longer), n)
                left_open.append((longer, unit))
        for longer, unit in left_open:
            for second in self._after(unit):
                longest = longer + second
                yield from self._way(longest, splitter.pieces(longest), n)

    def _after(self, unit: str) -> tuple[str, ...]:
        """The distinct units that may follow `unit`, as the splitter joins them."""
        known = self._next.get(unit)
        if known is None:
            known = self._next[unit] = tuple(sorted({self.splitter.join(unit, u)[1:] for u in self.units}))
        return known

    def _way(self, s: str, ends: tuple[int, ...], n: int) -> tuple[Way] | tuple[()]:
        cuts = tuple(e for e in ends if e < n)
        stop = next(e for e in ends if e >= n)
        added = self._is_added(s, cuts[-1] if cuts else 0, stop)
        if added and stop > n:
            return ()  # an added text that reaches past the end is one token: nothing ends inside it
        return ((cuts, stop == n, added),)

    def _is_added(self, s: str, begin: int, stop: int) -> bool:
        return (
            bool(self._added)
            and self.splitter.own(s[begin]) != "\0"
            and self.splitter.own(s[begin:stop]) in self._added
        )
