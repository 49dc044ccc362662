"""Documents prepared in a thread are those prepared one by one, in order, and no thread stays behind."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine.scoring.stages as stages_module
from engine.contexts.builder import ContextBuilder
from engine.contexts.tree import ContextTree
from engine.corpus.document import Document
from engine.scoring import ahead
from engine.scoring.ahead import prepared_ahead
from engine.scoring.prepare import prepare
from schemas.errors import BadDocument, TokenizerError
from tests.scoring.test_scorer import ASSETS, PLAIN, demo, demo_texts, documents, scorer


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("prepare")]


def test_the_same_documents_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MOST_DOCUMENTS", 3)
    bad = Document("bad", 99, "", "corpus.jsonl", "line 99", problem=("not_text", "a number"))
    docs = [*documents([*demo_texts(6), *PLAIN]), bad]
    one, other = demo().stages, demo().stages
    seen = 0
    with closing(prepared_ahead(one, docs)) as found:
        for (document, future), wanted in zip(found, docs, strict=True):
            assert document is wanted
            if document.problem is not None:
                with pytest.raises(BadDocument, match="a number"):
                    future.result()
                continue
            ours, alone = future.result(), prepare(other, document)
            assert len(ours.parts) == len(alone.parts) == 1
            mine, theirs = ours.parts[0], alone.parts[0]
            np.testing.assert_array_equal(mine.tree.token, theirs.tree.token)
            for product, view in mine.views.items():
                np.testing.assert_array_equal(view.ids, theirs.views[product].ids)
            seen += 1
    assert seen == len(docs) - 1 and not threads()


def test_what_is_left_is_given_up() -> None:
    begun: list[int] = []

    class Read(list[Document]):
        def __iter__(self):
            for document in super().__iter__():
                begun.append(document.doc_row)
                yield document

    stages = demo().stages
    with closing(prepared_ahead(stages, Read(documents(demo_texts(200))))) as found:
        next(found)[1].result()
    assert not threads() and len(begun) <= ahead.MOST_DOCUMENTS + 1


def test_a_fault_of_the_teacher_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    made = demo(batch_tokens=256)

    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(type(made.stages.emitter), "emit", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        made.score_unit(documents(demo_texts(60)))
    assert not threads()


def test_a_fault_of_a_tokenizer_is_of_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found when a rule is asked about a text that nobody thought of: the run goes on without this document."""
    made, docs = demo(), documents(demo_texts(4))
    build = type(made.stages.builder).build

    def broken(builder: ContextBuilder, data: bytes, *given: Any, **more: Any) -> ContextTree:
        if data == docs[2].text.encode():
            raise TokenizerError("no token ends at byte 7")
        return build(builder, data, *given, **more)

    monkeypatch.setattr(type(made.stages.builder), "build", broken)
    result = made.score_unit(docs)
    assert [(r["doc_row"], r["reason"], r["detail"]) for r in result.quarantine] == [
        (2, "tokenizer_fault", "no token ends at byte 7")
    ]
    assert all(table["doc_row"].to_pylist() == [0, 1, 3] for table in result.products.values())


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The demo's byte-level student with another tokenizer.json."""
    shutil.copytree(ASSETS / "student_bl", folder)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def with_nfc(spec: dict[str, Any]) -> None:
    spec["normalizer"] = {"type": "NFC"}


def with_words(spec: dict[str, Any]) -> None:
    """As Llama-3's: half of the tokens are made as whole words only."""
    spec["model"]["ignore_merges"] = True
    del spec["model"]["merges"][len(spec["model"]["merges"]) // 2 :]


@pytest.mark.parametrize("regime", ["fast", "beam"])
def test_targets_do_not_depend_on_what_is_prepared_beside_them(
    regime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow boundaries, searches and canonical states ask objects that the thread uses, too."""
    monkeypatch.setattr(stages_module, "is_compiled", lambda *given: True)  # as of vocabularies that are not small
    students = {"nfc": changed(tmp_path / "nfc", with_nfc), "words": changed(tmp_path / "words", with_words)}
    docs = documents([*demo_texts(2), *PLAIN, "naïve café, fiancée"])
    results = []
    for most in (64, 0):
        monkeypatch.setattr(ahead, "MOST_DOCUMENTS", most)
        made = scorer(
            ASSETS / "teacher",
            students,
            settings={"batch_tokens": 256},
            regime=regime,
            semantics="canonical-masked",
        )
        stages = made.stages
        assert stages.students["student/nfc"].nfc and stages.students["student/words"].ignore_merges
        results.append(made.score_unit(docs).products)
    for product, table in results[0].items():
        assert table.equals(results[1][product]), (regime, product)
