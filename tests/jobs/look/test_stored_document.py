"""show's document: found by number and by name in any row group of any unit, or a reason why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.dataset.commit import open_output, publish_unit
from engine.dataset.store import open_store
from jobs.look.stored_document import find_document
from schemas.errors import OutputError, RunFileError
from tests.support.tables import quarantine_record, sealed_paths, small_plan, unit_tables


def test_every_document_is_found_in_any_row_group(tmp_path: Path) -> None:
    """100 documents a unit are two row groups, and names are not in the order of numbers: corpus.jsonl#99 above #150."""
    plan, store = small_plan(units=2, rows=100), open_store(tmp_path)
    open_output(store, plan)
    for unit, without in ((0, ()), (1, (150, 151))):
        bad = [quarantine_record(row) for row in without]
        publish_unit(store, plan, unit, unit_tables(plan, unit, without=without), bad, {})
    first = find_document(store, plan, "teacher", None)
    assert first["doc_row"] == 0 and len(first["token_ids"]) == len(first["scored"])
    for row in range(0, 200, 7):
        for doc in (str(row), f"corpus.jsonl#{row}", f"id:corpus.jsonl#{row}"):
            found = find_document(store, plan, "student/small", doc)
            assert (found["doc_row"], found["doc_id"]) == (row, f"corpus.jsonl#{row}")
    for doc, error, says in (
        ("150", OutputError, "is in quarantine"),
        ("200", RunFileError, r"documents 0 to 199 \(a doc_id of digits: id:200\)"),
        ("corpus.jsonl#200", RunFileError, "no document is called 'corpus.jsonl#200', and every unit is scored"),
        ("id:200", RunFileError, "no document is called '200', and every unit is scored"),
    ):
        with pytest.raises(error, match=says):
            find_document(store, plan, "teacher", doc)


def test_a_damaged_or_foreign_file_is_a_message(tmp_path: Path) -> None:
    plan, other = small_plan(units=1), small_plan(units=1, extra=True)
    for out, one in ((tmp_path / "out", plan), (tmp_path / "other", other)):
        open_output(out, one)
        publish_unit(out, one, 0, unit_tables(one, 0), [], {})
    (path,), (foreign,) = sealed_paths(tmp_path / "out", "teacher"), sealed_paths(tmp_path / "other", "teacher")
    whole = path.read_bytes()
    for data, says in (
        (whole[:-1], "sealed with"),
        (whole[:-8] + b"\0\0\0\0PAR1", "damaged .*remove this file"),
        (foreign.read_bytes(), "a file of another run"),
    ):
        path.write_bytes(data)
        with pytest.raises(OutputError, match=says):
            find_document(open_store(tmp_path / "out"), plan, "teacher", "0")


def test_an_unknown_name_is_answered_with_one_that_is_there(tmp_path: Path) -> None:
    plan, store = small_plan(units=2), open_store(tmp_path)
    open_output(store, plan)
    for unit, error, says in ((0, OutputError, "may not be ready yet"), (1, RunFileError, "every unit is scored")):
        publish_unit(store, plan, unit, unit_tables(plan, unit), [], {})
        with pytest.raises(error, match=says + r".* such as 'corpus.jsonl#0'; \[corpus\] id names a column"):
            find_document(store, plan, "teacher", "the-id-of-my-record")
