"""What a value of a table that is not usable is called."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from engine.corpus.columns import Columns, Record
from engine.corpus.document import Message
from tests.support.corpora import corpus

MAP = pa.map_(pa.string(), pa.string())
WITH_MORE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("more", MAP)]))


def record(type_: pa.DataType, value: Any, **settings: Any) -> Record:
    batch = pa.record_batch({"chat": pa.array([value], type_)})
    (one,) = Columns.of(corpus(paths=["a.parquet"], **settings)).of_arrow(0, batch)
    return one


@pytest.mark.parametrize(
    ("type_", "value", "where"),
    [
        (MAP, [("role", "user")], 'column "chat" is of type map'),
        (pa.list_(MAP), [[("role", "user")]], 'column "chat", message 1 is of type map'),
        (
            pa.list_(pa.struct([("role", pa.string()), ("content", MAP)])),
            [{"role": "user", "content": [("a", "b")]}],
            "message 1: content is of type map",
        ),
    ],
)
def test_a_map_is_not_called_a_list(type_: pa.DataType, value: Any, where: str) -> None:
    problem = record(type_, value, messages="chat").problem
    assert problem is not None and problem.reason == "not_messages" and where in problem.detail
    assert "a list," not in problem.detail.replace("wanted a list", "")


def test_a_text_column_that_is_a_map() -> None:
    problem = record(MAP, [("a", "b")], text="chat").problem
    assert problem is not None and problem.detail == 'column "chat" is of type map, wanted text'


@pytest.mark.parametrize("more", [None, []])
def test_maps_that_hold_nothing_are_passed_over(more: Any) -> None:
    found = record(WITH_MORE, [{"role": "user", "content": "é", "more": more}], messages="chat")
    assert found.problem is None and found.messages == (Message("user", "é"),)


def test_a_map_beside_the_content_is_given_to_the_template() -> None:
    found = record(WITH_MORE, [{"role": "user", "content": "a", "more": [("a", "b")]}], messages="chat")
    assert found.messages[0].for_template() == {"role": "user", "content": "a", "more": {"a": "b"}}
