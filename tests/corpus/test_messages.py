"""Conversations in the forms that data sets have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.corpus.document import Document, Message
from engine.corpus.messages import MessageForm, messages_of, tools_of
from engine.corpus.scan import scan_corpus
from engine.corpus.values import Problem
from tests.support.corpora import corpus, read
from tests.support.vocabularies import SHARED

HELLO = (Message("user", "Hello"), Message("assistant", "Hello to you."))
CALL = {"name": "weather", "arguments": {"city": "Rome"}}


def form(**settings: Any) -> MessageForm:
    return MessageForm.of(corpus(paths=["a.jsonl"], messages="m", **settings))


def read_as(value: object, **settings: Any) -> tuple[Message, ...]:
    found = messages_of(value, "column", form(**settings))
    assert not isinstance(found, Problem), found
    return found


def case(name: str, messages: str = "messages", **settings: Any) -> list[Document]:
    if not (SHARED / "cases").is_dir():
        pytest.skip("no shared data: set TARGETSMITH_SHARED")
    documents = read(corpus(paths=[f"cases/{name}.jsonl"], messages=messages, **settings), SHARED)
    assert documents and not any(document.problem for document in documents)
    return documents


@pytest.mark.parametrize("name", ["messages_as_json_text", "messages_as_columns", "messages_as_pairs", "content_parts"])
def test_every_form_gives_the_same_messages(name: str) -> None:
    assert [document.messages for document in case(name)] == [HELLO]


def test_sharegpt_needs_no_other_key() -> None:
    (document,) = case("sharegpt", "conversations")
    assert document.messages == (Message("system", "Be brief."), *HELLO)


def test_tools_and_calls_are_given_to_the_template() -> None:
    (document,) = case("tools")
    assert json.loads(document.tools)[0]["function"]["name"] == "weather"
    call, result = document.messages[1:3]
    assert call.content == "" and call.for_template()["tool_calls"][0]["function"] == CALL
    assert result.role == "tool" and result.for_template()["tool_call_id"] == "c1"


def test_thoughts_are_given_to_the_template() -> None:
    (document,) = case("reasoning_content")
    seen = document.messages[1].for_template()
    assert seen["reasoning_content"] == "six and six is twelve" and seen["content"] == "12"


def test_extra_keys_are_passed_on_and_weights_say_what_is_learned() -> None:
    extra, weights = case("extra_keys_and_weights")
    assert extra.messages[0].for_template() == {
        "role": "user", "content": "Hello", "language": "English", "turn_identifier": 7,
    }  # fmt: skip
    assert [message.learned for message in weights.messages] == [True, False, True, True]
    assert "weight" not in weights.messages[1].for_template()


def test_what_arrow_fills_in_is_no_part_of_a_message(tmp_path: Path) -> None:
    """Parquet gives every struct the fields of all, null where it has none; the messages are those of JSON lines."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
                {"role": "tool", "content": "rain", "name": "weather"},
                {"role": "assistant", "content": "It rains.", "tool_calls": []},
            ],
            "tools": [
                {"function": {"name": "weather", "parameters": {"city": {"type": "string"}}}},
                {"type": "function"},
            ],
        },
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": None},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    found = [read(corpus(paths=[name], messages="messages"), tmp_path) for name in ("a.jsonl", "b.parquet")]
    for ours, theirs in zip(*found, strict=True):
        assert [m.for_template() for m in ours.messages] == [m.for_template() for m in theirs.messages]
        assert ours.tools == theirs.tools
    assert found[0][0].tools and not found[0][1].tools


@pytest.mark.parametrize(
    ("value", "reason", "told"),
    [
        ("just a text", "not_messages", "is a text"),
        ([], "not_messages", "an empty list"),
        ([{"role": "user", "content": None}], "not_messages", "content is null"),
        ([{"role": "user"}], "not_messages", "content is missing"),
        ([{"role": None, "content": "a"}], "not_messages", "role is null"),
        (
            [{"speaker": "user", "content": "a"}],
            "not_messages",
            'role is missing, wanted a text; it has "speaker", "content"',
        ),
        ([{"role": "user", "content": 5}], "not_messages", "content is a number"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "has_media", "image"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}], "has_media", "audio"),
        ([{"role": "user", "content": [{"type": "file"}]}], "not_messages", "part 1"),
        ([{"role": "user", "content": "a", "weight": 0.5}], "not_messages", "weight is 0.5"),
        ([{"role": "user", "content": "\ud800"}], "invalid_utf8", "lone surrogate"),
        ({"role": ["user", "assistant"], "content": ["a"]}, "not_messages", "equal lengths"),
        ([["user", "a", "b"]], "not_messages", "message 1 is a list"),
    ],
)
def test_what_cannot_be_used_says_where_and_why(value: object, reason: str, told: str) -> None:
    found = messages_of(value, "column", form())
    assert isinstance(found, Problem) and found.reason == reason and told in found.detail


def test_keys_and_roles_of_the_run_file() -> None:
    value = [{"speaker": "bot", "said": "b", "from": "x"}]
    found = read_as(value, role_key="speaker", content_key="said", role_names={"bot": "assistant"})
    assert [(m.role, m.content) for m in found] == [("assistant", "b")]
    assert read_as([{"role": "gpt", "content": "b"}])[0].role == "gpt"  # only `from` says that it is ShareGPT
    assert read_as([{"from": "gpt", "value": "b"}], role_names={"human": "user"})[0].role == "gpt"


def test_a_system_message_may_go_to_the_first_user() -> None:
    value = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert read_as(value, system="user") == (Message("user", "Be brief.\n\nHi"),)
    assert read_as(value[1:], system="user") == (Message("user", "Hi"),)


@pytest.mark.parametrize("content", ["<think>\na\n</think>\n\nb", "a\n</think>\n\nb", "[THINK]a[/THINK]b", "b"])
def test_thinking_may_be_dropped(content: str) -> None:
    value = [{"role": "user", "content": content}, {"role": "assistant", "content": content, "reasoning_content": "a"}]
    assert read_as(value, thinking="drop") == (Message("user", content), Message("assistant", "b"))


def test_thoughts_among_the_parts_are_thoughts() -> None:
    parts = [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]
    (message,) = read_as([{"role": "assistant", "content": parts}])
    assert message.content == "b" and message.for_template()["reasoning_content"] == "a"


def test_tools_that_are_none_are_none_and_others_are_refused() -> None:
    assert tools_of(None, "c") == tools_of([], "c") == tools_of("[]", "c") == ""
    assert tools_of('[{"name": "f"}]', "c") == tools_of([{"name": "f"}], "c")
    assert isinstance(tools_of("hammer", "c"), Problem)


def test_tools_and_what_is_learned_are_part_of_a_datasets_hash(tmp_path: Path) -> None:
    hashes = set()
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for number, (more, tools) in enumerate(
        [({}, None), ({"weight": 0}, None), ({"name": "x"}, None), ({}, '[{"a": 1}]')]
    ):
        data = tmp_path / str(number)
        data.mkdir()
        row = {"m": json.dumps([talk[0], {**talk[1], **more}]), "tools": tools}
        pq.write_table(pa.Table.from_pylist([row]), data / "train.parquet")
        hashes.add(scan_corpus(corpus(dataset=str(data), messages="m"), tmp_path).files[0].sha256)
    assert len(hashes) == 4
