"""Pending parts whose long runs are cut short against whole ones: cuts, contexts, states and boundaries.

TARGETSMITH_EFFORT=n, n above 1: for all tokenizers, and more texts.
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest

import engine.alignment.boundaries as boundaries
import engine.contexts.canonical as canonical
from engine.alignment.boundaries import Aligner
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.bpe.folding import Folded, Runs, unfold
from engine.bpe.pending import PendingCuts, cut_text
from engine.bpe.pretokenizer import Splitter, build_splitter
from engine.bpe.segmenter import Segmenter
from engine.contexts.builder import ContextBuilder
from engine.contexts.canonical import CanonicalNext
from schemas.errors import BadDocument
from tests.support.vocabularies import ALL, BYTE_LEVEL, EFFORT, merge_table, needs_shared, segmenter, vocabulary

RUNS = (" ", "=", "-", "\n", "0", "a", "一", "ก", "\t", "<", "#", "'", "s", "é")
# patterns of two kinds, added texts, SentencePiece with and without added texts
SOME = ("gpt2", "qwen2.5-subset-8000", "olmo1-v1_5", "llama-2", "babyllama-tok361")
NAMES = [name if name in SOME else pytest.param(name, marks=pytest.mark.thorough) for name in ALL]
FEW_CHARACTERS = ("babyllama-tok105", "babyllama-tok361", "stories260K")
ENDS = ("", "a", " ", "\n", "x = 1", "'s", " 日本", "<|", ".")


def long_text(rng: random.Random, kept: int) -> str:
    """Runs of up to some three times as many units as are kept of one."""
    runs = [rng.choice(RUNS) * rng.randint(3, 20 + 3 * kept) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:  # white space of several kinds
        mixed = rng.choice((" \t", "\n ", " \t\n", "\n\t \u3000", "\n\r "))
        runs.insert(rng.randint(0, len(runs)), "".join(rng.choices(mixed, k=rng.randint(3, 4 * kept))))
    if rng.random() < 0.6:  # signs of several kinds
        mixed = rng.choice(("='", "'/", "<>=", "-'\"/", "/_.", "|<'", "=\n", "€'、"))
        runs.insert(rng.randint(0, len(runs)), "".join(rng.choices(mixed, k=rng.randint(3, 4 * kept))))
    parts = [rng.choice(ENDS) + run for run in runs]
    return "".join(parts) + rng.choice(ENDS)


def whole(splitter: Splitter) -> Splitter:
    """The same without short runs, and with each class as it is."""
    splitter.__dict__.update(kept_run=1 << 30, fold=lambda pending: pending)
    return splitter


@cache
def unfolded(name: str) -> Segmenter:
    """The slow twin of `segmenter`."""
    return Segmenter(vocabulary(name), merge_table(name), whole(build_splitter(vocabulary(name))))


@needs_shared
@pytest.mark.parametrize("name", [*NAMES][: len(BYTE_LEVEL)])
def test_cuts_of_short_runs_are_those_of_long_ones(name: str) -> None:
    rng, short, full = random.Random(name), build_splitter(vocabulary(name)), whole(build_splitter(vocabulary(name)))
    ours, twin = PendingCuts(vocabulary(name), short), PendingCuts(vocabulary(name), full)
    folded = 0
    for _ in range(8 * EFFORT):
        data = long_text(rng, short.kept_run).encode()
        cut, slow = cut_text(short, data), cut_text(full, data)
        places = sorted(rng.sample(range(len(data) + 1), min(len(data), 12)))
        for place, part, other in zip(places, cut.parts(places), slow.parts(places), strict=True):
            assert part[:3] == other[:3]
            folded += len(part.left) < len(other.left)
            mine = ours.ways(cut, place, part.start, part.unit, part.left)
            assert sorted(mine) == sorted(twin.ways(slow, place, other.start, other.unit))
    assert folded > 10


@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_states_and_trees_of_long_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to know what a context's tokens agree with, behind runs that are cut short and whole ones."""
    rng, vocab = random.Random(name), vocabulary(name)
    ours, twin = CanonicalNext(segmenter(name)), CanonicalNext(unfolded(name))
    grown, slow = ContextBuilder(segmenter(name)), ContextBuilder(unfolded(name))
    seen = 0
    for _ in range(EFFORT):
        text = long_text(rng, ours.splitter.kept_run)
        try:
            ids, _ = vocab.encode(text)
        except BadDocument:  # no token, or changed
            continue
        data = vocab.prefix_bytes + text.encode()
        wanted = sorted(rng.sample(range(len(data) + 1), min(len(data), 10)))
        trees = [make.build(data, ids, wanted, (vocab.size - 1,)) for make in (grown, slow)]
        for field in ("token", "parent", "end", "at_node", "at_start", "fringe_node", "fringe_token"):
            np.testing.assert_array_equal(getattr(trees[0], field), getattr(trees[1], field), err_msg=field)
        for long_bytes in (0, 1 << 30):
            monkeypatch.setattr(canonical, "LONG_BYTES", long_bytes)
            found = ours.states(trees[0], data)
            monkeypatch.setattr(canonical, "LONG_BYTES", 1 << 30)
            pairs = list(zip(found, twin.states(trees[0], data), strict=True))
            assert all((state is None) == (other is None) for state, other in pairs)
            told = [(state, other) for state, other in dict.fromkeys(pairs) if state is not None and other is not None]
            for state, other in rng.sample(told, min(len(told), 6 * EFFORT)):  # each takes a walk over all ids
                np.testing.assert_array_equal(ours.illegal(state), twin.illegal(other))
                seen += 1
    assert seen > 5 or name in FEW_CHARACTERS


@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_boundaries_in_long_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, student, teacher = random.Random(name), vocabulary(name), vocabulary("smollm2")
    tokens = TeacherTokens(teacher)
    ours, twin = Aligner(RuleBook(tokens, segmenter(name)), b""), Aligner(RuleBook(tokens, unfolded(name)), b"")
    asked = 0
    for _ in range(2 * EFFORT):
        text = long_text(rng, ours.book.splitter.kept_run)
        try:
            ids, _ = student.encode(text)
        except BadDocument:
            continue
        for long_bytes in (0, 1 << 30):
            monkeypatch.setattr(boundaries, "LONG_BYTES", long_bytes)
            mine = ours._lefts(text.encode(), list(ids))
            monkeypatch.setattr(boundaries, "LONG_BYTES", 1 << 30)
            for left, other in zip(mine, twin._lefts(text.encode(), list(ids)), strict=True):
                assert ours._may_end(left) == twin._may_end(other)
                assert left.agrees((), False) == other.agrees((), False)
                assert left.agrees((), True) == other.agrees((), True)
                asked += 1
    assert asked > 10 or name in FEW_CHARACTERS


def test_units_of_short_runs_and_of_the_text() -> None:
    splitter = Splitter(byte_units=False, stages=())
    kept = splitter.kept_run
    for before, size, behind in ((0, kept + 5, 0), (2, 40, 3), (1, kept, 2), (3, 2 * kept, 1)):
        text = "b" * before + "a" * size + "c" * behind
        left, begins = splitter.fold(text), Runs(splitter, np.array([ord(u) for u in text]))
        near = [*range(before + kept // 2 + 1), *range(before + size - kept // 2 + 1, len(text) + 1)]
        for unit in near:
            place = Folded(splitter, left, 0, len(text), begins).place(unit)
            assert place is not None and unfold(splitter, left, (place,), 0, len(text), begins) == (unit,)
        if size > kept + 1:
            assert Folded(splitter, left, 0, len(text), begins).place(before + kept // 2 + 1) is None
