"""Special tokens inside texts: plain text by default, hard boundaries by role where the run file says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.bpe.vocabulary import load_vocabulary
from engine.chat.special_tokens import SpecialSplitter
from engine.corpus.document import Document
from engine.dataset.invariants import check_rows
from engine.dataset.parquet import round_rows
from engine.scoring.scorer import Scorer
from schemas.errors import BadDocument
from schemas.products import TEACHER
from schemas.runfile import parse_run
from schemas.target import FLAG_CONTEXT, FLAG_END
from tests.support.chats import with_template
from tests.support.runs import ASSETS, write_subset
from tests.support.tables import facts_of

STUDENTS = {"bl": ASSETS / "student_bl", "sp": ASSETS / "student_sp", "same": ASSETS / "teacher"}
TEXT = "Anna has 3.<|eos|>Naïve ☃?\n<|bos|>9 apples"


def scorer(specials: str, students: dict[str, Path] = STUDENTS, **targets: Any) -> Scorer:
    run = {
        "output": "out",
        "teacher": {"model": str(ASSETS / "teacher"), "device": "cpu"},
        "corpus": {"paths": ["unused.jsonl"], "specials": specials},
        "student": [{"name": name, "tokenizer": str(path)} for name, path in students.items()],
        "targets": {"top_k": 16, "bytes": True, **targets},
    }
    return Scorer(parse_run(run, base_dir=ASSETS))


def document(text: str, number: int = 0) -> Document:
    return Document(f"d{number}", number, text, "c.jsonl", f"line {number + 1}")


@pytest.fixture(scope="module")
def ready() -> Scorer:
    return scorer("boundary")


def test_by_default_they_are_plain_text() -> None:
    unit = scorer("text").score_unit([document(TEXT)])
    for table in unit.products.values():
        row = table.to_pylist()[0]
        assert all(row["scored"]) and not any(flag & FLAG_CONTEXT for flag in row["flags"])
    own = unit.products[TEACHER].to_pylist()[0]
    assert own["token_ids"].count(2047) == 1 and own["token_ids"][-1] == 2047  # the closing end only


def test_a_special_is_a_boundary_for_every_product(ready: Scorer) -> None:
    unit = ready.score_unit([document(TEXT), document("no special", 1)])
    assert not unit.quarantine
    for product, table in unit.products.items():
        row = table.to_pylist()[0]
        vocabulary = {TEACHER: ready.stages.vocabulary, **ready.stages.students}.get(product)  # None: bytes
        check_rows(round_rows(table), facts_of(len(row["topk_ids"]) // len(row["token_ids"]), 3000), where=product)
        ids, ends = row["token_ids"], row["byte_end"]
        eos, bos = (256, None) if vocabulary is None else (vocabulary.eos_id, vocabulary.bos_id)
        after_end, after_bos = (len(TEXT.encode()[: TEXT.encode().index(mark)]) for mark in (b"Na", b"9 app"))
        at_end = [i for i, (token, end) in enumerate(zip(ids, ends, strict=True)) if (token, end) == (eos, after_end)]
        assert len(at_end) == 1 and row["scored"][at_end[0]] and row["flags"][at_end[0]] & FLAG_END, product
        context = [i for i, flag in enumerate(row["flags"]) if flag & FLAG_CONTEXT]
        assert [i for i, scored in enumerate(row["scored"]) if not scored] == context
        if vocabulary is None:
            assert bytes(ids[i] for i in context) == b"<|bos|>"
        else:
            assert [(ids[i], ends[i]) for i in context] == [(bos, after_bos)], product
        assert ids[-1] == eos and row["flags"][-1] & FLAG_END and ends[-1] == len(TEXT.encode())


def test_the_teachers_rows_are_the_models_own(ready: Scorer) -> None:
    row = ready.score_unit([document(TEXT)]).products[TEACHER].to_pylist()[0]
    ids = [*ready.stages.bos, *row["token_ids"]]
    with torch.inference_mode():
        logp = ready.stages.teacher.model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
    at = np.flatnonzero(row["scored"])
    gold = logp[at + len(ready.stages.bos) - 1, np.array(row["token_ids"])[at]]
    np.testing.assert_allclose(np.array(row["gold_logp"])[at], gold, atol=1e-4)


def test_a_special_without_a_partner_sets_the_document_aside(tmp_path: Path, ready: Scorer) -> None:
    teacher = with_template(ASSETS / "teacher", tmp_path / "t", "chatml")
    vocabularies = {"teacher": load_vocabulary(str(teacher)), "student/bl": ready.stages.students["student/bl"]}
    made = SpecialSplitter.make(vocabularies, (2047,), end=True, given=True)
    with pytest.raises(BadDocument, match=r"im_start.*role other.*student/bl") as caught:
        made.split("a<|im_start|>b")
    assert caught.value.reason == "special_without_partner"
    assert made.split("plain") is None


@pytest.mark.parametrize("text", ["<|eos|>x", "x<|eos|>", "x<|eos|><|eos|>y", "<|bos|>x", "x<|bos|>"])
def test_specials_at_the_ends_and_side_by_side(ready: Scorer, text: str) -> None:
    unit = ready.score_unit([document(text)])
    assert not unit.quarantine
    for product, table in unit.products.items():
        row = table.to_pylist()[0]
        ends = [i for i, flag in enumerate(row["flags"]) if flag & FLAG_END]
        assert len(ends) == text.count("<|eos|>") + (not text.endswith("<|eos|>")), product
        assert all(row["scored"][i] for i in ends)


def test_subset_students_too(tmp_path: Path) -> None:
    ready = scorer("boundary", {"sub": write_subset(tmp_path / "sub")})
    unit = ready.score_unit([document(TEXT)])
    assert not unit.quarantine and ready.stages.regimes == {"student/sub": "subset"}
    row = unit.products["student/sub"].to_pylist()[0]
    assert sum(flag & FLAG_CONTEXT != 0 for flag in row["flags"]) == 1
