"""What is known from the run file, the environment and the corpus ends a run before its output is begun and before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.run import job
from schemas.errors import CorpusError, RunFileError, TeacherError, WorkError
from schemas.runfile import RunConfig, load_run
from tests.support.runs import TEXTS, write_run


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise WorkError("Ray was started")

    monkeypatch.setattr(job, "connect", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def untouched(run: RunConfig) -> bool:
    return not Path(str(run.output)).exists()


@pytest.mark.parametrize("retry", [False, True])
def test_a_wrong_ray_address_ends_before_anything_is_read(
    retry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(write_run(tmp_path))
    (tmp_path / "corpus.jsonl").unlink()  # it would be missed
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(RunFileError, match="ray job submit --address http://127.0.0.1:8265"):
        (job.retry_quarantined if retry else job.score)(run)
    assert untouched(run)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("no json\n" * 3, r"3 records.*not one can be used.*3  malformed_json: corpus.jsonl, line 1: "),
        ('{"id": "a", "body": "text"}\n' * 2 + "no json\n", r"(?s)2  missing_column: .*1  malformed_json: "),
    ],
)
def test_a_corpus_without_a_usable_record_is_refused(lines: str, told: str, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, texts=(), lines=lines))
    with pytest.raises(CorpusError, match="(?s)" + told.removeprefix("(?s)")):
        job.score(run)
    assert untouched(run)
    run = load_run(write_run(tmp_path, texts=TEXTS[:1], lines=lines))
    with pytest.raises(WorkError, match="Ray was started"):  # one that can be used is enough to begin
        job.score(run)


def test_a_checkpoint_that_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    from tests.plan.test_make_plan import own_teacher

    run = load_run(own_teacher(tmp_path))
    (tmp_path / "teacher" / "config.json").write_text('{"model_type": "t5", "architectures": ["T5Model"]}')
    with pytest.raises(TeacherError, match="model_type 't5' .*T5Model.* is no causal language model"):
        job.score(run)
    (tmp_path / "teacher" / "config.json").write_text('{"model_type": "of-next-year"}')
    with pytest.raises(TeacherError, match="cannot read its config.json.*update transformers"):
        job.score(run)
    assert untouched(run)
