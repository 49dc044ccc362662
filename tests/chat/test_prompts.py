"""Prompts and completions through the scorer: the completion alone is scored, behind its prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.corpus.columns import Columns
from engine.corpus.document import Document
from engine.scoring.scorer import Scorer
from schemas.products import BYTES, TEACHER
from schemas.runfile import parse_run
from schemas.target import FLAG_CONTEXT, FLAG_END
from tests.chat.test_conversation import row_of, spelled
from tests.corpus.test_pretokenized import tokens
from tests.support.runs import ASSETS, write_subset


def scorer(folder: Path, **corpus: Any) -> Scorer:
    students = {
        "bl": ASSETS / "student_bl",
        "sp": ASSETS / "student_sp",
        "sub": write_subset(folder / "sub"),
        "same": ASSETS / "teacher",
    }
    run = {
        "output": "out",
        "teacher": {"model": str(ASSETS / "teacher"), "device": "cpu"},
        "corpus": {"paths": ["unused.jsonl"], **corpus},
        "student": [{"name": name, "tokenizer": str(path)} for name, path in students.items()],
        "targets": {"top_k": 16, "bytes": True},
    }
    return Scorer(parse_run(run, base_dir=folder))


def document(ready: Scorer, number: int = 0, **item: Any) -> Document:
    record = Columns.of(ready.stages.run.corpus).of_object(0, "line 1", item)
    assert record.problem is None
    return Document(f"d{number}", number, record.text, "c", record.place, None, record.messages)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return scorer(tmp_path_factory.mktemp("prompts"), prompt="p", completion="c")


def test_only_the_completion_and_its_end_are_scored(ready: Scorer) -> None:
    unit = ready.score_unit([document(ready, p="Anna has 3 apples and", c=" buys 4 — naïve.")])
    assert unit.quarantine == []
    for product, table in unit.products.items():
        row = row_of(table)
        flags, scored = np.array(row["flags"]), np.array(row["scored"])
        assert row["text"] == "Anna has 3 apples and buys 4 — naïve." and row["byte_end"][-1] == len(
            row["text"].encode()
        )
        np.testing.assert_array_equal(scored, flags & FLAG_CONTEXT == 0)
        assert flags[-1] & FLAG_END and (flags & FLAG_END != 0).sum() == 1
        vocabulary = None if product == BYTES else ready.stages.chat[product].full
        at = np.flatnonzero(scored)[:-1]
        assert spelled(vocabulary, np.array(row["token_ids"])[at]) == " buys 4 — naïve.".encode(), product


def test_the_values_are_the_models_own_behind_the_prompt(ready: Scorer) -> None:
    row = row_of(ready.score_unit([document(ready, p="Anna has 3 apples and", c=" buys 4.")]).products[TEACHER])
    ids, bos = row["token_ids"], list(ready.stages.bos)
    assert ids[:-1] == tokens("Anna has 3 apples and") + tokens(" buys 4.")
    with torch.inference_mode():
        logits = ready.stages.teacher.model(torch.tensor([[*bos, *ids]])).logits[0].double()
    logp = logits[:, : ready.stages.vocabulary.size].log_softmax(-1).numpy()
    at = np.flatnonzero(row["scored"])
    np.testing.assert_allclose(np.array(row["gold_logp"])[at], logp[len(bos) + at - 1, np.array(ids)[at]], atol=1e-4)


def test_a_special_string_in_a_prompt_is_plain_text(ready: Scorer) -> None:
    row = row_of(ready.score_unit([document(ready, p="Anna <|eos|> has", c=" 3.")]).products[TEACHER])
    assert row["token_ids"].count(2047) == 1  # the end


def test_labels_say_what_is_scored(tmp_path: Path) -> None:
    ready = scorer(tmp_path, input_ids="ids", labels="y")
    parts = ["Anna has", " 3 apples", " and", " buys 4."]
    ids = [tokens(part) for part in parts]
    flat = [i for part in ids for i in part]
    labels = [i if k % 2 else -100 for k, part in enumerate(ids) for i in part]
    unit = ready.score_unit([document(ready, ids=[2046, *flat, 2047], y=[-100, *labels, 2047])])
    assert unit.quarantine == []
    row = row_of(unit.products[TEACHER])
    assert row["token_ids"] == [*flat, 2047] and row["scored"] == [*(i != -100 for i in labels), True]


def test_a_beginning_that_is_scored_gives_up_its_first_token(tmp_path: Path) -> None:
    """The student sp puts a space before a text: its first token is read only, for every product, and all else is as behind a
    prompt. Before, all such records were not_reversible."""
    ready, text = scorer(tmp_path, input_ids="ids", labels="y"), "Anna buys 4 — naïve."
    ids = tokens(text)
    unit = ready.score_unit([document(ready, ids=[2046, *ids], y=[-100, *ids])])
    assert unit.quarantine == [] and ids[0] == tokens("A")[0]
    for product, table in unit.products.items():
        row, vocabulary = row_of(table), None if product == BYTES else ready.stages.chat[product].full
        at = np.flatnonzero(row["scored"])[:-1]
        assert row["text"] == text and spelled(vocabulary, np.array(row["token_ids"])[at]) == text[1:].encode()
        if vocabulary is not None:
            assert row["token_ids"][:-1] == vocabulary.encode(text)[0]
    short = ready.score_unit([document(ready, ids=tokens("A"), y=tokens("A"))]).quarantine
    assert [found["reason"] for found in short] == ["no_scored_message"]
