"""Stage 6: for one student boundary, which student token does each teacher token begin?

A *leaf* is a context c ending at byte p <= e and a teacher token t that starts with the text's bytes z = x[p:e] and
reaches past e. What t brings beyond e are the bytes r. With the student's pending part on the left (engine/split.py),
r falls into one of three kinds (docs/design.md, definition 7):

* CUT   a pre-token boundary lies at e: the next token is the first one of BPE(r up to the next cut);
* JOIN  a pre-token spans e: the same, provided that the pair (last student token, v) is canonical (lemma 2);
* NONE  the student's encoding has no boundary at e: excluded.

A leaf is *decided* when the pre-token that holds v ends inside r whatever follows; else it is *open*, and `v` is the
answer as if the text ended there. Rules depend on (z, left classes) only, so they are made once and kept: arrays over the
teacher tokens that start with z. m = number of those tokens.
"""

from __future__ import annotations

import bisect
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from engine.bpe import MergeTable
from engine.split import Splitter
from engine.vocab import Vocabulary, valid_utf8_prefix

NONE, CUT, JOIN = 0, 1, 2
_UNKNOWN = -2


@dataclass(frozen=True, eq=False)
class Rule:
    """What the m tokens of a range do at a boundary.

    tokens: int64 [m] teacher ids; kind: int8 [m]; first: int64 [m] student id, -1 for NONE; open: bool [m].
    """

    tokens: np.ndarray
    kind: np.ndarray
    first: np.ndarray
    open: np.ndarray
    variant: np.ndarray
    variants: tuple[tuple[tuple[int, ...], bool], ...]

    def without(self, allowed: tuple[bool, ...]) -> Rule:
        """The same rule where leaves whose cuts contradict the student's own tokens are excluded."""
        bad = ~np.array(allowed)[self.variant]
        kind, first = self.kind.copy(), self.first.copy()
        kind[bad], first[bad] = NONE, -1
        return Rule(self.tokens, kind, first, self.open, self.variant, self.variants)


@dataclass(eq=False)
class _Range:
    """The teacher tokens that start with z: the bytes r after it, behind the student's lead or partial character."""

    tokens: np.ndarray
    rest: list[bytes]
    class_index: np.ndarray
    classes: list[str]
    composing: np.ndarray
    tables: dict[tuple[int, int], np.ndarray]


class TeacherTokens:
    """The teacher's ordinary tokens sorted by bytes: those that start with z are one contiguous range."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        pairs = sorted((piece, i) for i, piece in enumerate(vocabulary.token_bytes) if piece)
        self.pieces = [piece for piece, _ in pairs]
        self.ids = np.array([i for _, i in pairs], dtype=np.int64)
        self.longest = max(map(len, self.pieces))
        self._ranges: dict[bytes, tuple[int, int]] = {}

    def range_of(self, z: bytes) -> tuple[int, int]:
        """[begin, end) of the tokens that start with z and are longer."""
        known = self._ranges.get(z)
        if known is None:
            begin = bisect.bisect_right(self.pieces, z)
            end = bisect.bisect_left(self.pieces, _successor(z)) if z else len(self.pieces)
            known = self._ranges[z] = (begin, max(begin, end or len(self.pieces)))
        return known


def _successor(z: bytes) -> bytes:
    """The smallest byte string greater than all strings that start with z."""
    trimmed = z.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\xff" * 64


class RuleBook:
    """All rules of one (teacher vocabulary, student) pair, made on demand. Not thread-safe."""

    def __init__(self, teacher: TeacherTokens, student: Vocabulary, merges: MergeTable, splitter: Splitter) -> None:
        self.teacher, self.student, self.merges, self.splitter = teacher, student, merges, splitter
        self._ranges: dict[tuple[bytes, bytes, bytes], _Range] = {}
        self._rules: dict[tuple[bytes, bytes, bytes, str], Rule] = {}
        self._distinct: dict[tuple[bytes, ...], Rule] = {}
        self._restricted: dict[tuple[int, tuple[bool, ...]], Rule] = {}
        self._resolved: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}

    def rule(self, z: bytes, lead: bytes, partial: bytes, left: str) -> Rule:
        """The rule for tokens that start with z. lead: what the student puts before r (its prefix space, at the very
        start); partial: bytes before e of the character that e cuts; left: reduced classes of the pending part."""
        key = (z, lead, partial, left)
        known = self._rules.get(key)
        if known is None:
            made = self._make(self._range(z, lead, partial), left, partial)
            same = (z, made.kind.tobytes(), made.first.tobytes(), made.open.tobytes(), repr(made.variants).encode(), made.variant.tobytes())
            known = self._rules[key] = self._distinct.setdefault(same, made)
        return known

    def restricted(self, rule: Rule, allowed: tuple[bool, ...]) -> Rule:
        """`rule.without(allowed)`, remembered."""
        if all(allowed):
            return rule
        key = (id(rule), allowed)
        if key not in self._restricted:
            self._restricted[key] = rule.without(allowed)
        return self._restricted[key]

    def resolved(self, rule: Rule, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, first or -1, open, kind) with JOIN settled against the last student token (-1: none)."""
        key = (id(rule), last)
        known = self._resolved.get(key)
        if known is None:
            first = rule.first
            if last >= 0 and (rule.kind == JOIN).any():
                illegal = self.merges.illegal_after(last)
                bad = (rule.kind == JOIN) & np.isin(first, illegal)
                first = np.where(bad, -1, first)
            known = self._resolved[key] = (rule.tokens, first, rule.open, rule.kind)
        return known

    def _range(self, z: bytes, lead: bytes, partial: bytes) -> _Range:
        key = (z, lead, partial)
        known = self._ranges.get(key)
        if known is None:
            begin, end = self.teacher.range_of(z)
            front = lead + partial
            rest = [front + piece[len(z) :] for piece in self.teacher.pieces[begin:end]]
            strings = [self.splitter.canonical(self._classes_of(r)) for r in rest]
            index = {s: i for i, s in enumerate(dict.fromkeys(strings))}
            known = self._ranges[key] = _Range(
                tokens=self.teacher.ids[begin:end],
                rest=rest,
                class_index=np.array([index[s] for s in strings], dtype=np.int64),
                classes=list(index),
                composing=np.array([self.student.nfc and _may_compose(r) for r in rest], dtype=bool),
                tables={},
            )
        return known

    def _classes_of(self, r: bytes) -> str:
        return self.splitter.classes(r)

    def _make(self, span: _Range, left: str, partial: bytes) -> Rule:
        variants: dict[tuple[tuple[int, ...], bool], int] = {}
        per_class = np.zeros((len(span.classes), 4), dtype=np.int64)  # kind, stop, sure, variant
        for i, (cuts, seam, stop, sure) in enumerate(self._locate_all(left, span.classes)):
            kind = CUT if seam and not partial else JOIN
            per_class[i] = kind, stop, sure, variants.setdefault((cuts, seam), len(variants))
        kind, stop, sure, variant = (per_class[:, c][span.class_index] for c in range(4))
        first = np.full(len(span.tokens), -1, dtype=np.int64)
        for k, s in {(int(a), int(b)) for a, b in np.unique(per_class[:, :2], axis=0)}:
            where = np.flatnonzero((kind == k) & (stop == s))
            first[where] = self._first_tokens(span, k, s, where, len(partial))
        open_ = ~sure.astype(bool) | span.composing
        kind = kind.astype(np.int8)
        if partial and self.splitter.byte_units:
            self._settle_characters(span, partial, kind, first, open_)
        kind[first < 0] = NONE
        return Rule(span.tokens, kind, first, open_, variant.astype(np.int32), tuple(variants))

    def _locate_all(self, left: str, rights: list[str]):
        if self.splitter.byte_units and not self.splitter.added and len(left) == 1:
            # bytes: the seam depends on the two bytes around it, the rest on the right side alone
            alone = self._alone(tuple(rights))
            seams = {b: self.splitter.locate(left, b)[1] for b in {r[:1] for r in rights}}
            for right, (_, _, stop, sure) in zip(rights, alone, strict=True):
                yield (), seams[right[:1]], stop, sure
            return
        for right in rights:
            yield self.splitter.locate(left, right)

    @lru_cache(maxsize=64)  # noqa: B019  the book lives as long as the actor
    def _alone(self, rights: tuple[str, ...]):
        return [self.splitter.locate("", right) for right in rights]

    def _first_tokens(self, span: _Range, kind: int, stop: int, where: np.ndarray, skip: int) -> np.ndarray:
        table = span.tables.get((kind, stop))
        if table is None:
            table = span.tables[kind, stop] = np.full(len(span.tokens), _UNKNOWN, dtype=np.int64)
        for i in where[table[where] == _UNKNOWN]:
            piece = self._units(span.rest[i], stop)[skip:]
            table[i] = self._first(piece, whole=kind == CUT)
        return table[where]

    def _units(self, r: bytes, count: int) -> bytes:
        """The first `count` units of r as bytes (an incomplete character at the end is one unit)."""
        if self.splitter.byte_units:
            return r[:count]
        whole = valid_utf8_prefix(r)
        text = r[:whole].decode("utf-8")
        return r if count > len(text) else text[:count].encode("utf-8")

    @cached_property
    def _firsts(self) -> dict[tuple[bytes, bool], int]:
        return {}

    def _first(self, piece: bytes, *, whole: bool) -> int:
        key = (piece, whole)
        known = self._firsts.get(key)
        if known is None:
            added = self.student.added_text.get(piece.decode("utf-8", "replace")) if whole else None
            known = added if added is not None else next(iter(self.student.bpe(piece, whole=whole)), -1)
            self._firsts[key] = known
        return known

    def _settle_characters(self, span: _Range, partial: bytes, kind: np.ndarray, first: np.ndarray, open_: np.ndarray) -> None:
        """SentencePiece, e inside a character: byte tokens continue only while the character has no token of its own."""
        for i, r in enumerate(span.rest):
            size = _character_length(r[0])
            whole = len(r) >= size and valid_utf8_prefix(r[:size]) == size
            known = whole and self.student.id_of_bytes.get(r[:size]) is not None
            kind[i] = NONE if known else CUT
            first[i] = -1 if known or not self.student.byte_fallback else self.student.fallback_ids[r[len(partial)]]
            open_[i] = not whole


def _character_length(lead: int) -> int:
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


@lru_cache(maxsize=1)
def _composing() -> frozenset[str]:
    """Characters that NFC may merge with, or reorder before, the one in front of them."""
    found = set()
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        char = chr(code)
        decomposed = unicodedata.decomposition(char)
        if unicodedata.combining(char):
            found.add(char)
        elif decomposed and not decomposed.startswith("<"):
            found.add(char)  # NFC may replace it
            found.update(chr(int(c, 16)) for c in decomposed.split()[1:])
    found.update(chr(c) for c in range(0x1161, 0x11C3))  # Hangul vowels and finals
    return frozenset(found)


def _may_compose(r: bytes) -> bool:
    text = r.decode("utf-8", "ignore")
    return not text.isascii() and any(c in _composing() for c in text)
