"""What the calibration sample gave (engine/beam/calibration_file.py): one file of the output, the same for all who work on it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import jobs.run.job as verb
from engine.beam.calibration_file import LEFT_OUT, parse_calibration, publish_calibration, read_calibration
from engine.card.describe import describe
from engine.corpus.document import Document
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units, sample
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.dataset.layout import MANIFEST, load_plan, load_seals, seal_name
from engine.dataset.sidecars import CALIBRATION, has_calibration
from engine.plan.make_plan import ENGINE_VERSION, make_plan
from engine.plan.pin import pin
from engine.scoring.scorer import Scorer
from engine.verify.findings import Report
from engine.verify.output import verify
from jobs.pool.unit_worker import UnitWorker
from schemas.errors import OutputError
from schemas.manifest import Plan
from schemas.runfile import RunConfig, load_run
from tests.scoring.test_memory import limited
from tests.support.runs import TEXTS, score_here, write_run

PLAIN = tuple(text.replace("—", "-") for text in TEXTS)  # behind the first byte of a dash a new scorer asks for seconds
POISON = "this text kills"
TARGETS = "top_k = 16\nmax_nodes_per_token = 1\ncalibration_documents = 3"


def begin(folder: Path, **more: object) -> tuple[RunConfig, Plan, list[Document]]:
    """A run without any unit done: (run, plan, sample)."""
    folder.mkdir(exist_ok=True)
    more.setdefault("texts", PLAIN)
    run = load_run(write_run(folder, targets=TARGETS, **more))  # type: ignore[arg-type]
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    return pin(run), plan, sample(run.corpus, scan, run.targets.calibration_documents)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output, which no test changes."""
    return score_here(write_run(tmp_path_factory.mktemp("undisturbed"), texts=PLAIN, targets=TARGETS))


def left_out(out: Path) -> list[tuple[str, str]]:
    _, records = parse_calibration((out / CALIBRATION).read_bytes(), load_plan(out), CALIBRATION)
    return [(record["doc_id"], record["reason"]) for record in records]


def test_what_is_read_back_is_what_was_learned(tmp_path: Path) -> None:
    run, plan, documents = begin(tmp_path)
    scorer = Scorer(run)
    scorer.calibrate(documents)
    publish_calibration(run.output, plan, scorer.calibration.mean_rows, [])
    found = read_calibration(run.output, plan, scorer.head_counts)[0].mean_rows
    assert has_calibration(plan) and found.keys() == scorer.calibration.mean_rows.keys() and len(found) > 20
    for token, row in scorer.calibration.mean_rows.items():
        assert found[token].ids.tolist() == row.ids.tolist() and found[token].prob.tolist() == row.prob.tolist()
        assert (found[token].special, found[token].total) == (row.special, row.total)
        assert {p: h.tolist() for p, h in found[token].heads.items()} == {p: h.tolist() for p, h in row.heads.items()}


def test_all_workers_take_the_calibration_of_the_first(undisturbed: Path, tmp_path: Path) -> None:
    """The second has memory for none of the sample, and the third reads nothing of it: their files are the same."""
    for name, short in (("short second", [False, True]), ("none", [False, None])):
        run, plan, documents = begin(tmp_path / name)
        workers = [UnitWorker(run, plan) for _ in short]
        for worker, want in zip(workers, short, strict=True):
            if want is not None:
                with limited(worker._scorer, 1 if want else 100_000):
                    worker.calibrate(documents, True)
            else:
                worker.calibrate([], True)
        assert isinstance(run.output, Path)
        for unit, texts in read_units(run.corpus, scan_corpus(run.corpus, run.base_dir), range(len(plan.units))):
            workers[1].score(unit, texts)
        assert (
            left_out(run.output) == []
            and (run.output / CALIBRATION).read_bytes() == (undisturbed / CALIBRATION).read_bytes()
        )
        for path in sorted((undisturbed / "data").rglob("*.parquet")):
            assert path.read_bytes() == (run.output / path.relative_to(undisturbed)).read_bytes()


def test_what_gave_nothing_is_told_with_its_reason(tmp_path: Path) -> None:
    run, plan, documents = begin(tmp_path, lines='{"id": "bad", "text": ""}\n')
    bad = replace(documents[0], doc_id="empty", doc_row=90, text="", problem=("empty_text", "0 characters"))
    gone = replace(documents[0], doc_id="killer", doc_row=91)
    worker = UnitWorker(run, plan)
    worker.calibrate([bad, documents[0]], False)
    with limited(worker._scorer, 1):
        worker.calibrate([documents[1]], False)
    worker.calibrate([documents[2]], True, [(gone, "killed"), (documents[2], "another actor died in it")])
    assert isinstance(run.output, Path)
    assert left_out(run.output) == [("t1", "oom"), ("empty", "empty_text"), ("killer", "worker_died")]


def test_a_file_that_is_gone_or_of_another_run_is_not_passed_over(undisturbed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    run, plan, _ = begin(tmp_path)
    assert run.output == out
    whole = (out / CALIBRATION).read_bytes()
    assert verify(out).sound and b'"continuations":{' in (out / MANIFEST).read_bytes()
    (out / CALIBRATION).unlink()
    assert [finding.file for finding in verify(out).findings] == [CALIBRATION]
    worker = UnitWorker(run, plan)
    unit, texts = next(iter(read_units(run.corpus, scan_corpus(run.corpus, run.base_dir), {0})))
    with pytest.raises(OutputError, match=f"{CALIBRATION}: removed while the command ran"):
        worker.score(unit, texts)
    for data, said in ((whole[:-9], "damaged"), (foreign(tmp_path), "of run 0{12}, wanted")):
        (out / CALIBRATION).write_bytes(data)
        with pytest.raises(OutputError, match=f"{CALIBRATION}: {said}.*remove this file and run"):
            UnitWorker(run, plan)
        report: Report = verify(out)
        assert {finding.file for finding in report.findings} == {CALIBRATION} and len(report.findings) == 2
    (out / CALIBRATION).write_bytes(whole)
    assert verify(out).sound


def test_means_that_are_lost_and_made_otherwise_close_no_unit(undisturbed: Path, tmp_path: Path) -> None:
    """Half of a run is sealed; its means are lost, and on this machine one document of the sample fails."""
    run, plan, documents = begin(tmp_path / "half")
    out = run.output
    assert isinstance(out, Path)
    units = list(read_units(run.corpus, scan_corpus(run.corpus, run.base_dir), range(len(plan.units))))
    worker = UnitWorker(run, plan, documents)
    worker.score(*units[1])
    whole = (out / CALIBRATION).read_bytes()
    assert hashlib.sha256(whole).hexdigest() == next(load_seals(out)).continuations
    (out / CALIBRATION).unlink()
    assert open_output(out, plan) == [1]
    other = UnitWorker(run, plan)
    with pytest.raises(
        OutputError,
        match=f"{CALIBRATION}: lost, and made again it is not the one that unit 1 was.*restore it from a copy",
    ):
        other.calibrate(documents[1:], True, [(documents[0], "killed")])
    assert not (out / CALIBRATION).exists()
    again = UnitWorker(run, plan, documents)  # the same comes out: it is put back
    assert (out / CALIBRATION).read_bytes() == whole
    for unit in units:
        again.score(*unit)
    finish(out, plan, engine_version=ENGINE_VERSION, describe=describe)
    for path in sorted((undisturbed / "data").rglob("*.parquet")):
        assert path.read_bytes() == (out / path.relative_to(undisturbed)).read_bytes()

    (out / MANIFEST).unlink()  # another file in its place, well-formed
    (out / "README.md").unlink()
    shorter = Scorer(run)
    shorter.calibrate(documents[:1])
    (out / CALIBRATION).unlink()
    with pytest.raises(OutputError, match="not the one that unit 0 was scored with"):
        publish_calibration(out, plan, shorter.calibration.mean_rows, [])
    for name in sorted(out.glob("_engine/shards/*")):
        name.rename(tmp_path / name.name)
    publish_calibration(out, plan, shorter.calibration.mean_rows, [])
    for unit in range(len(units)):
        (tmp_path / f"{unit:05d}.json").rename(out / seal_name(unit))
    assert [finding.file for finding in verify(out).findings] == [CALIBRATION]
    with pytest.raises(OutputError, match=f"{CALIBRATION}: not the file that {seal_name(0)} names"):
        open_output(out, plan)


def foreign(folder: Path) -> bytes:
    """The file as another run would have it."""
    run, plan, documents = begin(folder / "other")
    scorer = Scorer(run)
    scorer.calibrate(documents[:1])
    publish_calibration(run.output, plan.model_copy(update={"fingerprint": "0" * 64}), scorer.calibration.mean_rows, [])
    return (folder / "other" / "out" / CALIBRATION).read_bytes()


class Killer(UnitWorker):
    """Dies of the poison; the second time also leaves a mark that `calibrate` was called at all."""

    def calibrate(self, documents: Sequence[Document], last: bool, lost: Sequence[tuple[Document, str]] = ()) -> None:
        if self._lacks_calibration and any(POISON in document.text for document in documents):
            os.kill(os.getpid(), signal.SIGKILL)
        super().calibrate(documents, last, lost)


@pytest.mark.ray
@pytest.mark.chaos
def test_a_calibration_document_that_kills_is_left_out_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the run goes on where it would not kill: all units have values by the same means."""
    texts = (TEXTS[0], f"{POISON} 3 + 4 = 7", *TEXTS[1:])
    run = load_run(write_run(tmp_path, texts=texts, targets=TARGETS, extra="[ray]\nactors = 2"))
    assert isinstance(run.output, Path)
    monkeypatch.setattr(verb, "UnitWorker", Killer)
    verb.score(run, "local")
    assert left_out(run.output) == [("t1", "worker_died")]
    before = {path: path.read_bytes() for path in run.output.rglob("*") if path.is_file()}
    for name in (*run.output.glob("_engine/shards/*1.json"), *run.output.glob("data/*/*/*-00001-of*")):
        name.unlink()
    for name in (MANIFEST, "README.md"):
        (run.output / name).unlink()
    monkeypatch.undo()
    verb.score(run, "local")
    after = {path: path.read_bytes() for path in run.output.rglob("*") if path.is_file()}
    assert after.keys() == before.keys() and [str(p) for p in after if after[p] != before[p]] == []
    report = verify(run.output)
    assert report.sound and any("1 document of the calibration sample gave nothing" in note for note in report.notes)


def test_no_file_where_nothing_is_to_be_learned(tmp_path: Path) -> None:
    out = score_here(write_run(tmp_path, targets="calibration_documents = 0"))
    assert (
        not (out / CALIBRATION).exists() and "continuations" not in (out / MANIFEST).read_text() and verify(out).sound
    )


def test_people_can_read_it(undisturbed: Path) -> None:
    assert (pq.read_metadata(undisturbed / CALIBRATION).metadata or {})[LEFT_OUT.encode()] == b"[]"
