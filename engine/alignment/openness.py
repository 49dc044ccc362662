"""Can what follows still change the first student token behind a boundary?

In: the bytes that a leaf brings behind the boundary, and how they are cut. Out: whether the leaf is *decided*: its first
student token v, and whether there is a boundary at all, are the same for every continuation (docs/design.md, lemma 15).

Inside one pre-token (`decided`): let s be what the pre-token holds of the known bytes. By lemma 4 an encoding of s w passes
the end of s with a token u that begins at some j <= |s|: u = s[j:] and more, behind enc(s[:j]). So v can be the first token
of enc(s[:j]) for those j where such a u may stand, or u itself for j = 0; the leaf is decided when all of these are one.
Across pre-tokens (`settle`): all ways to cut (engine/bpe/continuations.py) must agree on what lies before the boundary and on v.

Whatever is not known keeps a leaf open: an incomplete character at the end of r is taken as any continuation, with NFC a last one
that may merge with what follows as any of its family, or as any continuation (lemma 22); an added text or a word of
`ignore_merges` that may be coming leaves all as it was.
"""

from __future__ import annotations

import bisect
import unicodedata
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from engine.alignment.token_range import JOIN, FollowedRange, TokenRange, Variant, Variants
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.continuations import Ways
from engine.bpe.merges import NEVER
from engine.bpe.nfc import family
from engine.bpe.segmenter import Segmenter
from engine.bpe.utf8 import successor

_UNKNOWN = -2  # in tables of first tokens: not asked yet (-1: asked, and there is none)
_MOST_KEPT = 2_000_000  # strings, and pairs of token and string
_FEW = 8  # tokens that are asked one by one before the whole list of partners is made


class AgreedCuts(NamedTuple):
    """How all ways to cut pending part and r agree. variant: (cuts inside the pending part, whether one lies at the boundary),
    the same in all. stops: ends, in units of r, of the piece that begins at or spans the boundary, where it ends inside r.
    goes_on: whether in some way it may go on behind r."""

    variant: Variant
    stops: frozenset[int]
    goes_on: bool


class Closed(NamedTuple):
    """Answers of definition 7 as if the text ended behind r: [m] each, of the tokens of a range. stop: units of r."""

    action: np.ndarray
    stop: np.ndarray
    variant: np.ndarray
    first: np.ndarray


class Openness:
    """The openness of one student's leaves (lemma 15). Not thread-safe (it remembers)."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter, self.merges, self.vocabulary = segmenter, segmenter.merges, segmenter.vocabulary
        self._decided: BoundedCache[bytes, bool] = BoundedCache(_MOST_KEPT)
        self._ends: BoundedCache[bytes, tuple[int, int]] = BoundedCache(_MOST_KEPT)
        self._passing: BoundedCache[tuple[int, bytes], bool] = BoundedCache(_MOST_KEPT)
        self._sorted_partners: dict[int, tuple[list[bytes], list[tuple[int, int]]]] = {}

    # ==== inside one pre-token

    def decided(self, s: bytes) -> bool:
        """Whether enc(s w) begins with the first token of enc(s) for every w inside the pre-token, the empty one too. s:
        bytes from a boundary on, for SentencePiece whole characters."""
        known = self._decided.get(s)
        if known is None:
            known = self._decided[s] = self._decide(s)
        return known

    def _decide(self, s: bytes) -> bool:
        # Lemma 15 (a). u of the lemma passes the end of s: for j = 0 s itself begins a token (not decided); for j > 0 the rest
        # s[j:] begins one that may follow enc(s[:j]), and then enc(s[:j]) must begin with the same v.
        begun = self._begun
        if not s or s in begun or not self._spelt(s):
            return False
        v = self.segmenter.first(s, whole=False)
        for j in range(len(s) - 1, 0, -1):
            if s[j:] in begun:  # else no token goes on beyond s from j: nothing to ask
                first, last = self._ends_of(s[:j])
                if first != v and self._may_pass(last, s[j:]):
                    return False
        return True

    @cached_property
    def _reachable(self) -> tuple[list[bytes], np.ndarray]:
        """(bytes sorted, ids) of the tokens that merges make, specials among them (merges may spell these, too)."""
        pieces = {int(t): self._bytes_of(int(t)) for t in np.flatnonzero(self.merges.birth != NEVER)}
        order = sorted(pieces, key=pieces.__getitem__)
        return [pieces[t] for t in order], np.array(order, dtype=np.int64)

    def _bytes_of(self, token: int) -> bytes:
        piece, left = self.vocabulary.token_bytes[token], int(self.merges.left[token])
        if piece is None and left >= 0:
            return self._bytes_of(left) + self._bytes_of(int(self.merges.right[token]))
        return piece or b""

    @cached_property
    def _begun(self) -> frozenset[bytes]:
        """All proper beginnings of tokens, and words of `ignore_merges` with their beginnings (these are tokens also where
        the pre-token ends with them)."""
        found: set[bytes] = set()
        for piece in self._reachable[0]:
            found.update(piece[:i] for i in range(1, len(piece)))
        for word in self.segmenter.whole_words:
            found.update(word[:i] for i in range(1, len(word) + 1))
        return frozenset(found)

    def _spelt(self, s: bytes) -> bool:
        """Whether BPE has symbols for all of s; nothing is concluded about what it leaves out or fuses."""
        if self.vocabulary.kind == "bytelevel":
            return self._symbols.issuperset(bytes([b]) for b in s)
        return self.vocabulary.byte_fallback or self._symbols.issuperset(c.encode() for c in s.decode())

    @cached_property
    def _symbols(self) -> frozenset[bytes]:
        return frozenset(p for p, t in self.vocabulary.id_of_bytes.items() if self.merges.birth[t] == -1)

    def _ends_of(self, s: bytes) -> tuple[int, int]:
        """First and last token of enc(s), s inside a pre-token."""
        known = self._ends.get(s)
        if known is None:
            tokens = self.vocabulary.bpe(s, whole=False)
            known = self._ends[s] = tokens[0], tokens[-1]
        return known

    def _may_pass(self, last: int, tail: bytes) -> bool:
        """Whether some token that goes on beyond `tail` may stand behind `last` (lemma 2)."""
        key = (last, tail)
        known = self._passing.get(key)
        if known is None:
            pieces, ids = self._reachable
            # all tokens that begin with `tail` and are longer: an interval of the sorted ones
            tokens = ids[bisect.bisect_right(pieces, tail) : bisect.bisect_left(pieces, successor(tail))]
            known = any(self.merges.pair_is_canonical(last, int(u)) for u in tokens[:_FEW])
            if not known and len(tokens) > _FEW:
                known = not self.merges.illegal_by(last, lambda node: self._partners_near(node, tail))[tokens].all()
            self._passing[key] = known
        return known

    def _partners_near(self, node: int, tail: bytes) -> list[tuple[int, int]]:
        """The merges (right token, rank) of a node whose right token can be on the left edge of a token that begins with `tail`:
        it begins with `tail`, or `tail` with it. Only these can forbid such a token (lemma 3), so no other is looked at."""
        known = self._sorted_partners.get(node)
        if known is None:
            pairs = sorted((self._bytes_of(b), b, rank) for b, rank in self.merges.partners.get(node, ()))
            known = self._sorted_partners[node] = [p[0] for p in pairs], [p[1:] for p in pairs]
        pieces, partners = known
        found = partners[bisect.bisect_left(pieces, tail) : bisect.bisect_left(pieces, successor(tail))]
        for i in range(1, len(tail)):
            begin = bisect.bisect_left(pieces, tail[:i])
            found += partners[begin : bisect.bisect_right(pieces, tail[:i], begin)]
        return found

    # ==== a range of leaves

    def settle(
        self,
        span: TokenRange,
        left: str,
        closed: Closed,
        variants: Variants,
        words: tuple[tuple[int, bytes], ...],
        open_: np.ndarray,
    ) -> np.ndarray:
        """bool [m]: `open_` without the leaves that are decided (lemma 15). left, variants, words: as in alignment/rules.py."""
        action, stop, variant, first = closed
        # [m] what may be decided; leaves are taken out of it one condition after the other. Inside one pre-token, (a):
        choose = open_ & ~span.composing & (first >= 0)
        self._keep_settled(span, first, choose, np.flatnonzero(choose & (stop >= span.known)))
        # Across pre-tokens, (b): all ways to cut must agree on what lies before the boundary, and each must give v.
        if self.segmenter.by_bytes:  # one way: what is not cut up to the end of r may go on
            choose &= stop >= span.known
        else:
            chosen = np.flatnonzero(choose)
            chosen = chosen[np.argsort(span.class_index[chosen], kind="stable")]
            for where in np.split(chosen, np.flatnonzero(np.diff(span.class_index[chosen])) + 1):
                if len(where):
                    one = int(where[0])
                    number = int(span.class_index[one])
                    cuts = self.cuts(left, span.classes[number][: span.known_classes[number]])
                    self._keep_agreeing(span, closed, choose, where, cuts, variants[variant[one]])
        if words:  # "not by merges": a word of `ignore_merges` that may span the boundary leaves the leaf open
            # all ways agree on what lies before the boundary, so the piece that spans it begins at one unit of `left`
            begins = [len(left) if seam else cuts[-1] if cuts else 0 for cuts, seam in variants]
            begin = np.array(begins)[variant]
            for unit, word in words:
                where = np.array(span.beside(word), np.int64)
                choose[where[(action[where] == JOIN) & (begin[where] == unit)]] = False
        return open_ & ~choose

    def _keep_settled(self, span: TokenRange, first: np.ndarray, choose: np.ndarray, where: np.ndarray) -> None:
        """Of the leaves `where` keep those that stay with `first` if their pre-token goes on behind what is known."""
        choose[where] = self.settled(span, where) == first[where]

    def _keep_agreeing(
        self,
        span: TokenRange,
        closed: Closed,
        choose: np.ndarray,
        where: np.ndarray,
        cuts: AgreedCuts | None,
        variant: Variant,
    ) -> None:
        """Of leaves of one class string keep those that all ways to cut it agree on."""
        action, stop, _, first = closed
        if cuts is None or cuts.variant != variant:
            choose[where] = False
            return
        end = int(stop[where[0]])
        if cuts.goes_on:  # where it ends behind what is known it was asked before
            self._keep_settled(span, first, choose, where[end < span.known[where]])
        for other in cuts.stops - {
            end
        }:  # ways in which the piece ends elsewhere inside r: fixed there, but must be v, too
            choose[where] &= span.first_tokens(int(action[where[0]]), other, where) == first[where]

    def settled(self, span: TokenRange, where: np.ndarray) -> np.ndarray:
        """First token of the known bytes of r where it is decided inside a pre-token, else -1; remembered by the range."""
        if span.settled is None:
            span.settled = np.full(len(span.tokens), _UNKNOWN, dtype=np.int64)
        table = span.settled
        missing = where[table[where] == _UNKNOWN]
        if isinstance(span, FollowedRange) and len(missing):
            missing = self._settle_followed(span, missing, table)
        for i in missing.tolist():
            table[i] = self._settled(span.piece(i, int(span.known[i])), span.doubt[i])
        return table[where]

    def _settled(self, s: bytes, doubt: str) -> int:
        """The first token of s if what follows does not change it inside a pre-token, else -1. doubt: the character behind s; it
        may become another one of its family (NFC), and all of these must give the same (lemma 22)."""
        if self.decided(s):
            return self.segmenter.first(s, whole=False)
        if not doubt or not self.decided(s + doubt.encode()):
            return -1
        v = self.segmenter.first(s + doubt.encode(), whole=False)
        kin = (s + char.encode() for char in family(doubt))
        return v if all(self.decided(t) and self.segmenter.first(t, whole=False) == v for t in kin) else -1

    def _settle_followed(self, span: FollowedRange, where: np.ndarray, table: np.ndarray) -> np.ndarray:
        """enc(y r w) = enc(y) enc(r w) if the first token of r is decided and may follow enc(y) (lemma 2). Returns the rest."""
        if any(word.startswith(span.y) for word in self.segmenter.whole_words):
            return where
        part = self.settled(span.base, where)
        surely = (part >= 0) & ~np.isin(part, self.merges.illegal_after(span.y_tokens[-1]))
        table[where[surely]] = span.y_tokens[0]
        return where[~surely]

    # ==== how a class string is cut

    def cuts(self, left: str, right: str) -> AgreedCuts | None:
        """What all ways to cut left + right agree on; None where they do not, or an added text may be coming."""
        splitter, n = self.segmenter.splitter, len(left)
        both = splitter.join(left, right)
        if self._added_begun and self._ends_in_added(both):
            return None
        if splitter.byte_units:
            cuts, seam, _, _ = splitter.locate(left, right)
            return AgreedCuts((cuts, seam), frozenset(), True)
        seen, stops, goes_on = set(), set(), False
        for cuts, _, added in self._ways.all_of(both):
            if added:
                return None
            seen.add((tuple(c for c in cuts if c < n), n == 0 or n in cuts))
            stop = next((c for c in cuts if c > n), None)
            goes_on |= stop is None
            stops |= {stop - n} if stop is not None else set()
        return AgreedCuts(seen.pop(), frozenset(stops), goes_on) if len(seen) == 1 else None

    def names_added(self, both: str) -> bool:
        """Whether an added text lies in these classes or may be coming behind them. Characters as units."""
        splitter = self.segmenter.splitter
        if not splitter.added or splitter.disown(both) == both:
            return False
        return (bool(self._added_begun) and self._ends_in_added(both)) or splitter.holds_added(splitter.own(both))

    @property
    def probes(self) -> tuple[str, ...]:
        """One unit of each class that a text may go on with, none that belongs to an added text."""
        return self._ways.probes.units

    @cached_property
    def _added_begun(self) -> frozenset[str]:
        """Proper beginnings of added texts, in units."""
        added = self.segmenter.splitter.added
        spelt = [a.encode().decode("latin-1") for a in added] if self.segmenter.splitter.byte_units else added
        return frozenset(a[:i] for a in spelt for i in range(1, len(a)))

    def _ends_in_added(self, classes: str) -> bool:
        end = classes[-max(map(len, self._added_begun)) :]
        own = end if self.segmenter.splitter.byte_units else self.segmenter.splitter.own(end)
        return any(own[-i:] in self._added_begun for i in range(1, len(own) + 1))

    @cached_property
    def _ways(self) -> Ways:
        splitter = self.segmenter.splitter
        heads = {c for piece in self.vocabulary.token_bytes if piece for c in piece.decode("utf-8", "ignore")[:1]}
        chars = heads.union(_specimens())
        splitter.learn(chars)
        return Ways(splitter, tuple(sorted({splitter.disown(u) for u in splitter.classes("".join(chars).encode())})))


@lru_cache(maxsize=1)
def _specimens() -> frozenset[str]:
    """The first and the last character of each run of code points of one category: all classes that patterns tell apart by
    category occur among them."""
    categories = [unicodedata.category(chr(code)) for code in range(0x110000)]
    borders = [c for c in range(1, 0x110000) if categories[c - 1] != categories[c]]
    return frozenset(chr(c + d) for c in borders for d in (-1, 0) if categories[c + d] not in ("Cs", "Cn"))
