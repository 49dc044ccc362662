"""Compiled states behind mixed white space where added texts hold white space: few of them, and what the rules say of whole
strings. TARGETSMITH_EFFORT=n: n times as many texts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.alignment.boundaries import Aligner
from engine.alignment.rules import RuleBook
from engine.bpe.pending import cut_text
from engine.bpe.pretokenizer import build_splitter
from engine.bpe.segmenter import Segmenter, build_segmenter
from engine.compiled.automaton import PendingAutomaton
from engine.compiled.pair import compile_pair
from engine.contexts.builder import ContextBuilder
from schemas.errors import BadDocument
from tests.bpe.test_folding import whole
from tests.compiled.test_pair import few_tokens
from tests.compiled.test_walk_texts import Twins
from tests.support.blanks import CASES, CHARS, NEOX, STYLES, mixed, tokenizer_of
from tests.support.toys import toy
from tests.support.vocabularies import EFFORT, builder, merge_table, vocabulary


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_boundaries(case: tuple[str, str], tmp_path: Path) -> None:
    """States of short strings beside the rules asked with whole ones."""
    student, rng = tokenizer_of(case, tmp_path), random.Random("".join(case))
    if case == NEOX:
        teacher, contexts = few_tokens(vocabulary("smollm2"), 100, rng), builder("smollm2")
        tables = merge_table("smollm2"), merge_table(case[0])
    else:
        teacher = toy(rng, tmp_path / "teacher", rng.choice(STYLES), CHARS, whole=False, merges=20)
        contexts = ContextBuilder(build_segmenter(teacher))
        tables = contexts.segmenter.merges, build_segmenter(student).merges
    own, full = (Segmenter(student, tables[1], make(build_splitter(student))) for make in (lambda s: s, whole))
    twins = Twins(teacher, contexts, compile_pair(teacher, student, merges=tables, splitter=own.splitter), own)
    twins.aligner = Aligner(RuleBook(twins.tokens, full), teacher.prefix_bytes)
    for i in range(2 * EFFORT):
        try:
            twins.compare(mixed(rng, 12), bos=i % 2 == 0)
        except BadDocument as error:
            assert error.reason in ("too_short", "not_reversible")
    assert twins.counted["leaves"] > 10 and twins.counted["nodes"] > 10, twins.counted


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_where_pending_parts_begin(case: tuple[str, str], tmp_path: Path) -> None:
    student, rng = tokenizer_of(case, tmp_path), random.Random("".join(case))
    automaton, full = PendingAutomaton(build_splitter(student)), whole(build_splitter(student))
    for _ in range(20 * EFFORT):
        slow = cut_text(full, mixed(rng, 40).encode())
        assert automaton.walk(slow.data)[1].tolist() == [part.start for part in slow.parts(slow.byte_of.tolist())]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_few_pending_parts(case: tuple[str, str], tmp_path: Path) -> None:
    """Not one for each mix of blanks: as many as there are lengths of runs, places of the last line break, kinds of ends, and
    beginnings of added texts."""
    student, rng = tokenizer_of(case, tmp_path), random.Random("".join(case))
    automaton = PendingAutomaton(build_splitter(student))
    automaton.walk(("Title\n" + "".join(rng.choices(" \t\n", k=6000)) + "\nend.").encode())
    assert len(automaton.strings) < (100 if case[1] != "llama3" else 700)
