"""One tokenizer as one object that encodes pieces of a text: whole pre-tokens, beginnings of pre-tokens, and pending bytes
that are cut in a given way.

In: bytes, and where they are cut (bpe/pretokenizer.py, bpe/continuations.py). Out: token ids. It serves the teacher's contexts
and a student's boundaries alike. Everything about one tokenizer that is asked for many times is remembered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.merges import MergeTable, build_merge_table
from engine.bpe.nfc import family, fixed
from engine.bpe.pretokenizer import LONGEST_PENDING, Splitter, build_splitter
from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary

_MOST_FIRSTS = 4_000_000


class Known(NamedTuple):
    """Of a string behind a boundary. sure: how many of its units, from the beginning, are whole and no continuation changes them;
    size: their bytes. doubt: the character behind these where it may become another one, but of the same class (NFC); else "".
    composing: whether NFC may change the string itself, or what stands before it. classes: units whose classes no continuation
    changes."""

    sure: int
    size: int
    doubt: str = ""
    composing: bool = False

    @property
    def classes(self) -> int:
        return self.sure + bool(self.doubt)


class Segmenter:
    """Vocabulary, merges and pre-tokenizer of one tokenizer. Not thread-safe (it remembers).

    by_bytes: units are bytes and no added texts: cuts depend on two neighbouring bytes alone (lemma 6).
    whole_words: sorted bytes of the tokens that merges cannot make and `ignore_merges` can, where they are a whole pre-token.
    """

    def __init__(self, vocabulary: Vocabulary, merges: MergeTable, splitter: Splitter) -> None:
        self.vocabulary, self.merges, self.splitter = vocabulary, merges, splitter
        self.by_bytes = splitter.byte_units and not splitter.added
        self.whole_words = sorted(
            piece
            for i, piece in enumerate(vocabulary.token_bytes)
            if vocabulary.ignore_merges and piece is not None and not merges.reachable(i)
        )
        self._whole_differs = vocabulary.ignore_merges or bool(vocabulary.added_text)
        self._firsts: BoundedCache[tuple[bytes, bool], int] = BoundedCache(_MOST_FIRSTS)
        self._seams: BoundedCache[str, np.ndarray] = BoundedCache(10_000)  # 2 KiB each
        self._whole: BoundedCache[bytes, tuple[int, ...]] = BoundedCache()
        self._part: BoundedCache[bytes, tuple[int, ...]] = BoundedCache()
        self._steady: dict[tuple[str | None, str], bool] = {}  # of characters in use, behind the classes in use

    # ==== pieces

    @cached_property
    def longest_apart(self) -> int:
        """Bytes of the longest piece that may be no work of merges: an added text, a word of `ignore_merges`."""
        words = self.vocabulary.token_bytes if self.vocabulary.ignore_merges else ()
        return max((len(p) for p in (*(a.encode() for a in self.vocabulary.added_text), *words) if p), default=0)

    def added_id(self, piece: bytes) -> int | None:
        """Id of the added text with these bytes: matched before pre-tokenization, never spelt by merges. None: there is none."""
        added = self.vocabulary.added_text
        return added.get(piece.decode("utf-8", "replace")) if added else None

    def encode_whole(self, piece: bytes) -> tuple[int, ...]:
        """Token ids of a whole pre-token: an added text, a word of `ignore_merges`, or what the merges make of it."""
        known = self._whole.get(piece)
        if known is None:
            added = self.added_id(piece)
            made = self.vocabulary.bpe(piece) if added is None else (added,)
            known = self._whole[piece] = tuple(made)
        return known

    def encode_part(self, piece: bytes) -> tuple[int, ...]:
        """Token ids of the beginning of a pre-token that goes on, if a token ends where it ends (lemma 1): merges only."""
        known = self._part.get(piece)
        if known is None:
            known = self._part[piece] = tuple(self.vocabulary.bpe(piece, whole=False))
        return known

    def encode_cut(
        self, pending: bytes, partial: bytes, cuts: Sequence[int], seam: bool, *, units: int | None = None
    ) -> list[int] | None:
        """Token ids of pending bytes that are cut like this (lemma 11, (2); definition 7); None when no token can end here.

        partial: their end, as far as it is an incomplete character. cuts: strictly inside what lies before it, in units. seam:
        whether a cut lies behind the last whole unit (with an empty `partial`: at the end). units: for byte units, how many of
        the bytes before `partial` the cuts are counted in (a class string may be reduced to the last ones); None: all.
        """
        whole = pending[: len(pending) - len(partial)]
        if self.splitter.byte_units:
            begin = len(whole) - (len(whole) if units is None else units)
            bounds = [begin + c for c in cuts]
        else:
            text = whole.decode("utf-8")
            bounds = [len(text[:c].encode("utf-8")) for c in cuts]
        if seam:
            bounds.append(len(whole))
        out: list[int] = []
        at = 0
        for bound in bounds:
            out += self.encode_whole(pending[at:bound])
            at = bound
        rest = pending[at:]  # empty, or the beginning of a piece that goes on
        if rest and self.added_id(rest) is not None:
            return None  # an added text that goes on is a longer added text: one token, which ends behind these bytes
        return [*out, *self.encode_part(rest)]

    def agrees(
        self,
        pending: bytes,
        partial: bytes,
        cuts: Sequence[int],
        seam: bool,
        tokens: Sequence[int],
        *,
        units: int | None = None,
    ) -> bool:
        """Whether the pending bytes, cut like this, are encoded to these tokens. Arguments as for `encode_cut`."""
        return not pending or self.encode_cut(pending, partial, cuts, seam, units=units) == list(tokens)

    # ==== what ranges of tokens ask for (engine/alignment)

    def first(self, piece: bytes, *, whole: bool) -> int:
        """First token of a piece, -1 when it has none. whole: the piece is a whole pre-token."""
        key = (piece, whole and self._whole_differs)
        known = self._firsts.get(key)
        if known is None:
            added = self.added_id(piece) if whole else None
            known = added if added is not None else next(iter(self.vocabulary.bpe(piece, whole=whole)), -1)
            self._firsts[key] = known
        return known

    def units(self, r: bytes, count: int) -> bytes:
        """The first `count` units of r as bytes (an incomplete character at the end is one unit)."""
        if self.splitter.byte_units:
            return r[:count]
        whole = valid_utf8_prefix(r)
        text = r[:whole].decode("utf-8")
        return r if count > len(text) else text[:count].encode("utf-8")

    def known(self, r: bytes) -> Known:
        """What no continuation changes of r (lemma 22)."""
        bytes_ = self.splitter.byte_units
        if not self.vocabulary.nfc:
            whole = valid_utf8_prefix(r)
            return Known(whole if bytes_ else len(r[:whole].decode("utf-8")), whole)
        count, doubt, size, composes = fixed(r)
        if bytes_:
            return Known(size, size, composing=composes)
        if doubt and not self._is_steady(None, doubt):
            before = self.splitter.canonical(self.splitter.classes(r[:size]))[-1:]
            doubt = doubt if before and self._is_steady(before, doubt) else ""
        return Known(count, size, doubt, composes)

    def _is_steady(self, before: str | None, char: str) -> bool:
        """Whether all that NFC may make of a character is one class behind this one."""
        known = self._steady.get((before, char))
        if known is None:
            kin = family(char)
            self.splitter.learn(set(kin))
            known = len({self.splitter.canonical(u, before) for u in self.splitter.classes("".join(kin).encode())}) == 1
            self._steady[before, char] = known
        return known

    def seams(self, left: str) -> np.ndarray:
        """bool [256]: whether a cut lies between the byte `left` and each next byte (byte units only)."""
        if left not in self._seams:
            self._seams[left] = np.array([self.splitter.locate(left, chr(b))[1] for b in range(256)])
        return self._seams[left]


def build_segmenter(vocabulary: Vocabulary, longest_pending: int = LONGEST_PENDING) -> Segmenter:
    """Derive merges and pre-tokenizer of a vocabulary. longest_pending: as of `Splitter`. Raises TokenizerError for a
    pre-tokenizer that is not known."""
    return Segmenter(vocabulary, build_merge_table(vocabulary), build_splitter(vocabulary, longest_pending))
