"""What `show` says of a document that is read in parts."""

from __future__ import annotations

import numpy as np

from engine.dataset.token_tables import TokenTable
from jobs.look.document_view import DocumentView
from jobs.look.scored_parts import scored_parts
from schemas.target import FLAG_ANEW, FLAG_CONTEXT, FLAG_END
from tests.support.tables import facts_of


def view(text: str, flags: list[int]) -> DocumentView:
    facts = facts_of(1, 257).model_copy(update={"regime": "bytes"})
    row = {"token_ids": [256 if c == "$" else ord(c) for c in text], "flags": flags}
    return DocumentView(facts, row, TokenTable.of_bytes(), np.zeros((0, 1)), np.zeros((0, 1)), [])


def test_a_line_a_part_with_what_stands_before() -> None:
    flags = [FLAG_CONTEXT, FLAG_CONTEXT, 0, FLAG_END, FLAG_CONTEXT | FLAG_ANEW, FLAG_CONTEXT, 0, 0, FLAG_CONTEXT]
    lines = scored_parts(view("Q:a$Q2bc.", flags))
    assert lines[1:3] == ["  2-3  Q: -> a<end>", "  6-7  (read anew from row 4) Q2 -> bc"]
    assert "written otherwise" in lines[3]


def test_a_part_that_is_read_anew_begins_a_part() -> None:
    lines = scored_parts(view("Qab", [FLAG_CONTEXT, 0, FLAG_ANEW]))
    assert lines[1:3] == ["  1-1  Q -> a", "  2-2  (read anew from row 2)  -> b"]


def test_a_character_of_several_tokens_is_shown_as_one() -> None:
    facts = facts_of(1, 257).model_copy(update={"regime": "bytes"})
    row = {"token_ids": [*"é ".encode(), ord("b")], "flags": [FLAG_CONTEXT] * 3 + [0]}
    lines = scored_parts(DocumentView(facts, row, TokenTable.of_bytes(), np.zeros((0, 1)), np.zeros((0, 1)), []))
    assert lines[1] == "  3-3  é␣ -> b"


def test_a_document_that_is_scored_whole_has_no_parts() -> None:
    assert scored_parts(view("ab$", [0, 0, FLAG_END])) == []


def test_many_and_long_parts_are_cut_short() -> None:
    text, flags = "Q" + "a" * 100 + "Qb" * 60, [FLAG_CONTEXT, *[0] * 100, *[FLAG_CONTEXT, 0] * 60]
    lines = scored_parts(view(text, flags))
    assert lines[1].endswith("a...") and lines[-1] == "  and 21 more"
