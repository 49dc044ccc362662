"""Documents that are handed out once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.fresh import Fresh


def test_each_text_once_over_all_files(tmp_path: Path) -> None:
    lines, stories = tmp_path / "a.jsonl", tmp_path / "b.txt"
    rows = [{"text": "one"}, {"question": "two", "answer": "2"}, {"text": "one"}]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stories.write_text("three<|endoftext|>\n<|endoftext|>one<|endoftext|>four\n", encoding="utf-8")
    fresh = Fresh([lines, stories])
    got = [*fresh.take(1), *fresh.take(3)]
    assert [document.text for document in got] == ["one", "two\n2", "three", "four"]
    assert [document.doc_row for document in got] == [0, 1, 2, 3]


def test_more_than_there_are_ends_the_command(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    fresh = Fresh([lines])
    fresh.take(1)
    with pytest.raises(SystemExit, match="1 documents were used up and 1 are left, 2 are wanted"):
        fresh.take(2)
