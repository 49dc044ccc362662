"""The steps of a pre-tokenizer, one after the other: each cuts the pieces of the one before.

In: a span of a class string (bpe/unit_classes.py), and whether the text ends with it. Out: spans, the last of which stays open
where more text may lengthen it. Added texts, patterns, and pairs of bytes (lemma 6) are the three kinds of steps. This is the
slow twin of kernels/cut_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.bpe.pattern import Matcher
from engine.bpe.unit_classes import UnitClasses
from engine.bpe.vocabulary import Vocabulary

# A stage cuts one span; it yields spans (begin, end, closed, whole). Only the last one may be open (closed = False):
# it is known up to `end`, and what follows may lengthen it.
Stage = Callable[[UnitClasses, str, int, int, bool], list[tuple[int, int, bool, bool]]]


def _isolate(find: Callable[[UnitClasses, str, int, int, bool], tuple[int, bool]], whole: bool) -> Stage:
    """The `Isolated` behaviour: matches and the gaps between them are pieces. `find(.., i, end, closed)` -> (match end or
    i when there is none, whether the answer could change with more text)."""

    def stage(units: UnitClasses, s: str, begin: int, end: int, closed: bool) -> list[tuple[int, int, bool, bool]]:
        out: list[tuple[int, int, bool, bool]] = []
        gap = i = begin
        while i < end:
            stop, may_change = find(units, s, i, end, closed)
            if may_change:
                return [*out, (gap, i, False, False)]
            if stop > i:
                if i > gap:
                    out.append((gap, i, True, False))
                out.append((i, stop, True, whole))
                gap = i = stop
            else:
                i += 1
        if end > gap:
            out.append((gap, end, closed, False))
        return out

    return stage


def pattern_stage(pattern: Matcher) -> Stage:
    def find(units: UnitClasses, s: str, i: int, end: int, closed: bool) -> tuple[int, bool]:
        stop, touched = pattern.match(s, i, end, units.masks)
        return (stop if stop > i else i), touched and not closed

    return _isolate(find, whole=False)


def added_stage() -> Stage:
    """Added texts are pieces of their own. Where one begins, and a longer one may come, the cut before it is certain all the
    same."""

    def stage(units: UnitClasses, s: str, begin: int, end: int, closed: bool) -> list[tuple[int, int, bool, bool]]:
        added, own = units.added_texts, units.own(s)
        out: list[tuple[int, int, bool, bool]] = []
        gap = i = begin
        while i < end:
            if own[i] not in added.firsts:
                i += 1
                continue
            stop, may_grow = added.at(own, i, end)
            if may_grow and not closed:
                return [*out, (gap, i, stop > i, False)]
            if stop > i:
                out += [(gap, i, True, False)] if i > gap else []
                out.append((i, stop, True, True))
                gap = i = stop
            else:
                i += 1
        return [*out, (gap, end, closed, False)] if end > gap else out

    return stage


def bigram_stage(never: np.ndarray) -> Stage:
    cuts = frozenset(chr(a) + chr(b) for a, b in np.argwhere(never))

    def stage(units: UnitClasses, s: str, begin: int, end: int, closed: bool) -> list[tuple[int, int, bool, bool]]:
        out, start = [], begin
        for i in range(begin + 1, end):
            if s[i - 1 : i + 1] in cuts:
                out.append((start, i, True, False))
                start = i
        return [*out, (start, end, closed, False)]

    return stage


def never_side_by_side(vocabulary: Vocabulary) -> np.ndarray:
    """bool [256, 256]: (x, y) that no token of the model holds side by side, so that no merge crosses between them.

    A cut never lies inside a character.
    """
    never = np.ones((256, 256), dtype=bool)
    for token_id, piece in enumerate(vocabulary.token_bytes):
        if piece is not None and len(piece) > 1 and token_id not in vocabulary.added_only:
            data = np.frombuffer(piece, np.uint8)
            never[data[:-1], data[1:]] = False
    never[:, 0x80:0xC0] = False  # never inside a character: one without a token is spelt as a whole, byte by byte
    if not vocabulary.byte_fallback:
        never[0x80:0xC0, :] = False  # unknown characters in a row fuse into one token
        unknown = [b for b in range(0x80) if bytes([b]) not in vocabulary.id_of_bytes]
        never[np.ix_(unknown, [*unknown, *range(0xC0, 0x100)])] = False
    return never
