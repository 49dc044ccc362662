"""What a plan says of its inputs is given as it was written, and what is damaged is refused."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import OutputError
from schemas.manifest import Plan
from schemas.plan_inputs import PlannedFile, Retry

FILE = {"label": "a.jsonl", "sha256": "0" * 64, "n_bytes": 9, "n_rows": 3, "text_bytes": 5, "unit_rows": [2, 1]}
TARGETS = {"store_text": False, "calibration_documents": 7}


def plan(**semantic: Any) -> Plan:
    return Plan.make(semantic, [], {})


def test_what_was_written_comes_back() -> None:
    known = plan(
        corpus={"files": [FILE]}, retry={"of": "f", "rows": [3]}, settings={"targets": TARGETS}, engine_version="1"
    )
    assert known.corpus_files == (PlannedFile("a.jsonl", "0" * 64, 9, 3, 5, (2, 1)),) and known.has_corpus
    assert (known.retry, known.stores_text, known.calibration_documents) == (Retry("f", [3]), False, 7)
    assert known.engine_version == "1"


def test_what_was_not_written_is_not_made_up() -> None:
    empty = plan()
    assert (empty.retry, empty.stores_text, empty.calibration_documents, empty.engine_version) == (None,) * 4
    assert not empty.has_corpus
    with pytest.raises(OutputError, match="semantic.corpus.files: got 'None', wanted a list"):
        _ = empty.corpus_files


@pytest.mark.parametrize("targets", [None, [], "x", {"store_text": "yes", "calibration_documents": "7"}])
def test_settings_of_another_form_say_nothing(targets: Any) -> None:
    odd = plan(settings={"targets": targets})
    assert odd.stores_text is None and odd.calibration_documents is None


@pytest.mark.parametrize("retry", [None, [], {}, "x", {"of": "f"}, {"of": "f", "rows": 3}])
def test_a_damaged_retry_is_no_other_run(retry: Any) -> None:
    with pytest.raises(OutputError, match="semantic.retry: got .* restore it from a copy"):
        _ = plan(retry=retry).retry


@pytest.mark.parametrize("file", [None, "a", {}, {**FILE, "path": "x"}, {**FILE, "unit_rows": None}])
def test_damaged_files_are_refused(file: Any) -> None:
    with pytest.raises(OutputError, match="semantic.corpus.files"):
        _ = plan(corpus={"files": [file]}).corpus_files
