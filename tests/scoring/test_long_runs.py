"""Documents with runs of thousands of equal characters are scored; what is done for them grows no faster than they do."""

from __future__ import annotations

import json

import pytest

from engine.bpe.segmenter import Segmenter
from engine.corpus.document import Document
from engine.scoring.prepare import prepare
from engine.scoring.scorer import Scorer
from schemas.runfile import parse_run
from tests.support.vocabularies import SHARED, needs_shared


@needs_shared
def test_long_runs_of_real_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (SHARED / "cases" / "long_runs.jsonl").read_text(encoding="utf-8").splitlines()
    table = {
        "output": "unused",
        "teacher": {"model": str(SHARED / "models" / "stories260K")},
        "corpus": {"paths": ["unused.jsonl"], "longest_run": 200},
        "student": [{"name": "deepseek", "tokenizer": str(SHARED / "tokenizers" / "deepseek-llm-7b")}],
        "targets": {"top_k": 8, "teacher": False, "regime": "fast"},
    }
    scorer = Scorer(parse_run(table, base_dir=SHARED))
    sides = (scorer.stages.builder.segmenter, *(walk.segmenter for walk in scorer.stages.walks.values()))
    assert {segmenter.splitter.longest_pending for segmenter in sides} == {200} and len(sides) == 2
    documents = []
    for number, line in enumerate(lines):
        record = json.loads(line)
        documents.append(Document(record["id"], number, record["text"], "long_runs.jsonl", f"line {number + 1}"))
    prepare(scorer.stages, Document("first", 9, "a" + "".join(c * 300 for c in "=- 0\n") + "b", "x", "line 1"))
    encoded, encode_part = list[int](), Segmenter.encode_part

    def noted(segmenter: Segmenter, piece: bytes) -> tuple[int, ...]:
        encoded.append(len(piece))
        return encode_part(segmenter, piece)

    monkeypatch.setattr(Segmenter, "encode_part", noted)
    for document in documents:
        prepare(scorer.stages, document)
    length = max(len(document.text) for document in documents)
    assert length > 3000 and max(encoded) < 200  # nowhere is all that is pending encoded, again at each place
    found = scorer.score_unit(documents[:1])
    assert not found.quarantine and found.products["student/deepseek"].num_rows == 1
