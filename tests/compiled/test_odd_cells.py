"""Odd cells: a student with many added texts has few; a state that would have too many goes by the slow rules, and is scored."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import engine.compiled.pending_states as pending_states
from engine.alignment.boundaries import Aligner
from engine.alignment.rules import RuleBook, TeacherTokens
from engine.bpe.segmenter import build_segmenter
from engine.bpe.vocabulary import load_vocabulary
from engine.compiled.odd_cells import odd_cells
from engine.compiled.pair import compile_pair
from engine.compiled.walk import StudentWalk
from engine.push.push_tables import TableStore
from schemas.errors import IdentityError
from tests.push.test_compiled_truth import Compiled
from tests.support.pairs import STUDENT, cases, random_pair
from tests.support.vocabularies import SHARED, builder, merge_table, needs_shared, vocabulary


@needs_shared
def test_a_student_with_many_added_texts_is_compiled(tmp_path: Path) -> None:
    """As Gemma 3: an added text may be coming behind few strings only, those that end in the beginning of one."""
    made = Tokenizer.from_file(str(SHARED / "tokenizers" / "llama-2" / "tokenizer.json"))
    made.add_tokens([*(f"<unused{i}>" for i in range(100)), *("<h1>", "</h1>", "[multimodal]")])
    made.save(str(tmp_path / "tokenizer.json"))
    teacher, own = vocabulary("smollm2"), build_segmenter(load_vocabulary(str(tmp_path)))
    assert len(own.splitter.added) > 100 and own.splitter.byte_units
    pair = compile_pair(teacher, own.vocabulary, merges=(merge_table("smollm2"), own.merges), splitter=own.splitter)
    walk = StudentWalk(pair, Aligner(RuleBook(TeacherTokens(teacher), own), b""))
    text = "Weng earns $12 an hour. Yesterday, she just did 50 minutes <un of babysitting.\nHow much?"
    ids, ends = own.vocabulary.encode(text)
    tree = builder("smollm2").build(text.encode(), teacher.encode(text)[0], [0, *ends], ())
    view = walk.view(tree, text.encode(), ids, ends)
    assert view.slow_K.sum() <= 1  # behind `<un`
    store = TableStore(pair, teacher.size)
    assert min(store.number_of(state) for state in view.states) == 0
    assert max(len(odd_cells(state)[1]) for state in view.states) < 100


@needs_shared
def test_a_student_with_nfc_is_compiled() -> None:
    """Qwen's own pattern and normaliser: characters that may change in a way that the pattern sees have an odd cell, no others.
    When each character that is a token had one (6,131 for Llama-3's strings, 15,800 for Gemma's) all boundaries went by the slow
    rules, in silence.
    """
    teacher, own = vocabulary("llama-3"), build_segmenter(vocabulary("qwen2.5-subset-8000"))
    assert own.vocabulary.nfc
    pair = compile_pair(teacher, own.vocabulary, merges=(merge_table("llama-3"), own.merges), splitter=own.splitter)
    walk = StudentWalk(pair, Aligner(RuleBook(TeacherTokens(teacher), own), b""))
    text = "Weng earns $12 an hour. Yesterday, she just did 50 minutes of babysitting.\nHow much?"
    ids, ends = own.vocabulary.encode(text)
    tree = builder("llama-3").build(text.encode(), teacher.encode(text)[0], [0, *ends], ())
    view = walk.view(tree, text.encode(), ids, ends)
    assert not view.slow_K.any()
    assert max(len(odd_cells(state)[1]) for state in view.states) < 2000


def test_a_state_with_too_many_goes_by_the_slow_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_states, "MOST_ODD", -1)
    rng, made, seen = random.Random(5), None, 0
    for case in cases(rng, tmp_path, 12, random_pair):
        if made is None or made.pair is not case.pair:
            made = Compiled(case.pair, least=0.0)
        slow = made.view(case.doc, case.text)
        assert slow.all()
        old = case.pair.emit([case.doc], case.table)[STUDENT]
        new = case.pair.emit([case.doc], case.table, emitter=made.emitter)[STUDENT]
        np.testing.assert_array_equal(new.scored, old.scored, err_msg=str(case))
        np.testing.assert_array_equal(new.err, old.err, err_msg=str(case))
        seen += int(new.scored.sum())
    assert seen > 20


def test_a_table_that_has_no_room_is_never_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(iter(cases(random.Random(5), tmp_path, 1, random_pair)))
    made = Compiled(case.pair, least=0.0)
    made.view(case.doc, case.text)
    monkeypatch.setattr("engine.push.push_tables.MOST_ODD", -1)
    with pytest.raises(IdentityError, match="odd cells"):
        case.pair.emit([case.doc], case.table, emitter=made.emitter)
