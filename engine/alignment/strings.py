"""What a string of bytes behind a boundary means to the student, one string at a time: its first token, and whether that is sure.

Rules (alignment/rules.py) answer definition 7 for all teacher tokens behind a context at once. Where leaves are split further,
the strings are too many for that: r, then every next token behind it. Here each string is asked for by itself and
remembered, and the bulk of the next tokens is settled by their *heads*: the first units of a token decide whether the
pre-token that ends with s is certainly closed by it, and then the answer is that of s alone (lemma 9).

Letters: Vt teacher ids, H heads, n strings, m leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine.alignment.rules import RuleBook
from engine.alignment.token_range import JOIN, TokenRange, Variant
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.nfc import is_composed
from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary

_HEAD_UNITS = 3  # characters of a token's beginning; longer look-ahead at the end of a piece has no known pattern
_MOST_STRINGS = 3_000_000
_MOST_KINDS = 50_000  # of boundaries
_MOST_CLOSING = 20_000  # class strings, at a byte for each head
NO_HEAD = (
    0  # tokens that close nothing for sure: not a text, inside a character, or may be composed with what is before
)


class Heads:
    """The beginnings of all teacher tokens in the student's classes (lemma 17). of_token: int64 [Vt], numbers below `count`;
    NO_HEAD for a token that closes nothing. classes: class string of each head."""

    def __init__(self, teacher: Vocabulary, book: RuleBook) -> None:
        splitter, index = book.splitter, {"": NO_HEAD}
        units = _HEAD_UNITS if splitter.added or not splitter.byte_units else 1
        pieces = teacher.token_bytes
        if not splitter.byte_units:
            splitter.learn({c for p in pieces if p for c in p[:16].decode("utf-8", "ignore")})
        self.of_token = np.zeros(len(pieces), np.int64)
        for token, piece in enumerate(pieces):
            if piece:
                known = units
                if book.student.nfc:
                    said = book.segmenter.known(piece)
                    known = 0 if said.composing else min(units, said.classes)
                head = splitter.canonical(splitter.classes(piece)[:known])
                self.of_token[token] = index.setdefault(head, len(index))
        self.classes = list(index)
        self.count = len(index)


class Strings:
    """Answers for strings behind one action of boundary: (prefix, partial character, pending classes, words) as for
    `RuleBook.rule`. Slots are numbers into `action`, `first`, `open`, `variant`; they stay as long as the object does."""

    def __init__(self, book: RuleBook, heads: Heads, lead: bytes, partial: bytes, left: str, words: tuple) -> None:
        self.book, self.heads, self.lead, self.partial, self.left, self.words = book, heads, lead, partial, left, words
        self.action: list[int] = []
        self.first: list[int] = []
        self.open: list[bool] = []
        self.variant: list[int] = []
        self.variants: dict[Variant, int] = {}
        self.spread: dict[
            tuple[bytes, int], tuple[list[bytes], list[float]]
        ] = {}  # engine/beam/frontier.py: closed by means
        self._slot: dict[bytes, int] = {}
        self._closing: BoundedCache[str, np.ndarray] = BoundedCache(_MOST_CLOSING)
        self._never = np.zeros(heads.count, bool)

    def __len__(self) -> int:
        return len(self._slot) + len(self.spread) + len(self._closing)

    def slots(self, strings: Sequence[bytes]) -> list[int]:
        """One for each string, asked for all at once."""
        known = self._slot
        try:
            return [known[s] for s in strings]
        except KeyError:
            self._learn(sorted({s for s in strings if s not in known}))
            return [known[s] for s in strings]

    def _learn(self, strings: list[bytes]) -> None:
        span = TokenRange(self.book.segmenter, np.arange(len(strings)), [self.lead + s for s in strings], self.partial)
        rule = self.book.make(span, self.left, self.partial, self.words)
        number = np.array([self.variants.setdefault(v, len(self.variants)) for v in rule.variants], np.int64)
        for s, slot in zip(strings, range(len(self._slot), len(self._slot) + len(strings)), strict=True):
            self._slot[s] = slot
        self.action += rule.action.tolist()
        self.first += rule.first.tolist()
        self.open += rule.open.tolist()
        self.variant += number[rule.variant].tolist()

    def final(self, s: bytes) -> bool:
        """Whether the answer of s as a whole text is that of its bytes: with NFC a text may be written with other ones."""
        return not self.book.student.nfc or is_composed(self.partial + self.lead + s)

    def closing(self, s: bytes) -> np.ndarray:
        """bool [H]: heads behind which all cuts up to the end of s are certain, the last one there, and those of s as a
        whole text: every token with such a head makes the answer of s final (lemma 17)."""
        splitter = self.book.splitter
        data = self.partial + self.lead + s
        units = splitter.canonical(splitter.classes(data))
        whole = splitter.join(self.left, units)
        if not self.final(s):
            return self._never
        known = self._closing.get(whole)
        if known is None:
            known = np.zeros(self.heads.count, bool)
            alone, n = splitter.pieces(whole), len(whole)
            begun = not splitter.byte_units and valid_utf8_prefix(data) < len(
                data
            )  # the next token may still complete it
            for number, head in enumerate(self.heads.classes):
                if number != NO_HEAD and not begun:
                    ends = splitter.certain(splitter.join(whole, head))
                    known[number] = n in ends and tuple(e for e in ends if e <= n) == alone
            self._closing[whole] = known
        return known


class StringRules:
    """All strings of one (teacher vocabulary, student) pair. `trim` between documents bounds what is remembered; in the middle of
    one, boundaries hold slots, and values grow after they are stored, so that no `BoundedCache` would do.

    pieces: bytes of each teacher token, b"" for none. is_text: bool [Vt].
    """

    def __init__(self, teacher: Vocabulary, book: RuleBook) -> None:
        self.book, self.heads = book, Heads(teacher, book)
        self.pieces = [p or b"" for p in teacher.token_bytes]
        self.is_text = np.array([bool(p) for p in teacher.token_bytes])
        self._strings: dict[tuple[bytes, bytes, str, tuple], Strings] = {}

    def strings(self, lead: bytes, partial: bytes, left: str, words: tuple) -> Strings:
        """The strings behind one kind of boundary; arguments as for `RuleBook.rule`."""
        key = (lead, partial, left, words)
        if key not in self._strings:
            self._strings[key] = Strings(self.book, self.heads, *key)
        return self._strings[key]

    def trim(self) -> None:
        """Forget everything when it is too much. What a `BoundaryStrings` holds stays with it."""
        if len(self._strings) > _MOST_KINDS or sum(len(s) for s in self._strings.values()) > _MOST_STRINGS:
            self._strings.clear()


class BoundaryStrings:
    """One boundary as strings see it: their answers settled against the student's own tokens before it.

    allowed: whether the pending bytes, cut like this, are encoded to the student's tokens. last: token before, -1: none.
    """

    def __init__(self, strings: Strings, allowed: Callable[[tuple[int, ...], bool], bool], last: int) -> None:
        self.strings, self._allowed, self._last = strings, allowed, last
        self._fine: list[bool] = []

    def answers(self, strings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """(first student token or -1, open) [n] of definition 7, as if the text ended behind each string."""
        table = self.strings
        slots = table.slots(strings)
        for cuts, seam in list(table.variants)[len(self._fine) :]:
            self._fine.append(self._allowed(cuts, seam))
        first = np.array([table.first[i] if self._fine[table.variant[i]] else -1 for i in slots], np.int64)
        open_ = np.array([table.open[i] for i in slots], bool)
        if self._last >= 0:
            join = np.array([table.action[i] == JOIN for i in slots], bool) & (first >= 0)
            illegal = table.book.merges.illegal_after(self._last) if join.any() else ()
            if len(illegal):
                at = np.minimum(np.searchsorted(illegal, first), len(illegal) - 1)  # sorted; np.isin would sort again
                first[join & (illegal[at] == first)] = -1
        return first, open_
