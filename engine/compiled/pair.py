"""One (teacher tokenizer, student tokenizer) pair: what every teacher token does at a student's boundary, as arrays.

In: two tokenizers. Out: `CompiledPair`, and from it `State`s: for the student's pending part at a boundary, which student
token each end of a teacher token begins, whether the boundary cuts there or a pre-token spans it, and whether what follows
can change that. That is what `RuleBook.rule` (alignment/rules.py) says of a boundary that is not inside a character; it is
the slow twin in tests.

Such an answer is one number, a *cell*. Cells of one state: c, c + C: decided, open, for the student token `columns[c]`, doing
what the state says of that column (`join_C`). 2C, 2C + 1: no token of the student begins there, decided or open (excluded
mass). From 2C + 2 on: *odd* cells, where a column does the other thing for some strings.

So a row of probabilities in rank order, added up by `whole_R`, is all that a boundary needs to know of it.

Letters: R ordinary teacher tokens by bytes, U distinct ends of these, C columns, V student ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from engine.alignment.openness import Openness
from engine.alignment.token_range import Variants
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.flatten import flatten
from engine.bpe.merges import MergeTable, build_merge_table
from engine.bpe.pretokenizer import Splitter, build_splitter
from engine.bpe.segmenter import Segmenter
from engine.bpe.successors import Successors
from engine.bpe.vocabulary import Vocabulary
from engine.compiled.answers import Answers, Progress, answers_of, silent
from engine.compiled.byte_kernels import settle_bytes
from engine.compiled.classes import ClassTrie, class_trie, cut_classes, cuts_inside
from engine.compiled.inside import InsideAnswers
from engine.compiled.pair_kernels import CUT, JOIN, NONE, settle_characters
from engine.compiled.state import STATE_ARRAYS, State, digest_of
from engine.compiled.suffixes import Suffixes, suffixes_of
from engine.kernels.flat import FlatTokenizer, joined
from engine.kernels.hash_kernels import EMPTY, build_trie

NO_COLUMN = -1
_MOST_STATES = 50_000  # pending parts that are remembered


class StateStore(Protocol):
    """What keeps states beyond a process: compiled/cache.py."""

    def load(self, pair: CompiledPair, left: str, lead: bytes, partial: bytes) -> State | None:
        """The state, None when it is not kept."""
        ...

    def save(self, pair: CompiledPair, left: str, lead: bytes, partial: bytes, state: State) -> None:
        """Keep it."""
        ...


@dataclass(eq=False)
class CompiledPair:
    """All states of one pair. `teacher`, `student`: their arrays. Not thread-safe while states are made.

    columns: int32 [C], the student ids that some beginning of some string begins with; column_of_V: int32 [V], -1 for others.
    has_words: the student has words that only `ignore_merges` makes: behind a beginning of one a state differs
    (compiled/words.py).
    """

    teacher: FlatTokenizer
    student: FlatTokenizer
    suffixes: Suffixes
    columns: np.ndarray
    answers: dict[bytes, Answers]  # by what stands before every string: nothing, or the student's prefix
    vocabulary: Vocabulary = field(repr=False)  # the student's
    teacher_name: str
    splitter: Splitter = field(repr=False)
    openness: Openness = field(repr=False)
    kept: StateStore | None = field(default=None, repr=False)  # where states live longer than this object

    def __post_init__(self) -> None:
        self.column_of_V = np.full(self.vocabulary.size, NO_COLUMN, np.int32)
        self.column_of_V[self.columns] = np.arange(len(self.columns), dtype=np.int32)
        self.has_words = bool(self.openness.segmenter.whole_words)
        self._successors = Successors(self.student, self.column_of_V)
        self._states: BoundedCache[tuple[str, bytes, bytes], State] = BoundedCache(_MOST_STATES)
        self._inside_of: BoundedCache[str, bool] = BoundedCache(100_000)
        self._tries: dict[bytes, ClassTrie] = {}
        self._inside: InsideAnswers | None = None
        self._arrays: WeakValueDictionary[bytes, np.ndarray] = WeakValueDictionary()
        self._distinct: WeakValueDictionary[tuple[Any, ...], State] = WeakValueDictionary()
        if self.splitter.byte_units:
            assert self.splitter.never is not None  # where units are bytes
            self._never = self.splitter.never
            self._added = _added_trie(self.splitter)

    def state(self, left: str, lead: bytes = b"", partial: bytes = b"") -> State:
        """The state with these reduced classes pending (`Splitter.reduce`). lead: b"", or the student's prefix at the very
        start of a text. partial: behind `left`, bytes of a character that the boundary cuts (only with `cuts_characters`). Made
        at the first call, in some tens of milliseconds. Raises KeyError for another lead.

        Long runs of one class give what shorter ones give (`Splitter.shorten`, a premise that is tested), so that words of
        any length share a state; not where cuts lie inside what is pending.
        """
        known = self._states.get((left, lead, partial))
        if known is None:
            short = left if self.splitter.byte_units else self.splitter.shorten(left)
            known = self.state(short, lead, partial) if short != left else None
            if known is None or any(inside for inside, _ in known.variants):
                known = self._kept_or_made(left, lead, partial)
            self._states[left, lead, partial] = known
        return known

    def cuts_inside(self, left: str) -> bool:
        """Whether what follows may cut inside these reduced classes: whether `state(left)` has a variant with such a cut, asked
        without making it. Characters as units."""
        known = self._inside_of.get(left)
        if known is None:
            short = self.splitter.shorten(left)
            known = (short == left or self.cuts_inside(short)) and cuts_inside(self._trie(b""), self.splitter, left)
            self._inside_of[left] = known
        return known

    def _trie(self, lead: bytes) -> ClassTrie:
        if lead not in self._tries:
            self._tries[lead] = class_trie(self.answers[lead], self.splitter)
        return self._tries[lead]

    def _kept_or_made(self, left: str, lead: bytes, partial: bytes) -> State:
        known = self.kept.load(self, left, lead, partial) if self.kept else None
        if known is None:
            known = self._make_inside(left, partial) if partial else self.make(left, lead)
            if self.kept:
                self.kept.save(self, left, lead, partial, known)
        return known

    @property
    def cuts_characters(self) -> bool:
        """Whether there are states of boundaries inside a character: for students whose pre-tokenizer reads characters, and whose
        tokens are made of bytes."""
        return not self.splitter.byte_units and not self.student.by_characters

    def _make_inside(self, left: str, partial: bytes) -> State:
        if self._inside is None:
            self._inside = InsideAnswers(self.answers[b""], self.student, self.openness)
        found = self._inside.settle(left, partial)
        agrees = np.ones(len(found.sure), bool)  # nothing is split behind a context that ends inside a character
        return self._state(
            len(left), found.first, found.action, found.open, found.stop, found.sure, agrees, found.variants, found.variant,
            partial=len(partial),
        )  # fmt: skip

    def illegal_after(self, token: int) -> np.ndarray:
        """int32, rising: the columns whose tokens may not be joined to a student token (lemma 3); remembered."""
        return self._successors.illegal_after(token)

    def settled(self, tokens: np.ndarray, depth: int) -> np.ndarray:
        """int64 [m], for teacher ids: of what follows their first `depth` bytes, the first student token where it is decided
        inside a pre-token (lemma 15 a), else -1. What `Openness.settled` says of the range of these tokens."""
        begin = self.suffixes.token_start_R[self.teacher.rank_V[tokens]] + depth
        return self.answers[b""].settled[self.suffixes.suffix_of[begin]].astype(np.int64)

    def decode(self, state: State, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first int64, -1 for none; action int8, NONE, CUT or JOIN; open bool) of cells: what `Rule` holds."""
        size = len(self.columns)
        odd, none = cells >= 2 * size + 2, (cells == 2 * size) | (cells == 2 * size + 1)
        plain = np.where(odd | none, 0, cells)
        at = np.where(odd, cells - 2 * size - 2, 0)
        odd_column, odd_open, odd_join = (
            np.append(a, 0)[at] for a in (state.odd_column, state.odd_open, state.odd_join)
        )
        column = np.where(odd, odd_column, plain % max(size, 1))
        opened = np.where(odd, odd_open == 1, np.where(none, cells == 2 * size + 1, plain >= size))
        joins = np.where(odd, odd_join, np.append(state.join_C, 0)[column]) == 1
        first = np.where(none, -1, np.append(self.columns, -1)[column]).astype(np.int64)
        return first, np.where(none, NONE, np.where(joins, JOIN, CUT)).astype(np.int8), opened

    def make(self, left: str, lead: bytes) -> State:
        """The state with exactly these classes pending, made anew."""
        answers = self.answers[lead]
        count = len(answers)
        first, action, stop = (np.zeros(count, np.int32) for _ in range(3))
        opened, agrees, sure = np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, np.uint8)
        out = first, action, opened, stop, sure, agrees
        if self.splitter.byte_units:
            pending = np.frombuffer(bytearray(left.encode("latin-1")), np.uint8)
            variant = np.zeros(count, np.int64)
            settle_bytes(
                answers.text, answers.start, answers.known, answers.composing, self.vocabulary.nfc, pending, self._never,
                *self._added, answers.settled, answers.firsts, answers.firsts_whole, *out, variant,
            )  # fmt: skip
            variants, variant = _variants(variant, len(left)), np.zeros(count, np.int64)
        else:
            trie = self._trie(lead)
            cuts = cut_classes(trie, self.splitter, self.openness, left)
            settle_characters(
                answers.text, answers.start, answers.whole, answers.known, answers.node_U, answers.known_node_U,
                answers.composing, answers.settled, cuts.kind, cuts.stop, cuts.variant, cuts.sure, cuts.ways, cuts.goes_on,
                cuts.other_start, cuts.other, answers.firsts, answers.firsts_whole, *out,
            )  # fmt: skip
            variants, variant = cuts.variants, cuts.variant[answers.node_U]
        return self._state(len(left), first, action, opened, stop, sure, agrees, variants, variant)

    def _state(
        self,
        units: int,
        first: np.ndarray,
        action: np.ndarray,
        opened: np.ndarray,
        stop: np.ndarray,
        sure: np.ndarray,
        agrees: np.ndarray,
        variants: Variants,
        variant: np.ndarray,
        partial: int = 0,
    ) -> State:
        size, none = len(self.columns), first < 0
        column = self.column_of_V[np.maximum(first, 0)]
        joins = action == JOIN
        join_C = np.bincount(column[joins & ~none], minlength=size) > np.bincount(
            column[~joins & ~none], minlength=size
        )
        odd = ~none & (join_C[column] != joins)
        cell = np.where(none, 2 * size, column) + np.where(none, 1, size) * opened
        kinds, number = np.unique(column[odd] << 2 | opened[odd] << 1 | joins[odd], return_inverse=True)
        cell[odd] = 2 * size + 2 + number
        cell = cell.astype(np.int32)
        in_order = sorted(variants)
        simple = not any(inside for inside, _ in variants) and not (self.splitter.byte_units and self.vocabulary.nfc)
        if partial and units and any(seam for _, seam in variants):
            simple = False  # a cut where the character begins lies before the boundary, too
        rank = np.array([in_order.index(each) for each in variants] or [0])
        apart = not simple and not self.splitter.byte_units and len(in_order) < 256
        return self.shared(
            State(
                cell_U=cell,
                whole_R=cell[self.suffixes.suffix_of[self.suffixes.token_start_R[:-1]]],
                join_C=join_C.astype(np.uint8),
                odd_column=(kinds >> 2).astype(np.int32),
                odd_open=(kinds >> 1 & 1).astype(np.uint8),
                odd_join=(kinds & 1).astype(np.uint8),
                stop_U=stop,
                sure_U=sure,
                agrees_U=agrees,
                variant_U=(rank[variant] if apart else np.zeros(len(first))).astype(np.uint8),
                variants=tuple(in_order),
                simple=simple,
                units=0 if simple else units,
                partial=partial,
            )
        )

    def shared(self, state: State) -> State:
        """The one object for states that say the same, and one array for the same numbers: pending parts are many, but
        most differ in nothing or only in `join_C`."""
        digests = {name: digest_of(getattr(state, name)) for name in STATE_ARRAYS}
        key = (*digests.values(), state.variants, state.units, state.partial)
        known = self._distinct.get(key)
        if known is None:
            arrays = {name: self._arrays.setdefault(digest, getattr(state, name)) for name, digest in digests.items()}
            known = self._distinct[key] = replace(state, **arrays)
        return known


def compile_pair(
    teacher: Vocabulary,
    student: Vocabulary,
    *,
    merges: tuple[MergeTable, MergeTable] | None = None,
    splitter: Splitter | None = None,
    progress: Progress = silent,
) -> CompiledPair:
    """Compile a pair, without any state. merges, splitter: of (teacher, student) and of the student, where the caller has
    them."""
    progress(0, 1, "merges")
    tables = merges or (build_merge_table(teacher), build_merge_table(student))
    splitter = splitter or build_splitter(student)
    segmenter = Segmenter(student, tables[1], splitter)
    flat_teacher, flat_student = flatten(teacher, tables[0]), flatten(student, tables[1])
    progress(1, 1, "merges")
    suffixes = suffixes_of(flat_teacher)
    answers = {}
    for lead in dict.fromkeys((b"", student.prefix_bytes)):
        what = "strings behind the prefix" if lead else "strings"
        answers[lead] = answers_of(*suffixes.behind(lead), flat_student, segmenter, progress, what)
    firsts = np.unique(np.concatenate([np.unique(f) for a in answers.values() for f in (a.firsts, a.firsts_whole)]))
    return CompiledPair(
        flat_teacher,
        flat_student,
        suffixes,
        firsts[firsts >= 0].astype(np.int32),
        answers,
        student,
        teacher.name,
        splitter,
        Openness(segmenter),
    )


def _added_trie(splitter: Splitter) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(keys, nodes, ends bool [N], goes_on bool [N]) of the trie of added texts; one node when there are none."""
    texts = sorted(a.encode() for a in splitter.added)
    text, start = joined(texts)
    size = 1 << (2 * len(text) + 16).bit_length()
    keys, nodes = np.full(size, EMPTY, np.int64), np.zeros(size, np.int32)
    _, lo, hi, end = build_trie(text, start, keys, nodes)
    ends = np.zeros(len(lo), bool)
    ends[end] = True
    return keys, nodes, ends, hi > lo


def _variants(variant_U: np.ndarray, n: int) -> Variants:
    """The variants that occur, from bits."""
    found = np.unique(variant_U).tolist()
    return tuple((tuple(i for i in range(n) if v >> 1 >> i & 1), bool(v & 1)) for v in found)
