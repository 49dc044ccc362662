"""What each token of a vocabulary does behind a context: it may stand there always, never, or if its pair with the last does.

In: a `State`, all that the next token depends on. Out: `NextTokens`, int8 [V] of actions (docs/design.md, definition 10 and
lemma 11). ALWAYS: some agreeing way cuts between context and token. PAIR: none does, and one goes on, so that by lemma 2 the
pair with the last token decides. NEVER: neither. Actions are found per distinct class string of the vocabulary, or, where
units are bytes, from two bytes and the lists of tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.continuations import Ways, units_of_tokens
from engine.bpe.merges import NEVER as UNREACHABLE
from engine.bpe.segmenter import Segmenter
from engine.bpe.utf8 import (
    character_length,
    characters_beginning,
    characters_from,
    is_continuation,
    open_tail,
    successor,
    valid_utf8_prefix,
)

NEVER, ALWAYS, PAIR = 0, 1, 2
# How a token can be made: by merges; by `ignore_merges` only, as a whole pre-token; as an added text, before pre-tokenization.
_ORDINARY, _WHOLE_ONLY, _ADDED = 0, 1, 2
_MOST_TABLES = 4_000
_MOST_ARRAYS = 1_000  # int8 [V] each
_MOST_COMPLETIONS = 200_000


class State(NamedTuple):
    """All that the next token depends on. Hashable; equal states have equal answers.

    left: class string of the pending part's whole units (byte units: its last bytes). partial: bytes of an incomplete
    character. agree: for each way of the table (left, partial), whether the pending tokens are what it is encoded to.
    last: last token, -1 where a cut is certain. ends: whether the tokens are a whole text. opening: nothing of the text is
    there yet, at most the prefix space. closed: ids that would complete a word which only ignore_merges makes.
    """

    left: str
    partial: bytes
    agree: tuple[bool, ...]
    last: int
    ends: bool
    opening: bool
    closed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NextTokens:
    """action: int8 [V] (ids without a token and specials: ALWAYS); never: int32 ids; has_pair: whether any action is PAIR.

    number: of this object, used once only, so that answers can be remembered by it.
    """

    number: int
    action: np.ndarray
    never: np.ndarray
    has_pair: bool


@dataclass(frozen=True, eq=False)
class _Span:
    """The m tokens that may follow a partial character (b"": none), by distinct class string.

    tokens: int64 [m], ids. key: int64 [m], into keys. keys: (class strings of partial character and token, several where the
    token ends inside a character that may become one of many; whether it does end inside one).
    """

    tokens: np.ndarray
    key: np.ndarray
    keys: list[tuple[tuple[str, ...], bool]]


@dataclass(frozen=True, eq=False)
class Table:
    """How each key of a span is cut behind `left`, over all continuations (lemma 11: the cuts of P r y).

    variants: what the ways do to `left`: (cuts inside it, whether one lies at its end). behaviour: int64 [keys], into behaviours:
    sets of (variant, whether a cut lies at the token's end, whether the piece that ends there is an added text). made: which
    variants agree with the context's tokens -> the answer.
    """

    span: _Span
    variants: list[tuple[tuple[int, ...], bool]]
    behaviour: np.ndarray
    behaviours: list[frozenset[tuple[int, bool, bool]]]
    made: dict[tuple[bool, ...], NextTokens] = field(default_factory=dict)


class NextTokensBook:
    """What tokens do behind all contexts of one vocabulary, made on demand. Not thread-safe."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.vocabulary, self.merges, self.splitter = segmenter.vocabulary, segmenter.merges, segmenter.splitter
        self._spans: dict[bytes, _Span] = {}  # as many as there are beginnings of characters
        self._tables: BoundedCache[tuple[str, bytes], Table] = BoundedCache(_MOST_TABLES)
        self._by_bytes: BoundedCache[tuple[str, bytes, bool], NextTokens] = BoundedCache(_MOST_TABLES)
        # arrays by content; both caches above hold arrays, so that memory is free only when all three are empty
        self._distinct: BoundedCache[bytes, NextTokens] = BoundedCache(
            _MOST_ARRAYS, together=(self._tables, self._by_bytes)
        )
        self._numbers = 0
        self._completions: BoundedCache[tuple[int, bytes], frozenset[str]] = BoundedCache(_MOST_COMPLETIONS)
        self._continuing: dict[bytes, tuple[np.ndarray, list[str]]] = {}

    # ==== characters as units

    @cached_property
    def _ways(self) -> Ways:
        """Continuations are never the beginning of an added text, so units are taken without what they are in one."""
        units = units_of_tokens(self.vocabulary, self.splitter)
        return Ways(self.splitter, tuple(sorted({self.splitter.disown(c) for c in units})))

    @cached_property
    def _sort(self) -> np.ndarray:
        """int8 [V]: how each token can be made (_ORDINARY ..), -1 not at all."""
        sort = np.where(self.merges.birth != UNREACHABLE, _ORDINARY, -1).astype(np.int8)
        if self.vocabulary.ignore_merges:
            sort[sort < 0] = _WHOLE_ONLY
        for token, piece in enumerate(self.vocabulary.token_bytes):
            if not piece:
                sort[token] = -1
        sort[list(self.vocabulary.added_text.values())] = _ADDED
        return sort

    @cached_property
    def _blank(self) -> np.ndarray:
        """int8 [V]: NEVER for tokens; ALWAYS for ids without a token, and for specials, which are handled by `ends`."""
        action = np.full(self.vocabulary.size, NEVER, np.int8)
        action[[i for i, piece in enumerate(self.vocabulary.token_bytes) if piece is None]] = ALWAYS
        return action

    def _span(self, front: bytes) -> _Span:
        """The tokens that may follow `front`, the beginning of a character: those that go on with it as UTF-8 does."""
        known = self._spans.get(front)
        if known is None:
            index: dict[tuple[tuple[str, ...], bool], int] = {}
            tokens, keys = [], []
            if not self._spans:
                self.splitter.learn({c for p in self.vocabulary.token_bytes if p for c in p.decode("utf-8", "ignore")})
            candidates = self._tails if front else range(self.vocabulary.size)
            for token in candidates:
                piece = self.vocabulary.token_bytes[token]
                tail = open_tail(front + piece) if piece and self._sort[token] >= 0 else None
                if piece and tail is not None and (strings := self._strings(token, front + piece, tail)):
                    tokens.append(token)
                    keys.append(index.setdefault((strings, bool(tail)), len(index)))
            known = _Span(np.array(tokens, np.int64), np.array(keys, np.int64), list(index))
            self._spans[front] = known
        return known

    def _strings(self, token: int, data: bytes, tail: bytes) -> tuple[str, ...]:
        """Class strings that `data` may turn out to be. data ends with `token`, whose incomplete last character is `tail`."""
        classes = self.splitter.classes(data[: len(data) - len(tail)])
        if not tail:
            return (self.splitter.canonical(classes),)
        return tuple(sorted({self.splitter.canonical(classes + unit) for unit in self._units_after(token, tail)}))

    @cached_property
    def _tails(self) -> list[int]:
        """Tokens that begin inside a character, and can be made."""
        pieces = self.vocabulary.token_bytes
        return [i for i, p in enumerate(pieces) if p and is_continuation(p[0]) and self._sort[i] == _ORDINARY]

    def _units_after(self, token: int, tail: bytes) -> frozenset[str]:
        """Classes of the characters that begin with `tail`, the end of `token`, and leave the token as it is (lemma 2:
        some token that goes on with the character is canonical after it). Empty: every completion merges with it."""
        known = self._completions.get((token, tail))
        if known is None:
            if tail not in self._continuing:
                self._continuing[tail] = self._find_continuing(tail)
            ids, units = self._continuing[tail]
            found: set[str] = set()
            free = np.flatnonzero(~np.isin(ids, self.merges.illegal_after(token))).tolist()
            if free and len(tail) == 1 and character_length(tail[0]) == 4:  # too many: one of each Unicode category
                found.update(self.splitter.classes("".join(characters_from(tail)).encode("utf-8")))
                free = []
            for i in free:
                if units[i]:
                    found.add(units[i])
                else:
                    found |= self._units_after(int(ids[i]), tail + (self.vocabulary.token_bytes[ids[i]] or b""))
            known = self._completions[token, tail] = frozenset(found)
        return known

    def _find_continuing(self, tail: bytes) -> tuple[np.ndarray, list[str]]:
        """(ids, class of the character that each completes, "" while it does not)."""
        size = character_length(tail[0])
        grown = [(token, tail + (self.vocabulary.token_bytes[token] or b"")) for token in self._tails]
        grown = [(token, data) for token, data in grown if open_tail(data) is not None]
        self.splitter.learn({data[:size].decode("utf-8") for _, data in grown if len(data) >= size})
        units = [self.splitter.classes(data[:size]) if len(data) >= size else "" for _, data in grown]
        return np.array([token for token, _ in grown], np.int64), units

    def table(self, left: str, partial: bytes) -> Table:
        """How every token may be cut behind a pending part of these classes that ends with a partial character.

        Long runs of one class give what shorter ones give, so that words of any length share a table; not where cuts lie inside
        the pending part, which are counted in units.
        """
        known = self._tables.get((left, partial))
        if known is None:
            short = self.splitter.shorten(left)
            known = None if short == left else self.table(short, partial)
            if known is None or any(cuts for cuts, _ in known.variants):
                known = self.make_table(left, self._span(partial))
            self._tables[left, partial] = known
        return known

    def make_table(self, left: str, span: _Span) -> Table:
        n = len(left)
        variants: dict[tuple[tuple[int, ...], bool], int] = {}
        behaviours: dict[frozenset[tuple[int, bool, bool]], int] = {}
        rows = []
        for strings, inside in span.keys:
            entries = set()
            for right in strings:
                for cuts, end, added in self._ways.around(
                    left, right
                ):  # lemma 11, (1): no cut strictly inside the token
                    seam = n == 0 or n in cuts
                    if not (inside and added):
                        variant = (tuple(c for c in cuts if c < n), seam)
                        entries.add((variants.setdefault(variant, len(variants)), end and not inside, added))
            rows.append(behaviours.setdefault(frozenset(entries), len(behaviours)))
        return Table(span, list(variants), np.array(rows, np.int64), list(behaviours))

    def next_tokens(self, state: State) -> NextTokens:
        """What every id does behind a context in this state."""
        if self.splitter.byte_units:
            key = (state.left, state.partial, state.opening)
            known = self._by_bytes.get(key)
            if known is None:
                known = self._by_bytes[key] = self._keep(self._actions_by_bytes(*key))
            return known
        table = self.table(state.left, state.partial)
        if state.agree not in table.made:
            table.made[state.agree] = self._keep(self._actions(table, state))
        return table.made[state.agree]

    def _actions(self, table: Table, state: State) -> np.ndarray:
        """int8 [V], by lemma 11: ways that disagree with the context's tokens are none of this context (2); of the others one
        with a cut at the seam lets the token stand whatever is before it, one without asks for the pair (3)."""
        rule = np.zeros((len(table.behaviours), 3), np.int8)  # [behaviours, how a token is made] -> action
        for i, entries in enumerate(table.behaviours):
            agreed = [(table.variants[v][1] and not state.partial, e, a) for v, e, a in entries if state.agree[v]]
            # inside a character no cut lies at the seam, whatever the classes say: the character is cut as a whole
            cut, join = (any(seam == want and not a for seam, _, a in agreed) for want in (True, False))
            rule[i, _ORDINARY] = ALWAYS if cut else PAIR if join else NEVER
            rule[i, _WHOLE_ONLY] = ALWAYS if any(seam and e and not a for seam, e, a in agreed) else NEVER
            rule[i, _ADDED] = ALWAYS if any(seam and e and a for seam, e, a in agreed) else NEVER
        action = self._blank.copy()
        span = table.span
        action[span.tokens] = rule[table.behaviour[span.key], self._sort[span.tokens]]
        return action

    def _keep(self, action: np.ndarray) -> NextTokens:
        """Many class strings give the same actions; keep each array once."""
        key = action.tobytes()
        known = self._distinct.get(key)
        if known is None:
            never = np.flatnonzero(action == NEVER).astype(np.int32)
            known = self._distinct[key] = NextTokens(self._numbers, action, never, bool((action == PAIR).any()))
            self._numbers += 1  # never used twice: others remember answers by it
        return known

    # ==== bytes as units (SentencePiece): no look-ahead, cuts between two bytes (lemma 6)

    def _actions_by_bytes(self, left: str, partial: bytes, opening: bool) -> np.ndarray:
        """int8 [V]. Tokens of characters are PAIR, ALWAYS behind a cut. Byte tokens spell characters without a token of their
        own: PAIR where such a character begins with the bytes so far. left: the bytes of `partial` among them."""
        action, added = self._blank.copy(), self.splitter.added_texts
        for byte, token in self.vocabulary.byte_tokens.items():
            taken = bool(added) and any(stop > len(left) for _, stop in added.matches(left + chr(byte)))
            taken |= opening and not left and not self.vocabulary.prefix_bytes.startswith(bytes([byte]))
            action[token] = PAIR if self._untold(partial + bytes([byte])) and not taken else NEVER
        if partial:
            return action
        ids, heads = self._uncut
        matches = added.matches(left)
        if not left or (matches and matches[-1][1] == len(left)):  # the context ends in an added text: a cut
            action[ids] = ALWAYS
        else:
            assert self.splitter.never is not None  # where units are bytes
            action[ids] = np.where(self.splitter.never[ord(left[-1])][heads], ALWAYS, PAIR)
        if opening and not left:
            action[self._without_prefix] = NEVER
        action[list(self.vocabulary.added_text.values())] = (
            NEVER if opening else ALWAYS
        )  # no prefix stands before these
        # no added text lies across a place where a token ends: one that began in the context would end in, or behind, these
        pieces, order = self._sorted_pieces
        for begin in added.coming(left):
            for text in added.longer_than(left[begin:]):
                rest = text[len(left) - begin :].encode("latin-1")
                action[order[bisect_left(pieces, rest) : bisect_left(pieces, successor(rest))]] = NEVER
        return action

    @cached_property
    def _sorted_pieces(self) -> tuple[list[bytes], np.ndarray]:
        """(bytes of all tokens, rising, their ids)."""
        pairs = sorted((piece, token) for token, piece in enumerate(self.vocabulary.token_bytes) if piece)
        return [piece for piece, _ in pairs], np.array([token for _, token in pairs], np.int64)

    @cached_property
    def _without_prefix(self) -> np.ndarray:
        """int64 ids of `_uncut` that do not begin with what the tokenizer puts before a text."""
        pieces, prefix = self.vocabulary.token_bytes, self.vocabulary.prefix_bytes
        ids = [token for token in self._uncut[0].tolist() if not (pieces[token] or b"").startswith(prefix)]
        return np.array(ids, np.int64)

    @cached_property
    def _uncut(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, first byte) of the tokens of whole characters that can be made, are not cut inside, and hold no added text."""
        own, apart, added = self.vocabulary.id_of_bytes, set(self.vocabulary.fallback_ids), self.splitter.added_texts
        ids = [
            token
            for token, piece in enumerate(self.vocabulary.token_bytes)
            if piece and self._sort[token] == _ORDINARY and token not in apart and own.get(piece) == token
            and len(self.splitter.pieces(text := piece.decode("latin-1"))) == 1 and not added.matches(text)
        ]  # fmt: skip
        return np.array(ids, np.int64), np.array([(self.vocabulary.token_bytes[i] or b"?")[0] for i in ids], np.int64)

    @cached_property
    def _told(self) -> dict[bytes, int]:
        """Beginning of a character -> how many characters begin so and have a token of their own."""
        count: dict[bytes, int] = {}
        apart = set(self.vocabulary.fallback_ids)
        for piece, token in self.vocabulary.id_of_bytes.items():
            if token not in apart and valid_utf8_prefix(piece) == len(piece) and len(piece.decode("utf-8")) == 1:
                for size in range(1, len(piece) + 1):
                    count[piece[:size]] = count.get(piece[:size], 0) + 1
        return count

    def _untold(self, begun: bytes) -> bool:
        """Whether some character begins with (or is) these bytes and has no token of its own."""
        return characters_beginning(begun) > self._told.get(begun, 0)
