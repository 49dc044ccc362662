"""The actor's inside without Ray: publishing a unit, and joining a unit whose documents were scored one by one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.corpus.document import refusal
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.layout import claim_name, read_quarantine, sealed_units
from engine.dataset.store import open_store
from engine.plan.make_plan import make_plan
from engine.plan.pin import pin
from engine.reader.targets import Targets
from jobs.pool import unit_worker
from jobs.pool.events import Death, Step
from jobs.pool.unit_worker import UnitWorker, join_outcomes, publish
from schemas.manifest import Seal, canonical_json
from schemas.runfile import load_run
from tests.support.runs import TEXTS, demo_tokenizers_once, score_here, write_run

TARGETS = "top_k = 16\ncalibration_documents = 1\nmax_nodes_per_token = 1"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with demo_tokenizers_once():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_here(write_run(tmp_path_factory.mktemp("whole"), targets=TARGETS))


@pytest.mark.parametrize("killers", [{1}, set(range(len(TEXTS)))], ids=["one killer", "all killers"])
def test_documents_one_by_one_make_the_unit_without_the_killers(killers: set[int], whole: Path, tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, targets=TARGETS))
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    worker = UnitWorker(pin(run), plan, [])
    assert worker.note == ""
    for unit, documents in read_units(run.corpus, scan, range(len(plan.units))):
        outcomes = [(d, Death("signal 9") if d.doc_row in killers else worker.score_alone(d)) for d in documents]
        joined = join_outcomes(plan, outcomes)
        assert (joined.stats["documents"], joined.stats["quarantined"]) == (
            len(documents),
            sum(d.doc_row in killers for d in documents),
        )
        publish_unit(run.output, plan, unit.index, joined.products, joined.quarantine, joined.stats)
    assert len(sealed_units(run.output)) == len(plan.units)
    records = [record for index in range(len(plan.units)) for record in read_quarantine(run.output, index)]
    assert {record["doc_row"] for record in records} == killers
    assert {(record["reason"], record["detail"]) for record in records} == {("worker_died", "signal 9")}
    for product in ("teacher", "sp", "bl"):
        left = [d for i, d in enumerate(Targets(whole, product).documents()) if i not in killers]
        found = list(Targets(run.output, product, allow_partial=True).documents())
        assert [d.doc_id for d in found] == [d.doc_id for d in left]
        for mine, wanted in zip(found, left, strict=True):
            assert mine.token_ids.tolist() == wanted.token_ids.tolist()
            # a document alone in its batch may differ in the last bit before storage: one step of 10 mantissa bits
            np.testing.assert_allclose(mine.gold_logp, wanted.gold_logp, rtol=2**-9, atol=1e-5)


def test_a_unit_that_is_sealed_by_now_is_not_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another actor took it over, or another command works on the same output."""
    run = load_run(write_run(tmp_path, targets=TARGETS))
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    worker = UnitWorker(pin(run), plan, [])
    unit, documents = next(read_units(run.corpus, scan, {0}))
    first = worker.score(unit, documents)
    monkeypatch.delattr(worker, "_scorer")
    again = worker.score(unit, documents)
    assert {key: again[key] for key in first} == first and first["teacher_tokens"] > 0


def test_the_budget_counts_what_is_sealed(tmp_path: Path) -> None:
    """An attempt before had no memory for a document: its claim holds, though this one has scored all."""
    run = load_run(write_run(tmp_path, targets=TARGETS))
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    unit, documents = next(read_units(run.corpus, scan, {0}))
    claim = canonical_json(refusal(documents[0], "oom", "9 GiB")).encode() + b"\n"
    open_store(run.output).put_if_absent(claim_name(0), claim)
    worker = UnitWorker(pin(run), plan, [])
    assert worker.score(unit, documents)["quarantined"] == 1.0 == worker.score(unit, documents)["quarantined"]


def test_a_teacher_that_takes_no_tree_says_so(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, targets=TARGETS)
    text = run_file.read_text(encoding="utf-8").replace("[corpus]", 'attention = "paths"\n[corpus]')
    run_file.write_text(text, encoding="utf-8")
    run = load_run(run_file)
    plan = make_plan(run, scan_corpus(run.corpus, run.base_dir))
    told = 'teacher: contexts are scored one path at a time: the run file says attention = "paths"'
    assert UnitWorker(pin(run), plan).note == told


def test_a_unit_is_published_while_the_next_one_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first unit's publication waits until the second one is being scored; the shards are those of one after another."""
    run = load_run(write_run(tmp_path, targets=TARGETS))
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    steps, second_scored, waited = list[Step](), threading.Event(), list[bool]()

    def told(step: Step) -> None:
        steps.append(step)
        if step.what == "scoring" and step.unit == 1:
            second_scored.set()

    def publish_late(*args: Any) -> Seal:
        if args[2].index == 0:
            waited.append(second_scored.wait(60))
        return publish(*args)

    monkeypatch.setattr(unit_worker, "publish", publish_late)
    worker = UnitWorker(pin(run), plan, [], report=told)
    units = list(read_units(run.corpus, scan, {0, 1}))
    assert len(units) == 2
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(worker.score, unit, documents) for unit, documents in units]
        sums = [call.result() for call in calls]
    assert waited == [True] and sealed_units(run.output) == [0, 1]
    scored = [step.unit for step in steps if step.what == "scoring"]
    assert scored == sorted(scored, key=lambda unit: scored.index(unit)), "two units were scored at once"
    twin = tmp_path / "twin"
    open_output(twin, plan)
    alone = UnitWorker(pin(run.model_copy(update={"output": twin})), plan, [])
    assert sums == [alone.score(unit, documents) for unit, documents in units]
    for name in sorted(path.relative_to(twin) for path in (twin / "data").rglob("*.parquet")):
        assert (twin / name).read_bytes() == (Path(run.output) / name).read_bytes()
