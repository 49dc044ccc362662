"""Added texts: strings that a tokenizer takes as one token before it does anything else. Where they lie in a text, and where one
may still be coming at its end.

In: the added texts and a text, both as units (bpe/pretokenizer.py). Out: places. The tokenizers library takes the first place at
which one begins, and the longest that begins there; from its end on it looks again.

*No added text across a place* (lemma 6 of docs/design.md, "added texts"): where a token ends at a place, no added text lies
across it, so that all of them before the place are those of the text that ends there. So what is cut before the place is known,
whatever follows; what follows only says whether one begins earlier and reaches past it, and then no token ends there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from engine.bpe.bounded_cache import BoundedCache


class AddedTexts:
    """The added texts of one tokenizer as a trie of units."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(texts)
        self._children: list[dict[str, int]] = [{}]
        self._ends = [False]
        self._sorted = sorted(self.texts)
        for text in self._sorted:
            node = 0
            for unit in text:
                below = self._children[node].get(unit)
                if below is None:
                    below = self._children[node][unit] = len(self._children)
                    self._children.append({})
                    self._ends.append(False)
                node = below
            self._ends[node] = True
        self.firsts = frozenset(self._children[0])
        self.longest = max(map(len, self.texts), default=0)
        self._coming: BoundedCache[str, tuple[int, ...]] = BoundedCache(10_000)

    def __bool__(self) -> bool:
        return bool(self.texts)

    def longer_than(self, begun: str) -> list[str]:
        """Those that begin with `begun` and go on."""
        return self._sorted[bisect_right(self._sorted, begun) : bisect_right(self._sorted, begun + "\U0010ffff")]

    def at(self, s: str, i: int, end: int) -> tuple[int, bool]:
        """(end of the longest one that begins at s[i], i for none; whether a longer one may go on behind s[:end])."""
        children, ends, node, found = self._children, self._ends, 0, i
        for p in range(i, end):
            below = children[node].get(s[p])
            if below is None:
                return found, False
            node = below
            if ends[node]:
                found = p + 1
        return found, i < end and bool(children[node])

    def matches(self, s: str) -> tuple[tuple[int, int], ...]:
        """(begin, end) of all of them, when the text ends behind s."""
        out, i, n = [], 0, len(s)
        if self.firsts.isdisjoint(s):
            return ()
        while i < n:
            stop = self.at(s, i, n)[0] if s[i] in self.firsts else i
            if stop > i:
                out.append((i, stop))
            i = max(stop, i + 1)
        return tuple(out)

    def coming(self, s: str) -> tuple[int, ...]:
        """Where one may begin that ends behind s, rising."""
        known = self._coming.get(s)
        if known is None:
            known = self._coming[s] = self._find_coming(s)
        return known

    def across(self, s: str) -> tuple[int, ...]:
        """Those of `coming` from which one reaches past the end of s in some text: where what makes it whole does not make
        one whole that begins earlier, which would be taken."""
        first, *others = self.coming(s) or (None,)
        kept = [i for i in others if any((i, i + len(a)) in self.matches(s[:i] + a) for a in self.longer_than(s[i:]))]
        return () if first is None else (first, *kept)

    def _find_coming(self, s: str) -> tuple[int, ...]:
        out, i, n = [], 0, len(s)
        if self.firsts.isdisjoint(s[-self.longest :]):
            return ()
        while i < n:
            stop = i
            if s[i] in self.firsts:
                stop, grows = self.at(s, i, n)
                if grows:
                    out.append(i)
            i = max(stop, i + 1)
        return tuple(out)
