"""Files as people have them that are not read yet: refused at the start, in words that say what is wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from engine.corpus.scan import scan_corpus
from schemas.errors import CorpusError
from tests.support.corpora import corpus
from tests.support.vocabularies import SHARED

CASES = SHARED / "cases"
TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared data: set TARGETSMITH_SHARED")
@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("latin1.jsonl", {}, "(?s)not one can be used.*invalid_utf8"),
        ("prompt_completion.jsonl", {}, '(?s)not one can be used.*missing_column.*prompt = "prompt" and completion = '),
        ("sharegpt.jsonl", {}, '(?s)missing_column.*write messages = "conversations" in'),
        ("pretokenized.jsonl", {}, '(?s)missing_column.*write input_ids = "input_ids" in'),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused_at_the_start(
    name: str, settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    shutil.copy(CASES / name, tmp_path)
    with pytest.raises(CorpusError, match=told):
        scan_corpus(corpus(paths=[name], **settings), tmp_path).check_some_readable()


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared data: set TARGETSMITH_SHARED")
def test_every_case_has_a_test() -> None:
    words = {word for file in TESTS.rglob("test_*.py") for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    assert {file.stem for file in CASES.iterdir()} - words == {"README"} - words
