"""Files as people have them that are not read yet: refused at the start, in words that say what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.corpus.scan import scan_corpus
from schemas.errors import CorpusError
from tests.support.corpora import corpus
from tests.support.vocabularies import SHARED

CASES = SHARED / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared data: set TARGETSMITH_SHARED")
@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("latin1.jsonl", {}, "(?s)not one can be used.*invalid_utf8"),
        ("prompt_completion.jsonl", {}, "(?s)not one can be used.*missing_column"),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused_at_the_start(
    name: str, settings: dict[str, str], told: str, tmp_path: Path
) -> None:
    shutil.copy(CASES / name, tmp_path)
    with pytest.raises(CorpusError, match=told):
        scan_corpus(corpus(paths=[name], **settings), tmp_path).check_some_readable()
