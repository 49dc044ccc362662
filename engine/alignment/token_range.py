"""The bytes that a range of teacher tokens brings behind a boundary, cut by the student's pre-tokenizer.

All teacher tokens that start with z, seen from behind z: r = token[len(z):]. `TokenRange` looks at each distinct class
string once. `FollowedRange` is the same range with some bytes y of text in front of every r; it is put together from the
range without y, so that a new y costs array operations instead of a pass over the vocabulary in Python.

m = number of tokens in the range. Units as in engine/bpe/pretokenizer.py. Actions as in engine/alignment/rules.py.
"""

from __future__ import annotations

import bisect
from functools import cached_property

import numpy as np

from engine.bpe.segmenter import Segmenter
from engine.bpe.utf8 import successor

NONE, CUT, JOIN = 0, 1, 2
_UNKNOWN = -2  # in tables of first tokens: not asked yet (-1: asked, and there is none)

Variant = tuple[tuple[int, ...], bool]  # cuts inside the pending part, in units; whether one lies at the boundary
Variants = tuple[Variant, ...]


class TokenRange:
    """The tokens of a range and r for each. front: bytes of a character that the boundary cuts, put before every r.

    classes: class strings of r, each with how many of its units have a class that no continuation changes (known_classes); the
    same string may stand there several times. class_index: int64 [m] into these. known: int64 [m], units of r that no
    continuation changes, bytes and all. doubt: [m], the character behind these that is known up to its family
    (`Segmenter.known`), or "". composing: bool [m], whether NFC may change r or what stands before it (always open). settled:
    table of alignment/openness.py, of what it found out about r.
    """

    def __init__(self, segmenter: Segmenter, tokens: np.ndarray, rest: list[bytes], front: bytes = b"") -> None:
        self.segmenter, self.tokens, self.front = segmenter, tokens, front
        self.rest = [front + r for r in rest]
        strings = [segmenter.splitter.canonical(segmenter.splitter.classes(r)) for r in self.rest]
        known = [segmenter.known(r) for r in self.rest]
        self._index([(s, k.classes) for s, k in zip(strings, known, strict=True)])
        self.known = np.array([k.sure for k in known], dtype=np.int64)
        # a character that the boundary cuts cannot become another one: what stands before the boundary would change
        self.doubt = ["" if front and not k.sure else k.doubt for k in known]
        self.composing = np.array([k.composing for k in known], dtype=bool)
        self.settled: np.ndarray | None = None  # of engine/alignment/openness.py
        self._tables: dict[tuple[int, int], np.ndarray] = {}
        self._alone: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def _index(self, keys: list[tuple[str, int]]) -> None:
        index = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        self.classes, self.known_classes = [s for s, _ in index], [known for _, known in index]
        self.class_index = np.array([index[key] for key in keys], dtype=np.int64)

    def cuts(self, left: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Variants]:
        """(action, stop, sure, variant, variants) with `left` pending before the boundary; the first four [m].

        stop: int64, units of r up to the end of the piece that begins at or spans the boundary. sure: bool, whether all this
        holds for every continuation, that piece's bytes included (lemma 9). variant: int64 into variants, what the cuts do to
        `left`.
        """
        if (
            self.segmenter.by_bytes and len(left) == 1
        ):  # the seam depends on two bytes, the rest on the right side alone
            stop, sure, heads = self.alone()
            seam = self.segmenter.seams(left)[heads]  # where the first byte may still change, nothing is sure
            return np.where(seam, CUT, JOIN), stop, sure, (~seam).astype(np.int64), (((), True), ((), False))
        variants: dict[Variant, int] = {}
        per_class = np.zeros((len(self.classes), 4), dtype=np.int64)  # action, stop, sure, variant
        splitter, nfc = self.segmenter.splitter, self.segmenter.vocabulary.nfc
        for i, (right, known) in enumerate(zip(self.classes, self.known_classes, strict=True)):
            inside, seam, stop, sure = splitter.locate(left, right)
            if sure and nfc and known < len(right):
                sure = splitter.locate(left, right[:known])[3]
            action = CUT if seam else JOIN
            if not seam and splitter.added and splitter.is_added(left, right, inside[-1] if inside else 0, stop):
                action = NONE  # one token lies across the boundary
            per_class[i] = action, stop, sure, variants.setdefault((inside, seam), len(variants))
        action, stop, sure, variant = (per_class[:, c][self.class_index] for c in range(4))
        if nfc:  # a piece that ends with a character whose class is known, but not its bytes
            sure &= stop <= self.known
        return action, stop, sure.astype(bool), variant, tuple(variants)

    def alone(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Byte units: (stop, sure, first byte) [m] of r by itself, as behind a cut. By lemma 6 this is all there is to know of
        r."""
        if self._alone is None:
            locate = self.segmenter.splitter.locate
            alone = parts = [locate("", right) for right in self.classes]
            if self.segmenter.vocabulary.nfc:
                parts = [locate("", c[:known]) for c, known in zip(self.classes, self.known_classes, strict=True)]
            stop = np.array([a[2] for a in alone], dtype=np.int64)[self.class_index]
            sure = np.array([a[3] for a in parts], dtype=bool)[self.class_index]
            heads = np.array([ord(right[0]) for right in self.classes], dtype=np.int64)[self.class_index]
            self._alone = (stop, sure, heads)
        return self._alone

    @cached_property
    def units(self) -> np.ndarray:
        """int64 [m]: units of r."""
        if not self.classes:  # byte units, followed text
            return np.array([len(r) for r in self.rest], dtype=np.int64)
        return np.array([len(c) for c in self.classes], dtype=np.int64)[self.class_index]

    def first_tokens(self, action: int, stop: int, where: np.ndarray) -> np.ndarray:
        """First student token of r[:stop units] for the tokens `where` (indices): a whole pre-token if CUT, else a part."""
        table = self._tables.get((action, stop))
        if table is None:
            table = self._tables[action, stop] = np.full(len(self.tokens), _UNKNOWN, dtype=np.int64)
        for i in where[table[where] == _UNKNOWN]:
            table[i] = self.segmenter.first(self.piece(int(i), stop), whole=action == CUT)
        return table[where]

    def starting_with(self, head: bytes) -> range:
        """Indices of the tokens whose r starts with `head` (r is sorted, as the vocabulary is)."""
        head = self.front + head
        return range(bisect.bisect_left(self.rest, head), bisect.bisect_left(self.rest, successor(head)))

    def beside(self, word: bytes) -> list[int]:
        """Indices of the tokens whose known bytes begin with `word`, or are a beginning of it."""
        found = list(self.starting_with(word))  # where fewer bytes of these are known, they are a beginning of it
        for size in range(len(word)):
            found += self._with_known.get(word[:size], ())
        return found

    @cached_property
    def _with_known(self) -> dict[bytes, list[int]]:
        """Known bytes of r -> indices of the tokens that have just these."""
        found: dict[bytes, list[int]] = {}
        for i, known in enumerate(self.known.tolist()):
            found.setdefault(self.piece(i, known), []).append(i)
        return found

    def piece(self, index: int, stop: int) -> bytes:
        """What r of one token adds to the pre-token that begins at, or spans, the boundary: its first `stop` units."""
        return self.segmenter.units(self.rest[index], stop)[len(self.front) :]


class FollowedRange(TokenRange):
    """A range with the text y before every r. Equal to TokenRange(segmenter, tokens, [y + r for r in rest]); tested so. Not for
    students with NFC: r may change the end of y."""

    def __init__(self, base: TokenRange, y: bytes) -> None:
        self.segmenter, self.base, self.y = base.segmenter, base, y
        self.tokens, self.composing, self.doubt, self.front = base.tokens, base.composing, base.doubt, b""
        splitter = base.segmenter.splitter
        # y alone: its classes, its tokens as the beginning of a pre-token. The rest is put together from the base.
        self._y_classes = splitter.canonical(splitter.classes(y))
        self.class_index, count = base.class_index, len(self._y_classes)
        self.known = base.known + count
        if base.segmenter.by_bytes:
            self.classes, self.known_classes = [], []
        else:
            self.classes = [splitter.join(self._y_classes, c) for c in base.classes]
            self.known_classes = [known + count for known in base.known_classes]
        self.y_tokens = base.segmenter.vocabulary.bpe(y, whole=False)
        self.settled = None
        self._tables = {}
        self._alone = None

    def cuts(self, left: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Variants]:
        if self.segmenter.by_bytes and len(left) != 1:
            stop, sure, _ = self.alone()
            return np.full(len(stop), CUT), stop, sure, np.zeros(len(stop), np.int64), (((), True),)
        return super().cuts(left)

    def alone(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._alone is None:
            stop, sure, heads = self.base.alone()
            # lemma 6: cuts inside y, at the seam (by two bytes), inside r; the first of them ends the piece
            inside = self.segmenter.splitter.certain(self._y_classes)
            if inside:
                stop, sure = np.full_like(stop, inside[0]), np.ones_like(sure)
            else:
                seam = self.segmenter.seams(self._y_classes[-1])[heads]
                stop, sure = np.where(seam, len(self.y), len(self.y) + stop), seam | sure
            self._alone = (stop, sure, np.full_like(heads, self.y[0]))
        return self._alone

    def first_tokens(self, action: int, stop: int, where: np.ndarray) -> np.ndarray:
        """By lemma 2: y + part begins with BPE(y)'s first token unless the pair at the seam is not canonical."""
        whole, more = action == CUT, stop - len(self._y_classes)
        if more <= 0:
            return np.full(
                len(where), self.segmenter.first(self.segmenter.units(self.y, stop), whole=whole), dtype=np.int64
            )
        part = self.base.first_tokens(JOIN, more, where)
        first = np.full(len(where), self.y_tokens[0], dtype=np.int64)
        illegal = np.zeros(self.segmenter.vocabulary.size, dtype=bool)
        illegal[self.segmenter.merges.illegal_after(self.y_tokens[-1])] = True
        again = (part < 0) | illegal[part]
        if whole and any(word.startswith(self.y) for word in self.segmenter.whole_words):
            again[:] = True  # a vocabulary entry that merges cannot make may win here
        for i in np.flatnonzero(again):
            first[i] = self.segmenter.first(self.piece(int(where[i]), stop), whole=whole)
        return first

    def starting_with(self, head: bytes) -> range:
        if head.startswith(self.y):
            return self.base.starting_with(head[len(self.y) :])
        return range(len(self.tokens)) if self.y.startswith(head) else range(0)

    def piece(self, index: int, stop: int) -> bytes:
        more = stop - len(self._y_classes)
        return (
            self.segmenter.units(self.y, stop)
            if more <= 0
            else self.y + self.segmenter.units(self.base.rest[index], more)
        )
