"""Boundaries as arrays against `Aligner`, the slow twin: the same leaves, contexts, fringe and ends; states that are the
rules."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.alignment.boundaries import Aligner
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.alignment.student_view import NO_STATE, StudentView
from engine.bpe.segmenter import build_segmenter
from engine.bpe.spelling import LONG_BYTES
from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.compiled.pair import compile_pair
from engine.compiled.walk import StudentWalk
from engine.contexts.builder import ContextBuilder
from engine.contexts.tree import ContextTree
from tests.support.tiers import one_of, usual
from tests.support.vocabularies import EFFORT, needs_shared, vocabulary

ASSETS = Path(__file__).resolve().parents[2] / "jobs" / "demo_assets"
TEXTS = (
    "Ann buys 12 boxes of 24 eggs for $3.50 each.\nHow much does she pay? It's 12*24 = <<12*24=288>>288.",
    "don't  stop\n\n  if x:\n\t\treturn 'a  b'   \n",
    "naïve café — “quotes” ’tis 漢字 🏳️‍🌈! 1234567",
    " leading and trailing ",
    "aaaaaaaaaaaaaaaaaaaaaaaa        ============ 00000000",
    "x y",
)
DEMO = (("teacher", "student_sp"), ("teacher", "student_bl"))
PUBLIC = (
    ("gpt2", "llama-2"),
    ("stories260K", "gpt2"),
    ("qwen2.5-subset-8000", "babyllama-tok361"),
    ("llama-2", "stories260K"),
)


@cache
def loaded(name: str) -> Vocabulary:
    return load_vocabulary(str(ASSETS / name)) if name in ("teacher", "student_sp", "student_bl") else vocabulary(name)


@cache
def walk_of(teacher: str, student: str) -> tuple[StudentWalk, ContextBuilder]:
    whole, own = loaded(teacher), build_segmenter(loaded(student))
    read = build_segmenter(whole)
    aligner = Aligner(RuleBook(TeacherTokens(whole), own), whole.prefix_bytes)
    pair = compile_pair(whole, own.vocabulary, merges=(read.merges, own.merges), splitter=own.splitter)
    return StudentWalk(pair, aligner), ContextBuilder(read)


def span(view: StudentView, name: str, k: int) -> slice:
    start = getattr(view, name)
    return slice(int(start[k]), int(start[k + 1]))


def passage_of(
    aligner: Aligner, builder: ContextBuilder, teacher: str, text: str
) -> tuple[ContextTree, bytes, list[int], list[int]]:
    """What `StudentWalk.view` takes for a text."""
    data, (ids, ends) = text.encode(), aligner.student.encode(text)
    places = np.unique([len(aligner.prefix), *(e + len(aligner.prefix) for e in ends)])
    tree = builder.build(aligner.prefix + data, loaded(teacher).encode(text)[0], places, loaded(teacher).bos_ids)
    return tree, data, list(ids), list(ends)


def compare(teacher: str, student: str, text: str) -> tuple[int, int]:
    """Every boundary of a text. Returns how many there are, and how many go by the slow rules."""
    walk, builder = walk_of(teacher, student)
    aligner, pair = walk.aligner, walk.pair
    tree, data, ids, ends = passage_of(aligner, builder, teacher, text)
    view = walk.view(tree, data, ids, ends)
    tokens = aligner.book.teacher
    for k, boundary in enumerate(aligner.boundaries(tree, data, list(ids), list(ends))):
        assert (view.place_K[k], view.last_K[k]) == (boundary.place, boundary.last)
        own = span(view, "at_start", k)
        assert sorted(view.at_node[own].tolist()) == sorted(boundary.at)
        if boundary.at:
            assert view.end_counts_K[k] == boundary.end_counts, k
        hanging = span(view, "fringe_start", k)
        found = zip(view.fringe_node[hanging].tolist(), view.fringe_token[hanging].tolist(), strict=True)
        assert sorted(found) == sorted(boundary.fringe)
        leaves = span(view, "leaf_start", k)
        asked = {}
        for node, rule in boundary.leaves:
            z = (aligner.prefix + data)[tree.end[node] : boundary.place]
            asked[node] = (*tokens.range_of(z), len(z), rule)
        assert sorted(view.leaf_node[leaves].tolist()) == sorted(asked)
        for node, lo, hi, depth in zip(
            *(a[leaves].tolist() for a in (view.leaf_node, view.leaf_lo, view.leaf_hi, view.leaf_depth)), strict=True
        ):
            assert (lo, hi, depth) == asked[node][:3]
            if not view.slow_K[k]:
                rule, state = asked[node][3], view.states[view.state_K[k]]
                at = pair.suffixes.token_start_R[lo:hi] + depth
                first, action, opened = pair.decode(state, state.cell_U[pair.suffixes.suffix_of[at]])
                assert np.array_equal(first, rule.first) and np.array_equal(opened, rule.open)
                assert np.array_equal(action, rule.action)
        assert (k in view.slow) == bool(view.slow_K[k]) == (view.state_K[k] == NO_STATE)
        if k in view.slow:
            assert len(view.slow[k].leaves) == len(boundary.leaves)
    return len(view.place_K), int(view.slow_K.sum())


@pytest.mark.parametrize(("teacher", "student"), DEMO)
def test_views_of_the_demo(teacher: str, student: str) -> None:
    counts = np.array([compare(teacher, student, text) for text in TEXTS])
    assert counts[:, 1].sum() < counts[:, 0].sum() / 2  # what is compared is not the slow rules with themselves


@needs_shared
@pytest.mark.parametrize(("teacher", "student"), one_of(2, PUBLIC))
def test_views_of_public_tokenizers(teacher: str, student: str) -> None:
    for text in TEXTS[: 2 * EFFORT]:
        compare(teacher, student, text)


@needs_shared
@pytest.mark.parametrize("student", usual(["deepseek-llm-7b", "gpt2"]))
def test_boundaries_inside_characters_of_a_long_run_without_blanks(
    student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the tokens before such a boundary are those of what is pending is not asked by encoding all of it (which would take
    time that grows with the square of the run), and is what encoding it says."""
    text = "Title\n" + "กขคงจชดตถทนบปผพมยรลวสหอา" * 2 + "的一是不了人我在有他这为之大来以个中上们到说" * 2
    boundaries, slow = compare("stories260K", student, text)
    assert boundaries > 90 and slow < boundaries / 4
    known, builder = walk_of("stories260K", student)
    walk, asked, agrees = StudentWalk(known.pair, known.aligner), list[int](), known.segmenter.agrees

    def noted(part: bytes, *rest: Any) -> bool:
        asked.append(len(part))
        return agrees(part, *rest)

    monkeypatch.setattr(walk.segmenter, "agrees", noted)
    walk.view(*passage_of(walk.aligner, builder, "stories260K", text))
    assert asked and max(asked) <= LONG_BYTES
