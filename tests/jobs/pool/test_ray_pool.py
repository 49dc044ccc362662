"""The pool on a real local Ray: deaths, poison documents, errors that keep their type, limits."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import ray

from engine.corpus.document import Document, Unit
from jobs.pool import ray_pool, ray_steps, schedule
from jobs.pool.events import Death, Done, Event, Notice, Ready, Report, Salvaged, Step, Tick
from jobs.pool.ray_cluster import address_of, connect
from jobs.pool.ray_pool import Pool
from schemas.errors import IdentityError, RunFileError, TeacherError, WorkError
from schemas.runfile import RayConfig

pytestmark = pytest.mark.ray


class ScriptedWorker:
    """A worker without a teacher: what it does is written in the texts. Every execution leaves a line in a file."""

    note = "scripted"

    def __init__(self, log: Path, *, report: Report) -> None:
        self.log, self.report = log, report

    def calibrate(self, documents: list[Document], last: bool, lost: list[tuple[Document, str]]) -> None:
        for document in documents:
            self.score_alone(document)
        with self.log.with_suffix(".calibrated").open("a") as stream:
            stream.write(" ".join(["calibrated", *(document.text for document in documents), *["all"] * last]) + "\n")

    def score(self, unit: Unit, documents: Sequence[Document]) -> dict[str, float]:
        for document in documents:
            self.score_alone(document)
        with self.log.open("a") as stream:
            stream.write(f"{unit.index} {os.getpid()}\n")
        return {"documents": float(len(documents)), "pid": float(os.getpid())}

    def score_alone(self, document: Document) -> str:
        if document.text == "kill":
            os.kill(os.getpid(), 9)
        if document.text == "broken identity":
            raise IdentityError("sum is 1.5")
        if document.text == "kill once" and not (marker := self.log.with_suffix(".killed")).exists():
            marker.touch()
            os.kill(os.getpid(), 9)
        return document.text


class CountingWorker(ScriptedWorker):
    """Says what it is at behind every document, each of which takes a moment."""

    def __init__(self, log: Path, *, report: Report) -> None:
        super().__init__(log, report=report)
        self._scoring = threading.Lock()
        report(Step("loading", 1, 2))
        time.sleep(0.5)

    def score(self, unit: Unit, documents: Sequence[Document]) -> dict[str, float]:
        with self._scoring:
            for done, document in enumerate(documents):
                self.report(Step("scoring", done, len(documents), unit.index, tokens=10 * done))
                time.sleep(0.2)
                self.score_alone(document)
        return super().score(unit, documents)


def refuse_to_start(*, report: Report) -> ScriptedWorker:
    raise TeacherError("[teacher] no weights here")


def die_at_start(*, report: Report) -> ScriptedWorker:
    os.kill(os.getpid(), 9)
    raise AssertionError


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with quick(), connect(RayConfig(actors=2)) as where:
        assert where == "local"
        yield


@contextmanager
def quick() -> Iterator[None]:
    """The driver asks ten times as often, and metrics are told every second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setattr(ray_pool, "POLL_S", 0.1)
        patch.setattr(ray_steps, "ASK_EVERY_S", 0.1)
        yield


def tasks(texts: list[list[str]]) -> Iterator[tuple[Unit, list[Document]]]:
    """One unit per inner list, its documents with these texts."""
    row = 0
    for index, unit_texts in enumerate(texts):
        unit = Unit(index, 0, row, len(unit_texts), row)
        yield unit, [Document(f"d{row + i}", row + i, t, "f", f"row {row + i}") for i, t in enumerate(unit_texts)]
        row += len(unit_texts)


def run(texts: list[list[str]], make_worker: Any, **ray_settings: Any) -> list[Event]:
    pool = Pool(make_worker, RayConfig(**ray_settings), local=True)
    return list(pool.run(tasks(texts), len(texts)))


def test_every_unit_is_done_once(local_ray: None, tmp_path: Path) -> None:
    events = run([["a", "b"]] * 7, partial(ScriptedWorker, tmp_path / "log"), actors=2)
    assert {event.note for event in events if isinstance(event, Ready)} == {"scripted"}
    assert sorted(event.unit.index for event in events if isinstance(event, Done)) == list(range(7))
    # scored at least once: an idle actor may take a copy of a unit that another is slow with, and only one of them counts
    assert {int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()} == set(range(7))
    assert not (tmp_path / "log.calibrated").exists()


def test_what_actors_are_at_is_known_while_they_are_at_it(local_ray: None, tmp_path: Path) -> None:
    """Within units, and before the first of them: several times for each, in order, and never of an actor that is gone."""
    events = run([["a"] * 8, ["b"] * 8], partial(CountingWorker, tmp_path / "log"), actors=2)
    seen: dict[int | None, list[Step]] = {}
    for event in events:
        for step in event.steps if isinstance(event, Tick) else ():
            known = seen.setdefault(step.unit, [])
            if not known or known[-1] != step:
                known.append(step)
    assert seen[None] == [Step("loading", 1, 2)]
    for unit in (0, 1):
        within = [step for step in seen[unit] if 0 < step.done < 8]
        assert len(within) >= 2, seen
        actors = [-1, -1]  # an idle actor may take a copy of the unit: what each is at rises
        for step in seen[unit]:
            if step.done in actors:  # told again, after a step of the other
                continue
            behind = max((done for done in actors if done < step.done), default=None)
            assert behind is not None, seen
            actors[actors.index(behind)] = step.done
        assert all(step == Step("scoring", step.done, 8, unit, 10 * step.done) for step in seen[unit])
    first = next(i for i, event in enumerate(events) if isinstance(event, Tick) and any(s.done for s in event.steps))
    assert first < next(i for i, event in enumerate(events) if isinstance(event, Done))


def test_an_actor_that_dies_within_a_unit_is_forgotten(local_ray: None, tmp_path: Path) -> None:
    events = run([["a", "b", "c", "kill once", "d"]], partial(CountingWorker, tmp_path / "log"), actors=1)
    ticks = [event.steps for event in events if isinstance(event, Tick)]
    assert all(len(steps) <= 1 for steps in ticks)
    within = [bool(steps) and steps[0].unit == 0 for steps in ticks]
    assert [known for known, _ in groupby(within)] == [False, True, False, True]  # nothing until the next actor tells
    assert [event.unit.index for event in events if isinstance(event, Done)] == [0]


def test_a_unit_whose_actor_is_killed_goes_to_another_actor(local_ray: None, tmp_path: Path) -> None:
    texts = [["a"], ["b", "kill once"], ["c"], ["d"]]
    events = run(texts, partial(ScriptedWorker, tmp_path / "log"), actors=1, max_in_flight=1)
    assert sorted(event.unit.index for event in events if isinstance(event, Done)) == [0, 1, 2, 3]
    assert [event.text for event in events if isinstance(event, Notice)][0].startswith("an actor died in unit 1")
    assert not [event for event in events if isinstance(event, Salvaged)]


def test_a_document_that_kills_its_process_is_found_and_the_rest_is_kept(local_ray: None, tmp_path: Path) -> None:
    texts = [["a"], ["b", "kill", "c", "kill"], ["d"], ["e"]]
    events = run(texts, partial(ScriptedWorker, tmp_path / "log"), actors=2)
    assert sorted(event.unit.index for event in events if isinstance(event, Done)) == [0, 2, 3]
    (salvaged,) = [event for event in events if isinstance(event, Salvaged)]
    assert salvaged.unit.index == 1
    assert [document.doc_id for document, _ in salvaged.outcomes] == ["d1", "d2", "d3", "d4"]
    assert [outcome for _, outcome in salvaged.outcomes if not isinstance(outcome, Death)] == ["b", "c"]
    assert "Worker" in salvaged.outcomes[1][1].how


def test_a_calibration_document_that_kills_is_found_and_left_out_by_all(local_ray: None, tmp_path: Path) -> None:
    """A poison document among the first of the corpus must not end the run while the actors load."""
    sample = [Document(f"d{i}", i, text, "f", f"row {i}") for i, text in enumerate(["a", "kill", "b"])]
    pool = Pool(partial(ScriptedWorker, tmp_path / "log"), RayConfig(actors=1), local=True, sample=sample)
    events = list(pool.run(tasks([["a"], ["b"]]), 2))
    assert [event.unit.index for event in events if isinstance(event, Done)] == [0, 1]
    told = [event.text.split(":")[0] for event in events if isinstance(event, Notice)]
    assert told == [
        "an actor died in the calibration sample, whose documents now go one by one",
        "an actor died in document 'd1' (f, row 1) of the calibration sample",
        "document 'd1' (f, row 1) kills its process and is left out of the calibration sample",
    ]
    assert (tmp_path / "log.calibrated").read_text().splitlines()[-2:] == ["calibrated a", "calibrated b all"]


@pytest.mark.chaos
def test_when_every_calibration_document_kills_the_run_ends(local_ray: None, tmp_path: Path) -> None:
    sample = [Document(f"d{i}", i, "kill", "f", f"row {i}") for i in range(6)]
    pool = Pool(partial(ScriptedWorker, tmp_path / "log"), RayConfig(actors=2), local=True, sample=sample)
    with pytest.raises(WorkError, match="more than 3 documents of the calibration sample killed their actors"):
        list(pool.run(tasks([["a"]]), 1))


def test_errors_of_the_worker_keep_their_type(local_ray: None, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no weights here"):
        run([["a"]], refuse_to_start)
    with pytest.raises(IdentityError, match="sum is 1.5"):
        run([["broken identity"]], partial(ScriptedWorker, tmp_path / "log"))


def test_actors_that_die_while_they_start_end_the_run(local_ray: None) -> None:
    with pytest.raises(WorkError, match="(?s)3 actors in a row died while loading.*running the same command again"):
        run([["a"]], die_at_start, actors=1)


@pytest.mark.chaos
def test_when_everything_dies_the_run_ends_and_nothing_is_blamed_wrongly(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "KILLERS_IN_A_ROW", 0)
    with pytest.raises(WorkError, match="without one unit or document finished in between"):
        run([["kill"] * 30], partial(ScriptedWorker, tmp_path / "log"), actors=1)


def test_one_actor_per_node(local_ray: None, tmp_path: Path) -> None:
    worker = partial(ScriptedWorker, tmp_path / "log")
    events = run([["a"]] * 6, worker, actors=2, actors_per_node=1)
    assert len({event.stats["pid"] for event in events if isinstance(event, Done)}) == 1


def test_more_than_a_node_has_is_refused_at_once(local_ray: None, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(WorkError, match="Each actor wants 4096 CPUs on one node"):
        run([["a"]], partial(ScriptedWorker, tmp_path / "log"), num_cpus=4096.0)
    assert time.monotonic() - started < 10


def test_no_actor_within_the_limit(local_ray: None, tmp_path: Path) -> None:
    worker = partial(ScriptedWorker, tmp_path / "log")
    pool = Pool(worker, RayConfig(actors=1, num_cpus=4096.0), local=False, place_limit_s=0.5)
    with pytest.raises(WorkError, match="no actor has found a place.*4096 CPUs.*running the same command again"):
        list(pool.run(tasks([["a"]]), 1))


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://head:8265", "head", "head:port", "a b:1", "u@head:6379"]
)
def test_an_address_of_the_wrong_kind(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(RunFileError, match=r"--address: .*wanted HOST:PORT.*ray job submit"),
        connect(RayConfig(), address),
    ):
        pass
    with pytest.raises(RunFileError, match=r"\[ray\] address: "):
        address_of(RayConfig(address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    for config in (RayConfig(), RayConfig(address="auto")):  # "auto" is Ray's word for: look there first
        with pytest.raises(RunFileError, match="RAY_ADDRESS in the environment: .*--address local"):
            address_of(config)
    assert address_of(RayConfig(), "local") == "local"


@pytest.mark.parametrize("address", ["auto", "local", "head:6379", "10.0.0.1:6379", "[::1]:6379", "a-b.c_d:1"])
def test_an_address_of_the_right_kind(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of(RayConfig(), address) == address_of(RayConfig(address=address)) == address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert address_of(RayConfig()) == address


def test_metrics_of_units_are_where_prometheus_looks(local_ray: None, tmp_path: Path) -> None:
    """Scraped from Ray's own endpoint of this node while actors live: units, documents, seconds, with the run's name."""
    made = Pool(partial(ScriptedWorker, tmp_path / "log"), RayConfig(actors=1), local=True, run="abc123")
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
    host = next(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    shown, found, deadline = "", 0.0, time.monotonic() + 90
    with closing(made.run(tasks([["a", "b"], ["c"], ["d"]] + [["wait"]] * 60), 63)) as events:
        for event in events:
            if isinstance(event, Done):
                time.sleep(0.5)
            with suppress(OSError):
                shown = urlopen(f"http://{host}:{port}/metrics", timeout=10).read().decode()
            if (found := of_metric(shown, "targetsmith_documents_total")) >= 4 or time.monotonic() > deadline:
                break
    assert found >= 4, shown[-2000:]
    assert of_metric(shown, "targetsmith_units_total") >= 3 <= of_metric(shown, "targetsmith_unit_seconds_count")


def of_metric(shown: str, name: str) -> float:
    """The sum of a metric of the run over all actors, in Prometheus's text form."""
    lines = (line for line in shown.splitlines() if 'run="abc123"' in line)
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"ray_{name}{{"))
