"""All ways in which a text that is not finished may turn out to be cut, tried on what may follow it.

In: class strings (bpe/pretokenizer.py) with characters as units. Out: sets of `Way`s.

*The premise, here and nowhere else:* no pattern of the dialect in use looks further than two characters past what is pending
(three in a contraction, the first of which is pending). So it is enough to continue with two characters, one of each class,
and with the second only where the first leaves a cut open (lemma 5: a certain cut stays). `Probes` makes these
continuations; `Ways` asks them about a text that is given (a token behind a context or a boundary), bpe/pending.py about the
text before a wanted byte. The premise is tested on real continuations, not proved (docs/design.md, section 3).

No continuation of `Ways` is the beginning of an added text: one that follows closes what is before it, as the end of the text
does, and one that began earlier and goes on leaves no token end here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.pretokenizer import Splitter
from engine.bpe.unit_classes import NO_UNIT
from engine.bpe.vocabulary import Vocabulary


class Way(NamedTuple):
    """One way to cut a class string. cuts: units of the cuts strictly inside it, rising. end: whether a cut lies at its end.
    added: whether its last piece is an added text."""

    cuts: tuple[int, ...]
    end: bool
    added: bool


class Probe(NamedTuple):
    """A continuation. ends: of its pieces, in units. settled: whether no longer one changes a cut up to where the text ended."""

    text: str
    ends: tuple[int, ...]
    settled: bool


class Probes:
    """Continuations of one splitter by one unit and by two. units: one of each class to continue with. Not thread-safe."""

    def __init__(self, splitter: Splitter, units: tuple[str, ...]) -> None:
        self.splitter, self.units = splitter, units
        self._next: dict[str, tuple[str, ...]] = {}  # at most one entry a class

    def one(self, text: str) -> Iterator[Probe]:
        """The text (not empty) as a whole text, then followed by each unit. The first of them is settled: nothing follows."""
        yield Probe(text, self.splitter.pieces(text), True)
        for unit in self._after(text[-1]):
            longer = text + unit
            sure = self.splitter.certain(longer)
            settled = bool(sure) and sure[-1] >= len(text)  # lemma 5: these cuts are those of every longer text
            yield Probe(longer, sure if settled else self.splitter.pieces(longer), settled)

    def two(self, probe: Probe) -> Iterator[Probe]:
        """A probe that is not settled, followed by each unit. By the premise all of these are settled."""
        for unit in self._after(probe.text[-1]):
            longest = probe.text + unit
            yield Probe(longest, self.splitter.pieces(longest), True)

    def _after(self, unit: str) -> tuple[str, ...]:
        """The distinct units that may follow `unit`, as the splitter joins them."""
        known = self._next.get(unit)
        if known is None:
            known = self._next[unit] = tuple(dict.fromkeys(self.splitter.join(unit, u)[1:] for u in self.units))
        return known


def units_of_tokens(vocabulary: Vocabulary, splitter: Splitter) -> tuple[str, ...]:
    """The classes of the first and the second characters of all tokens, rising: one of each class that text may go on with."""
    heads = sorted({b.decode("utf-8", "ignore")[:2] for b in vocabulary.token_bytes if b} - {""})
    if not splitter.byte_units:
        splitter.learn(set("".join(heads)))
    pairs = dict.fromkeys(splitter.canonical(splitter.classes(h.encode())) for h in heads)
    return tuple(sorted({unit for pair in pairs for unit in pair}))


class Ways:
    """The ways of one splitter. units: the classes to continue with, none that belongs to an added text. Not thread-safe.

    All answers are remembered. A string is cut at its certain cuts first: these are the same in all ways, and what lies behind
    the last of them (the *rest*) decides the others, so that ways are looked for once for each distinct rest.
    """

    def __init__(self, splitter: Splitter, units: tuple[str, ...]) -> None:
        self.splitter, self.probes = splitter, Probes(splitter, units)
        self._added = frozenset(splitter.added)
        self._tails: BoundedCache[str, frozenset[Way]] = BoundedCache()  # rest -> its ways
        self._opens: BoundedCache[tuple[str, int], frozenset[Way]] = (
            BoundedCache()
        )  # (rest, n) -> those without cuts behind n
        self._alone: BoundedCache[str, frozenset[Way]] = BoundedCache()  # a string behind a cut -> its ways
        self._heads: BoundedCache[tuple[str, str], tuple[int, ...]] = BoundedCache()  # (left, 2 units) -> certain cuts

    def around(self, left: str, right: str) -> frozenset[Way]:
        """Ways of left + right without a cut strictly inside `right`; both canonical, `right` not empty. Cuts count from
        the start of `left`. A certain cut at the seam leaves the ways of `right` alone, which are shared by all lefts."""
        n = len(left)
        if not n:
            return self._by_itself(right)
        key = (left, right[:2])
        sure = self._heads.get(key)
        if sure is None:
            sure = self._heads[key] = self.splitter.certain(self.splitter.join(*key))
        if n in sure:  # definition 5: certain with two units of `right` read, so certain with all of it
            head = tuple(c for c in sure if c <= n)
            return frozenset(Way(head, end, added) for _, end, added in self._by_itself(right))
        return self._of(self.splitter.join(left, right), n)

    def all_of(self, s: str) -> frozenset[Way]:
        """All ways of s, canonical, wherever they cut."""
        s = s if self._holds_added(s) else self.splitter.disown(s)
        sure = self.splitter.certain(s)
        done = sure[-1] if sure else 0
        if done == len(s):
            return frozenset({Way(sure[:-1], True, self._is_added(s, sure[-2] if len(sure) > 1 else 0, done))})
        rest = self.splitter.join(NO_UNIT, s[done:])[1:]
        return frozenset(Way((*sure, *(done + c for c in cuts)), end, added) for cuts, end, added in self._tail(rest))

    def _by_itself(self, right: str) -> frozenset[Way]:
        """Ways behind a cut: nothing before it can be the reason to ask anything of the first units."""
        right = self.splitter.join(NO_UNIT, right)[1:]
        known = self._alone.get(right)
        if known is None:
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
            return frozenset({Way(sure[:-1], True, self._is_added(s, begin, done))})
        ways = self._all_open(s[done:], n - done) if holds else self._open(s[done:], n - done)
        return frozenset(Way((*sure, *(done + c for c in cuts)), end, added) for cuts, end, added in ways)

    def _holds_added(self, s: str) -> bool:
        if not self._added:
            return False
        own = self.splitter.own(s)
        return any(text in own for text in self._added)

    def _open(self, rest: str, n: int) -> frozenset[Way]:
        """Ways of a string without certain cuts and added texts, without cuts behind n. What is cut up to n is among
        the ways of the first n + 2 units (the premise): once each of these is found with and without a cut at the end no
        other continuation can add one, and the search ends early."""
        if len(rest) <= n + 2:
            return self._all_open(rest, n)
        known = self._opens.get((rest, n))
        if known is None:
            missing = {
                Way(tuple(c for c in cuts if c <= n), end, False)
                for cuts, _, _ in self._tail(rest[: n + 2])
                for end in (True, False)
            }
            found: set[Way] = set()
            for way in self._find(rest):
                if all(c <= n for c in way.cuts):
                    found.add(way)
                    missing.discard(way)
                    if not missing:
                        break
            known = self._opens[rest, n] = frozenset(found)
        return known

    def _all_open(self, rest: str, n: int) -> frozenset[Way]:
        return frozenset(way for way in self._tail(rest) if all(c <= n for c in way.cuts))

    def _tail(self, rest: str) -> frozenset[Way]:
        """Ways of a string none of whose cuts is certain."""
        known = self._tails.get(rest)
        if known is None:
            known = self._tails[rest] = frozenset(self._find(rest))
        return known

    def _find(self, rest: str) -> Iterator[Way]:
        """Its ways, some of them several times; all continuations by one unit before any by two, since `_open` may stop."""
        left_open = []
        for probe in self.probes.one(rest):
            yield from self._way(probe, len(rest))
            if not probe.settled:
                left_open.append(probe)
        for probe in left_open:
            for longest in self.probes.two(probe):
                yield from self._way(longest, len(rest))

    def _way(self, probe: Probe, n: int) -> tuple[Way] | tuple[()]:
        """How a continuation of n units cuts these."""
        cuts = tuple(e for e in probe.ends if e < n)
        stop = next(e for e in probe.ends if e >= n)
        added = self._is_added(probe.text, cuts[-1] if cuts else 0, stop)
        if added and stop > n:
            return ()  # an added text that reaches past the end is one token: nothing ends inside it
        return (Way(cuts, stop == n, added),)

    def _is_added(self, s: str, begin: int, stop: int) -> bool:
        return (
            bool(self._added)
            and self.splitter.own(s[begin]) != "\0"
            and self.splitter.own(s[begin:stop]) in self._added
        )
