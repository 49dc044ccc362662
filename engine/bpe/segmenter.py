"""Vocabulary + merges + pre-tokenizer as one object: first token, encodings of cut pending bytes."""

from __future__ import annotations

import numpy as np

from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.merges import MergeTable
from engine.bpe.pretokenizer import Splitter
from engine.bpe.utf8 import valid_utf8_prefix
from engine.bpe.vocabulary import Vocabulary

_MOST_FIRSTS = 4_000_000


class Segmenter:
    """What ranges ask of the student: its cuts, its tokens, its first token of a piece. Shared by all ranges of a book."""

    def __init__(self, vocabulary: Vocabulary, merges: MergeTable, splitter: Splitter) -> None:
        self.vocabulary, self.merges, self.splitter = vocabulary, merges, splitter
        self.by_bytes = splitter.byte_units and not splitter.added
        self.whole_words = sorted(
            piece
            for i, piece in enumerate(vocabulary.token_bytes)
            if vocabulary.ignore_merges and piece is not None and not merges.reachable(i)
        )
        self._whole_differs = vocabulary.ignore_merges or bool(vocabulary.added_text)
        self._firsts: dict[tuple[bytes, bool], int] = {}
        self._seams: BoundedCache[str, np.ndarray] = BoundedCache(10_000)  # 2 KiB each

    def first(self, piece: bytes, *, whole: bool) -> int:
        """First token of a piece, -1 when it has none. whole: the piece is a whole pre-token."""
        key = (piece, whole and self._whole_differs)
        known = self._firsts.get(key)
        if known is None:
            if len(self._firsts) > _MOST_FIRSTS:
                self._firsts.clear()
            added = self.vocabulary.added_text.get(piece.decode("utf-8", "replace")) if whole else None
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

    def seams(self, left: str) -> np.ndarray:
        """bool [256]: whether a cut lies between the byte `left` and each next byte (byte units only)."""
        if left not in self._seams:
            self._seams[left] = np.array([self.splitter.locate(left, chr(b))[1] for b in range(256)])
        return self._seams[left]
