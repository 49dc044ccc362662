"""Prompts longer than the teacher's context: the oldest is left out, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.corpus.document import Message
from engine.scoring.scorer import Scorer
from schemas.products import BYTES, TEACHER
from schemas.target import FLAG_ANEW
from tests.chat import test_prompts as prompts
from tests.chat.test_conversation import document, row_of, scorer, spelled
from tests.chat.test_readings import scored_text, stretches
from tests.support.chats import CHATML, chat_teacher, with_template
from tests.support.runs import ASSETS

LONG = "apples and more apples " * 30
TALK = (
    Message("system", "Be brief."),
    *(m for k in range(6) for m in (Message("user", f"{k}: {LONG}"), Message("assistant", f"Answer {k}."))),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long")


@pytest.fixture(scope="module")
def ready(folder: Path) -> Scorer:
    teacher = chat_teacher(folder / "t", "chatml", ends=["<|im_end|>"])
    student = with_template(ASSETS / "student_bl", folder / "bl", "chatml", template=CHATML)
    return scorer(teacher, {"same": teacher, "bl": student})


def test_the_oldest_turns_are_left_out_and_the_system_message_stays(ready: Scorer) -> None:
    unit = ready.score_unit([document(TALK)])
    assert unit.quarantine == [] and unit.stats["shortened_prompts"] == 1
    for product, table in unit.products.items():
        row = row_of(table)
        assert row["text"] == "".join(m.content for m in TALK) and row["byte_end"][-1] == len(row["text"])
        if product == BYTES:
            continue
        vocabulary = ready.stages.chat[product].full
        said = spelled(vocabulary, np.array(row["token_ids"])[row["scored"]]).decode()
        assert said == "".join(f"Answer {k}." for k in range(6)), product
        found = stretches(row)
        assert len(found) > 1 and not row["flags"][0] & FLAG_ANEW  # it begins with all that there is
        for given, at in found:
            shown = spelled(vocabulary, given).decode()
            first = spelled(vocabulary, np.array(row["token_ids"])[at]).decode().removeprefix("Answer ")[0]
            assert "Be brief." in shown and f"{first}: apples" in shown
            if product == TEACHER:
                assert len(given) < ready.stages.teacher.max_length
    latest = spelled(ready.stages.vocabulary, stretches(row_of(unit.products[TEACHER]))[-1][0]).decode()
    assert "0: apples" not in latest and "5: apples" in latest


def test_the_values_are_those_behind_the_shortened_history(ready: Scorer) -> None:
    row = row_of(ready.score_unit([document(TALK)]).products[TEACHER])
    given, at = stretches(row)[-1]
    sequence = [*given, *np.array(row["token_ids"])[at].tolist()]
    with torch.inference_mode():
        logits = ready.stages.teacher.model(torch.tensor([sequence])).logits[0].double()
    logp = logits[:, : ready.stages.vocabulary.size].log_softmax(-1).numpy()
    wanted = logp[np.arange(len(given) - 1, len(sequence) - 1), sequence[len(given) :]]
    np.testing.assert_allclose(np.array(row["gold_logp"])[at], wanted, atol=1e-4)


def test_what_fits_is_as_before(ready: Scorer) -> None:
    unit = ready.score_unit([document(TALK[:3])])
    assert "shortened_prompts" not in unit.stats
    assert not (np.array(row_of(unit.products[TEACHER])["flags"]) & FLAG_ANEW).any()


@pytest.mark.parametrize(("policy", "said"), [("quarantine", None), ("drop", "Answer 0.")])
def test_other_policies(ready: Scorer, folder: Path, policy: str, said: str | None) -> None:
    other = scorer(folder / "t", {"same": folder / "t"}, {"too_long_prompt": policy})
    unit = other.score_unit([document(TALK)])
    assert [record["reason"] for record in unit.quarantine] == ([] if said else ["prompt_too_long"])
    if said:
        text = scored_text(other, row_of(unit.products[TEACHER]))
        assert text.startswith(said) and "Answer 5." not in text


@pytest.mark.parametrize("policy", ["truncate", "drop", "quarantine"])
def test_a_single_message_that_is_too_long_stays_out(ready: Scorer, folder: Path, policy: str) -> None:
    other = scorer(folder / "t", {"same": folder / "t"}, {"too_long_prompt": policy})
    unit = other.score_unit([document((Message("user", LONG * 8), Message("assistant", "9")))])
    assert [record["reason"] for record in unit.quarantine] == ["prompt_too_long"]


def test_of_a_plain_prompt_the_oldest_tokens_are_left_out(folder: Path) -> None:
    ready = prompts.scorer(folder / "plain", prompt="p", completion="c")
    long = "naïve ☃ apples " * 200 + "Anna has"
    unit = ready.score_unit([prompts.document(ready, p=long, c=" 3 apples.")])
    assert unit.quarantine == [] and unit.stats["shortened_prompts"] == 1
    for product, table in unit.products.items():
        row = row_of(table)
        assert row["text"] == long + " 3 apples." and row["byte_end"][-1] == len(row["text"].encode())
        if product == BYTES:
            continue
        assert row["flags"][0] & FLAG_ANEW
        vocabulary = ready.stages.chat[product].full
        shown = spelled(vocabulary, row["token_ids"]).decode()
        assert shown.endswith("apples Anna has 3 apples.") and (long + " 3 apples.").endswith(shown.lstrip(" "))
    assert len(row_of(unit.products[TEACHER])["token_ids"]) > 200


def test_labels_far_behind_each_other_are_read_apart(folder: Path) -> None:
    ready = prompts.scorer(folder / "labels", input_ids="ids", labels="y")
    parts = [prompts.tokens(text) for text in ("Anna has", " 3", " apples" * 600, " and", " buys 4.")]
    flat = [i for part in parts for i in part]
    labels = [i if k % 2 else -100 for k, part in enumerate(parts) for i in part]
    unit = ready.score_unit([prompts.document(ready, ids=flat, y=labels)])
    assert unit.quarantine == []
    row = row_of(unit.products[TEACHER])
    found = stretches(row)
    assert len(found) == 2 and scored_text(ready, row) == " 3 and"
    assert spelled(ready.stages.vocabulary, found[1][0]).decode().endswith(" apples apples")
