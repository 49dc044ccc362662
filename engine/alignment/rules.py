"""Which student token each teacher token begins at a place where a student token ends.

A *leaf* is a context c ending at byte p <= e and a teacher token t that starts with the text's bytes z = x[p:e] and
reaches past e. What t brings beyond e are the bytes r. With the student's pending part on the left (engine/bpe/pretokenizer.py),
r does one of three things (docs/design.md, definition 7):

* CUT   a pre-token boundary lies at e: the next token is the first one of BPE(r up to the next cut);
* JOIN  a pre-token spans e: the same, provided that the pair (last student token, v) is canonical (lemma 2);
* NONE  the student's encoding has no boundary at e: excluded.

A leaf is *decided* when nothing that follows can change this: the pre-token that holds v ends inside r whatever follows,
or merges and cuts leave v alone (alignment/openness.py). Else it is *open*, and `v` is the answer as if the text ended there.
Rules depend on (z, left classes) only, so they are made once and kept: arrays over the teacher tokens that start with z.
m = number of those tokens.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from engine.alignment.openness import Closed, Openness
from engine.alignment.token_range import CUT, JOIN, NONE, FollowedRange, TokenRange, Variants
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.segmenter import Segmenter
from engine.bpe.utf8 import character_length, successor, valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary

T = TypeVar("T")

_MOST_KEPT = 60_000_000  # tokens in remembered rules, at some 30 bytes each


@dataclass(frozen=True, eq=False)
class Rule:
    """What the m tokens of a range do at a boundary.

    tokens: int64 [m] teacher ids; action: int8 [m]; first: int64 [m] student id, -1 for NONE; open: bool [m]. variant: int32 [m]
    into variants, how the pending part is cut with each token: whether that agrees with the student's own tokens depends on
    these, not on their classes (`without`).
    """

    tokens: np.ndarray
    action: np.ndarray
    first: np.ndarray
    open: np.ndarray
    variant: np.ndarray
    variants: Variants
    # what is made of this rule lives and dies with it
    restrictions: dict[tuple[bool, ...], Rule] = field(default_factory=dict)  # by which variants are allowed
    resolutions: dict[int, Resolved] = field(default_factory=dict)  # by the last student token
    views: dict[type, object] = field(default_factory=dict)  # what other packages keep of it, one object a type

    def view(self, of: type[T]) -> T | None:
        """What `keep` was given of this type."""
        found = self.views.get(of)
        return found if isinstance(found, of) else None

    def keep(self, view: T) -> T:
        """Keep an object with this rule, for `view`; one of each type."""
        self.views[type(view)] = view
        return view

    def without(self, allowed: tuple[bool, ...]) -> Rule:
        """The same rule where leaves whose cuts contradict the student's own tokens are excluded."""
        bad = ~np.array(allowed)[self.variant]
        action, first = self.action.copy(), self.first.copy()
        action[bad], first[bad] = NONE, -1
        return Rule(self.tokens, action, first, self.open, self.variant, self.variants)


class Resolved(NamedTuple):
    """A rule behind one last student token. tokens: int64 [m] teacher ids. first: int64 [m], student token, -1 for NONE.
    open: bool [m]. action: int8 [m]."""

    tokens: np.ndarray
    first: np.ndarray
    open: np.ndarray
    action: np.ndarray


class TeacherTokens:
    """The teacher's ordinary tokens sorted by bytes: those that start with z are one contiguous range.

    pieces: their bytes. ids: int64, their ids. rank: id -> place in both. longest: bytes of the longest.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        pairs = sorted((piece, i) for i, piece in enumerate(vocabulary.token_bytes) if piece)
        self.pieces = [piece for piece, _ in pairs]
        self.ids = np.array([i for _, i in pairs], dtype=np.int64)
        self.rank = {token: place for place, (_, token) in enumerate(pairs)}
        self.longest = max(map(len, self.pieces))
        self._ranges: BoundedCache[bytes, tuple[int, int]] = BoundedCache()

    def range_of(self, z: bytes) -> tuple[int, int]:
        """[begin, end) of the tokens that start with z and are longer."""
        known = self._ranges.get(z)
        if known is None:
            begin = bisect.bisect_right(self.pieces, z)
            end = bisect.bisect_left(self.pieces, successor(z)) if z else len(self.pieces)
            known = self._ranges[z] = (begin, max(begin, end))
        return known


class RuleBook:
    """All rules of one (teacher vocabulary, student) pair, made on demand. Not thread-safe."""

    def __init__(self, teacher: TeacherTokens, segmenter: Segmenter) -> None:
        self.teacher, self.segmenter = teacher, segmenter
        self.student, self.merges, self.splitter = segmenter.vocabulary, segmenter.merges, segmenter.splitter
        self._openness = Openness(segmenter)
        # where another has found out what is decided inside a pre-token (`Openness.settled`): (teacher ids, bytes of z) -> it
        self.settled: Callable[[np.ndarray, int], np.ndarray] | None = None
        self._ranges: dict[tuple[bytes, bytes, bytes], TokenRange] = {}
        self._rules: dict[tuple[bytes, bytes, bytes, str, tuple[tuple[int, bytes], ...]], Rule] = {}
        # rules by content: strings of text are endless, different rules are few, memory is for some 60 million tokens in them
        self._distinct: BoundedCache[tuple[bytes, ...], Rule] = BoundedCache(
            _MOST_KEPT, weight=lambda rule: len(rule.tokens), together=(self._ranges, self._rules)
        )

    @property
    def cleared(self) -> int:
        """How often all rules were given up: who keeps rules gives up those of another number."""
        return self._distinct.cleared

    def rule(self, z: bytes, lead: bytes, partial: bytes, left: str, words: tuple[tuple[int, bytes], ...] = ()) -> Rule:
        """The rule for tokens that start with z. lead: bytes between e and r (the student's prefix space at the very start,
        text that is followed on purpose); partial: bytes before e of the character that e cuts; left: reduced classes of
        the pending part; words: (unit of `left`, rest) of whole words that only ignore_merges makes: a pre-token that
        begins at that unit and continues with exactly `rest` is one token, so there is no boundary here."""
        key = (z, lead, partial, left, words)
        known = self._rules.get(key)
        if known is None:
            made = self.make(self._range(z, lead, partial), left, partial, words)
            same = (
                z,
                made.action.tobytes(),
                made.first.tobytes(),
                made.open.tobytes(),
                repr(made.variants).encode(),
                made.variant.tobytes(),
            )
            known = self._distinct.get(same)
            if known is None:
                known = self._distinct[same] = made
            self._rules[key] = known
        return known

    def restricted(self, rule: Rule, allowed: tuple[bool, ...]) -> Rule:
        """`rule.without(allowed)`, remembered."""
        if all(allowed):
            return rule
        known = rule.restrictions.get(allowed)
        if known is None:
            known = rule.restrictions[allowed] = rule.without(allowed)
            self._distinct.charge(len(rule.tokens))
        return known

    def resolved(self, rule: Rule, last: int) -> Resolved:
        """(tokens, first or -1, open, action) with JOIN settled against the last student token (-1: none)."""
        known = rule.resolutions.get(last)
        if known is None:
            first = rule.first
            if last >= 0 and (rule.action == JOIN).any():
                illegal = self.merges.illegal_after(last)
                bad = (rule.action == JOIN) & np.isin(first, illegal)
                first = np.where(bad, -1, first)  # definition 7, JOIN: else NONE
                self._distinct.charge(len(first))
            known = rule.resolutions[last] = Resolved(rule.tokens, first, rule.open, rule.action)
        return known

    def place_of(self, rule: Rule, token: int) -> int:
        """Where a teacher token stands in `rule.tokens`: a rule's tokens are one range of the sorted vocabulary."""
        return self.teacher.rank[token] - self.teacher.rank[int(rule.tokens[0])]

    def _range(self, z: bytes, lead: bytes, partial: bytes) -> TokenRange:
        key = (z, lead, partial)
        known = self._ranges.get(key)
        if known is None:
            if lead and not partial and not self.student.nfc and valid_utf8_prefix(lead) == len(lead):
                known = FollowedRange(self._range(z, b"", b""), lead)
            else:
                begin, end = self.teacher.range_of(z)
                rest = [lead + piece[len(z) :] for piece in self.teacher.pieces[begin:end]]
                known = TokenRange(self.segmenter, self.teacher.ids[begin:end], rest, partial)
                if self.settled is not None and not (lead or partial):
                    known.settled = self.settled(known.tokens, len(z))
            self._ranges[key] = known
        return known

    def whole_words_after(self, pending: bytes, partial: bytes, units: int) -> tuple[tuple[int, bytes], ...]:
        """The `words` of a boundary: see `rule`. pending: bytes before it (partial character included), `units` whole ones."""
        words = self.segmenter.whole_words
        if not words or not pending:
            return ()
        text, found = pending[: len(pending) - len(partial)].decode("utf-8"), []
        for unit in range(units + bool(partial)):
            begun = text[unit:].encode("utf-8") + partial
            for word in words[bisect.bisect_right(words, begun) : bisect.bisect_left(words, successor(begun))]:
                found.append((unit, word[len(begun) :]))
        return tuple(found)

    def make(self, span: TokenRange, left: str, partial: bytes, words: tuple[tuple[int, bytes], ...]) -> Rule:
        """Definition 7 for all tokens of a range, and which leaves are open. left, partial, words: as for `rule`."""
        action, stop, sure, variant, variants = span.cuts(left)
        across = action == NONE  # an added text lies across the boundary
        action = np.full_like(action, JOIN) if partial else np.where(across, JOIN, action)
        first = np.full(len(span.tokens), -1, dtype=np.int64)
        # one call for each distinct (action, stop): v is the first token of r up to its first cut, as a whole pre-token or a part
        code = action * (int(stop.max(initial=0)) + 1) + stop
        for pair in np.flatnonzero(np.bincount(code)):
            where = np.flatnonzero(code == pair)
            first[where] = span.first_tokens(int(action[where[0]]), int(stop[where[0]]), where)
        open_ = ~sure | span.composing  # lemma 9: certain cuts up to the end of v's pre-token decide
        action = action.astype(np.int8)
        if not (partial and self.splitter.byte_units):
            open_ = self._openness.settle(span, left, Closed(action, stop, variant, first), variants, words, open_)
        else:
            self._settle_characters(span, partial, action, first, open_)
        # Words that only ignore_merges makes have no boundary inside. begins: where the piece across the boundary begins in
        # `left`.
        begins = [len(left) if seam else cuts[-1] if cuts else 0 for cuts, seam in variants]
        for unit, rest in words:
            for i in span.starting_with(rest):
                if action[i] == JOIN and begins[variant[i]] == unit and span.piece(i, int(stop[i])) == rest:
                    first[i] = -1
        first[across] = -1
        action[first < 0] = NONE
        return Rule(span.tokens, action, first, open_, variant.astype(np.int32), variants)

    def _settle_characters(
        self, span: TokenRange, partial: bytes, action: np.ndarray, first: np.ndarray, open_: np.ndarray
    ) -> None:
        """SentencePiece, e inside a character: byte tokens continue only while the character has no token of its own."""
        for i, r in enumerate(span.rest):
            size = character_length(r[0])
            whole = len(r) >= size and valid_utf8_prefix(r[:size]) == size
            known = whole and self.student.id_of_bytes.get(r[:size]) is not None
            action[i] = NONE if known else CUT
            first[i] = (
                -1 if known or not self.student.byte_fallback else self.student.byte_tokens.get(r[len(partial)], -1)
            )
            open_[i] = not whole or (self.student.nfc and (span.composing[i] or span.known[i] < size))
