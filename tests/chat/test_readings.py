"""Conversations that a template renders otherwise once others follow: every scored message is seen as the model saw it."""

from __future__ import annotations

import dataclasses
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from engine.chat.readings import see, together
from engine.chat.segmenting import ChatSettings, segment_conversation
from engine.chat.template import ChatTemplate
from engine.corpus.document import Document, Message
from engine.dataset.invariants import check_rows
from engine.dataset.parquet import round_rows
from engine.reader.targets import Targets
from engine.scoring.scorer import Scorer
from engine.verify.output import verify
from jobs.look.side_by_side import show_document
from schemas.errors import BadDocument
from schemas.products import BYTES, TEACHER
from schemas.target import FLAG_ANEW, FLAG_CONTEXT, FLAG_END
from tests.chat.test_conversation import document, row_of, scorer, spelled
from tests.support.chats import CHATML, chat_teacher, with_template
from tests.support.corpora import corpus, read
from tests.support.runs import ASSETS, score_here, write_subset
from tests.support.tables import facts_of
from tests.support.vocabularies import SHARED

TRL = Path((find_spec("trl") or pytest.fail("trl is missing: pip install -e '.[dev]'")).origin or "").parent
QWEN3 = (TRL / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
R1 = (TRL / "chat_templates" / "deepseek_r1_distill.jinja").read_text(encoding="utf-8")
THOUGHT = [
    "<think>\nSix and six.\n</think>\n\nIt is 12.",
    "<think>\nSeven twice.\n</think>\n\nIt is 14.",
    "You are welcome.",
]
TALK = (
    Message("user", "6+6? <|im_end|>"),
    Message("assistant", THOUGHT[0]),
    Message("user", "And 7+7?"),
    Message("assistant", THOUGHT[1]),
    Message("user", "Thanks."),
    Message("assistant", THOUGHT[2]),
)
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'


def cases(name: str) -> list[Document]:
    if not (SHARED / "cases").is_dir():
        pytest.skip("no shared data: set TARGETSMITH_SHARED")
    return read(corpus(paths=[f"cases/{name}.jsonl"], messages="messages"), SHARED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def qwen(folder: Path) -> Scorer:
    """A teacher with Qwen3's template; students with the same one, and with one that keeps what it is given."""
    teacher = chat_teacher(folder / "t", "chatml", ends=["<|im_end|>", "<|endoftext|>"], template=QWEN3)
    plain = with_template(write_subset(folder / "bare"), folder / "plain", "chatml", template=CHATML)
    return scorer(teacher, {"same": teacher, "plain": plain})


@pytest.fixture(scope="module")
def alone(qwen: Scorer, folder: Path) -> Scorer:
    """The teacher, and a student that reads conversations as it does."""
    return scorer(folder / "t", {"same": folder / "t"})


def documents(names: list[str]) -> list[Document]:
    found = [document for name in names for document in cases(name)]
    return [dataclasses.replace(one, doc_id=f"d{i}", doc_row=i) for i, one in enumerate(found)]


def scored_text(ready: Scorer, row: dict[str, Any]) -> str:
    return spelled(ready.stages.vocabulary, np.array(row["token_ids"])[row["scored"]]).decode()


def stretches(row: dict[str, Any]) -> list[tuple[list[int], np.ndarray]]:
    """(tokens that are given, positions that are scored) of each reading of a stored row."""
    flags, scored = np.array(row["flags"]), np.array(row["scored"])
    begins = [0, *(i for i in np.flatnonzero(flags & FLAG_ANEW).tolist() if i), len(flags)]
    out = []
    for start, stop in zip(begins, begins[1:], strict=False):
        at = start + np.flatnonzero(scored[start:stop])
        out.append((row["token_ids"][start : at[0]], at))
    return out


def test_each_turn_of_a_thinking_conversation_is_read_as_the_model_read_it(qwen: Scorer) -> None:
    unit = qwen.score_unit([document(TALK)])
    assert unit.quarantine == []
    chat = AutoTokenizer.from_pretrained(qwen.stages.run.teacher.model)
    for product, table in unit.products.items():
        row = row_of(table)
        k, size = len(row["topk_ids"]) // len(row["token_ids"]), 257 if product == BYTES else 10**6
        check_rows(round_rows(table), facts_of(k, size), where=product)
        vocabulary = None if product == BYTES else qwen.stages.chat[product].full
        found = stretches(row)
        assert len(found) == 3, product  # each turn has a history of its own in Qwen3's template
        assert row["text"] == "".join(message.content for message in TALK) and row["byte_end"][-1] == len(row["text"])
        for (given, at), thought, upto in zip(found, THOUGHT, (1, 3, 5), strict=True):
            flags = np.array(row["flags"])[at]
            assert flags[-1] & FLAG_END and not (flags & FLAG_CONTEXT).any()
            said = spelled(vocabulary, np.array(row["token_ids"])[at[:-1]]).decode()
            assert said == thought
            if product == TEACHER:
                asked = [message.for_template() for message in TALK[:upto]]
                text = chat.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
                text += "<think>\n\n</think>\n\n" if upto == 5 else ""  # an answer without thoughts
                seen = chat.decode(given)
                assert seen == text and "Six and six" not in seen  # what others follow is without its thoughts


def test_the_values_are_the_models_own_behind_that_history(qwen: Scorer) -> None:
    row = row_of(qwen.score_unit([document(TALK)]).products[TEACHER])
    ids, gold = np.array(row["token_ids"]), np.array(row["gold_logp"])
    for given, at in stretches(row):
        sequence = [*given, *ids[at].tolist()]
        with torch.inference_mode():
            logits = qwen.stages.teacher.model(torch.tensor([sequence])).logits[0].double()
        logp = logits[:, : qwen.stages.vocabulary.size].log_softmax(-1).numpy()
        wanted = logp[np.arange(len(given) - 1, len(sequence) - 1), ids[at]]
        np.testing.assert_allclose(gold[at], wanted, atol=1e-4)


def test_special_strings_in_the_history_are_plain_text(qwen: Scorer) -> None:
    row = row_of(qwen.score_unit([document(TALK)]).products[TEACHER])
    end = qwen.stages.vocabulary.tokenizer.token_to_id("<|im_end|>")
    assert end is not None
    assert [given.count(end) for given, _ in stretches(row)] == [
        1,
        3,
        5,
    ]  # turns before, never the one that a user wrote


def test_the_cases_of_users(alone: Scorer) -> None:
    docs = documents(["think_single", "think_many_turns"])
    unit = alone.score_unit(docs)
    assert unit.quarantine == []
    for i, one in enumerate(docs):
        wanted = "".join(message.content for message in one.messages if message.role == "assistant")
        assert scored_text(alone, row_of(unit.products[TEACHER], i)) == wanted


def test_a_turn_of_weight_0_is_not_scored(alone: Scorer) -> None:
    """And keys that no template knows are in nobody's way."""
    unit = alone.score_unit(documents(["extra_keys_and_weights"]))
    assert unit.quarantine == []
    rows = [row_of(unit.products[TEACHER], i) for i in (0, 1)]
    assert [scored_text(alone, row) for row in rows] == ["Hello to you.", "This one."]
    assert "Not this one." in rows[1]["text"]


def test_calls_and_thoughts_are_scored_as_the_template_writes_them(alone: Scorer) -> None:
    call, thought = documents(["tools", "reasoning_content"])
    assert "parameters" in call.tools  # shortened, for the small teacher's context
    call = dataclasses.replace(call, tools='[{"name": "weather", "description": "Weather of a city"}]')
    unit = alone.score_unit([call, thought])
    assert unit.quarantine == []
    call, thought = (row_of(unit.products[TEACHER], i) for i in (0, 1))
    assert scored_text(alone, call) == f"<tool_call>\n{CALL}\n</tool_call>It rains in Rome."
    assert scored_text(alone, thought) == "<think>\nsix and six is twelve\n</think>\n\n12"
    assert call["text"] == f"Weather in Rome?<tool_call>\n{CALL}\n</tool_call>rainIt rains in Rome."
    assert (np.array(call["flags"]) & FLAG_END != 0).sum() == 2
    shown = spelled(alone.stages.vocabulary, call["token_ids"]).decode()
    assert "You may call one or more functions" in shown and "Weather of a city" in shown


def test_what_a_template_asks_with_is_given_where_it_loses_the_thinking(alone: Scorer, folder: Path) -> None:
    """DeepSeek-R1's template drops the thinking of the last answer, too, and opens it in what it asks with."""
    r1 = with_template(ASSETS / "student_bl", folder / "r1", "chatml", template=R1)
    ready = scorer(folder / "t", {"r1": r1})
    unit = ready.score_unit([document(TALK[:2])])
    assert unit.quarantine == []
    for product in (TEACHER, "student/r1"):
        row = row_of(unit.products[product])
        ((given, at),) = stretches(row)
        vocabulary = ready.stages.chat[product].full
        assert spelled(vocabulary, given).decode().endswith("<think>\n")
        said = spelled(vocabulary, np.array(row["token_ids"])[at]).decode()
        assert said == THOUGHT[0].removeprefix("<think>\n")


@pytest.mark.parametrize("more", ["", json.dumps({"reasoning_content": "Six and six."})])
def test_thoughts_may_be_context(alone: Scorer, folder: Path, more: str) -> None:
    ready = scorer(folder / "t", {"same": folder / "t"}, {"thinking": "keep"})
    content = "It is 12." if more else THOUGHT[0]
    unit = ready.score_unit([document((Message("user", "6+6?"), Message("assistant", content, more)))])
    assert unit.quarantine == []
    row = row_of(unit.products[TEACHER])
    ((given, at),) = stretches(row)
    vocabulary = ready.stages.vocabulary
    assert spelled(vocabulary, np.array(row["token_ids"])[at]) == b"It is 12."
    assert spelled(vocabulary, given).decode().endswith("<think>\nSix and six.\n</think>\n\n")


def test_what_is_lost_for_good_is_refused() -> None:
    chat = ChatTemplate("{% for m in messages[1:] %}{{ m.role }}:{{ m.content }}{% endfor %}", {}, "[teacher]")
    with pytest.raises(BadDocument, match="message 1.*where a later message is written") as caught:
        see(chat, TALK, 1, score_thoughts=True)
    assert caught.value.reason == "template_alters_content"
    chat = ChatTemplate("{% for m in messages %}{{ m.content | upper }}{% endfor %}", {}, "[teacher]")
    with pytest.raises(BadDocument, match="message 2"):
        see(chat, TALK, 1, score_thoughts=True)


def test_neighbours_that_lie_in_one_rendering_are_read_together() -> None:
    chat = ChatTemplate(CHATML, {}, "[teacher]")
    assert together([see(chat, TALK, i, score_thoughts=True) for i in (1, 3, 5)]) == []
    chat = ChatTemplate(QWEN3, {}, "[teacher]")
    assert together([see(chat, TALK, i, score_thoughts=True) for i in (1, 3, 5)]) == [1, 2]
    call = {"tool_calls": [{"name": "f", "arguments": {}}], "reasoning_content": "a"}
    more = (TALK[0], Message("assistant", "", json.dumps(call)), Message("tool", "1"), TALK[1])
    assert together([see(chat, more, i, score_thoughts=True) for i in (1, 3)]) == []  # thoughts are kept within a turn


def test_a_student_that_writes_calls_otherwise_is_named(qwen: Scorer) -> None:
    unit = qwen.score_unit(documents(["tools"]))
    assert [record["reason"] for record in unit.quarantine] == ["template_alters_content"]
    assert "[[student]] plain" in unit.quarantine[0]["detail"]  # it leaves out what the tool said


def test_from_the_run_file_to_the_trainer(qwen: Scorer, folder: Path) -> None:
    """Files, verify and reader: each reading is a row of its own, in every product."""
    chat = [message.for_template() for message in TALK]
    (folder / "chat.jsonl").write_text(
        json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": chat[:2]}) + "\n"
    )
    file = folder / "run.toml"
    file.write_text(
        'output = "out"\n[teacher]\nmodel = "./t"\n[corpus]\npaths = ["chat.jsonl"]\nmessages = "messages"\n'
        '[[student]]\nname = "plain"\ntokenizer = "./plain"\n[targets]\nbytes = true\n'
    )
    out = score_here(file)
    assert not verify(out).findings
    targets = Targets(out, "plain", beside=("teacher", "bytes"))
    batch = next(targets.batches(8))
    assert batch["doc_row"].tolist() == batch["teacher"]["doc_row"].tolist() == [0, 0, 0, 1]
    for product in (batch, batch["teacher"], batch["bytes"]):
        ends = (product["flags"] & FLAG_END != 0).sum(1)
        assert ends.tolist() == [1, 1, 1, 1]  # each row ends with the end of its turn
    packed = next(Targets(out, "plain").batches(8, pack_length=int(batch["lengths"].max())))
    assert packed["mask"].sum() == batch["mask"].sum()
    starts = packed["segments"][:, 1:] != packed["segments"][:, :-1]
    assert (packed["positions"][:, 1:][starts & (packed["segments"][:, 1:] > 0)] == 0).all()
    stream = io.StringIO()
    show_document(out, doc="0", rows="0:1", top=1, student="plain", view=None, stream=stream, near=[folder])
    assert "read anew from row" in stream.getvalue() and "Seven␣twice." in stream.getvalue()


def with_call(arguments: str = '{"city": "Rome"}', name: str = "weather_of") -> Message:
    call = {"type": "function", "id": "abcdefghi", "function": {"name": name, "arguments": json.loads(arguments)}}
    return Message("assistant", "", json.dumps({"tool_calls": [call]}))


def test_a_template_that_knows_no_calls_is_refused_where_there_are_some() -> None:
    """ChatML drops the call without a word: an empty answer would be scored, and later ones behind a history without it."""
    chat = ChatTemplate(CHATML.replace("'user'", "'user', 'tool'"), {}, "[teacher]")
    with pytest.raises(BadDocument, match="message 2.*calls or thoughts"):
        see(chat, (TALK[0], with_call()), 1, score_thoughts=True)
    simple = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    chat = ChatTemplate(simple + "{% if add_generation_prompt %}<assistant>{% endif %}", {}, "[teacher]")
    with pytest.raises(BadDocument, match="message 2.*later message"):
        see(
            chat, (TALK[0], with_call(), Message("tool", "rain"), Message("assistant", "Rain.")), 3, score_thoughts=True
        )


def test_arguments_are_given_as_a_text_where_a_template_wants_that() -> None:
    text = (TRL / "chat_templates" / "deepseekv3.jinja").read_text(encoding="utf-8")
    one = see(ChatTemplate(text, {"bos_token": "<s>"}, "[teacher]"), (TALK[0], with_call()), 1, score_thoughts=True)
    assert "weather_of" in one.said and '{"city": "Rome"}' in one.said


def test_an_empty_block_of_thoughts_before_a_call_is_given() -> None:
    for name in ("qwen3", "qwen3_5_think", "nemotron_3_nano"):
        text = (TRL / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
        one = see(ChatTemplate(text, {}, "[teacher]"), (TALK[0], with_call()), 1, score_thoughts=True)
        assert one.said.startswith("<tool_call>") and "think" not in one.said, name


@pytest.mark.parametrize("behind", ["<end>", ""])
def test_white_space_that_is_stripped_off_the_last_message_ends_the_text(alone: Scorer, behind: str) -> None:
    """The last byte_end is the end of the text, whether something stands behind the last message or nothing."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content.strip() }}" + behind + "{% endfor %}"
    encoder = dataclasses.replace(alone.stages.chat[TEACHER], template=ChatTemplate(template, {}, "[teacher]"))
    talk = document((Message("user", "Hi"), Message("assistant", " Hello \n")))
    settings = ChatSettings(("assistant",), "score", True, False)
    made = segment_conversation({TEACHER: encoder}, talk, settings)
    sequence = made.sequences[TEACHER]
    (segment,) = sequence.segments
    assert made.texts == ["Hello"] and sequence.ends[segment.stop - 1] == len("Hi Hello")
    assert sequence.ends[-1] == len(talk.text) and len(sequence.ids) > segment.stop
