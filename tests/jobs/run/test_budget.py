"""A run that is mostly quarantine does not end as if all were well, in the words of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.dataset.layout import load_manifest, load_plan
from engine.dataset.store import open_store
from jobs.app import main
from jobs.run import job
from jobs.run.progress import Counts
from jobs.run.summary import Outcome
from schemas.counts import counted
from tests.support.runs import TEXTS, score_here, write_run


def ended(run_file: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """The exit code of `targetsmith score` on a run that is scored in this process."""

    def score(*_: object, **__: object) -> Outcome:
        out = score_here(run_file, died=[f"bad{i}" for i in range(10)])
        return Outcome(open_store(out), load_manifest(out), Counts(0, 0), load_plan(out))

    monkeypatch.setattr(job, "score", score)
    monkeypatch.setattr(job, "retry_quarantined", score)
    with pytest.raises(SystemExit) as stop:
        main(["score"], ["score", str(run_file), *more])
    return int(str(stop.value.code or 0))


BAD = '{"id": "bad%d", "text": "It kills its process."}\n'


@pytest.mark.parametrize(("good", "bad", "code"), [(0, 1, 3), (0, 6, 3), (1, 2, 3), (1, 1, 0), (2, 1, 0), (1, 0, 0)])
def test_more_than_half_in_quarantine_is_no_success(
    good: int, bad: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(BAD % i for i in range(bad))
    run_file = write_run(tmp_path, texts=TEXTS[:good], lines=lines, extra="[quarantine]\nmax_documents = 1000")
    assert ended(run_file, monkeypatch) == code
    assert ended(run_file, monkeypatch) == code  # nothing is left to do, and it is no better for that
    said = capsys.readouterr()
    assert "complete" not in said.out and "has ended" in said.out
    if bad:
        assert "worker_died: the process died" in said.out and "do: look at memory first" in said.out
    if code:
        assert (
            f"{bad} of {counted(good + bad, 'document')} in quarantine" in said.err
            and "do: look at memory first" in said.err
        )
        # a retry has no budget, but one in which nothing was scored is no success either
        assert ended(run_file, monkeypatch, "--retry-quarantined") == (0 if good else 3)
        assert good or "Mend the cause and retry again" in capsys.readouterr().err


def test_a_run_without_a_single_distribution_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = write_run(tmp_path, texts=TEXTS[:2])
    out = score_here(run_file)
    file = out / "_engine" / "manifest.json"
    content = json.loads(file.read_text())
    content["stats"] = {k: 0.0 if k.endswith(".scored") else v for k, v in content["stats"].items()}
    empty = type(load_manifest(out)).model_validate(content)
    monkeypatch.setattr(job, "score", lambda *_, **__: Outcome(open_store(out), empty, Counts(0, 0), load_plan(out)))
    with pytest.raises(SystemExit) as stop:
        main(["score"], ["score", str(run_file)])
    assert stop.value.code == 3 and "not one position has a distribution" in capsys.readouterr().err
