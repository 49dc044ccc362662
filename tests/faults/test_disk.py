"""Faults of the disk under an output: full, read-only, without power; in this process, and under the command."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.card.describe import describe
from engine.corpus.document import Unit
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.unit_result import UnitResult
from engine.plan.make_plan import make_plan
from engine.scoring.scorer import Scorer
from jobs.pool.unit_worker import publish
from schemas.errors import OutputError
from schemas.manifest import Plan
from schemas.runfile import load_run
from tests.jobs.test_score import environment
from tests.support.faults import BAD, contents
from tests.support.runs import ASSETS, TEXTS, score_here, write_run
from tests.support.tables import small_plan, unit_tables

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def write(folder: Path, *, output: str = "out", texts: tuple[str, ...] = TEXTS[2:], extra: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    targets = "top_k = 8\nmax_nodes_per_token = 1\ncalibration_documents = 0"
    students = {"sp": ASSETS / "student_sp"}
    return write_run(folder, texts=texts, lines=BAD, targets=targets, students=students, output=output, extra=extra)


@dataclass(frozen=True)
class Scored:
    """A run that is scored and not yet written, and the output that it gives undisturbed."""

    plan: Plan
    results: list[tuple[Unit, UnitResult]]
    output: dict[str, bytes]

    def publish(self, out: Path, first: int = 0) -> None:
        for unit, result in self.results[first:]:
            publish(out, self.plan, unit, result)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    run = load_run(write(tmp_path_factory.mktemp("scored") / "run"))
    out = run.output
    assert isinstance(out, Path)
    scan = scan_corpus(run.corpus, run.base_dir)
    scorer, plan = Scorer(run), make_plan(run, scan)
    units = read_units(run.corpus, scan, range(scan.n_units))
    whole = Scored(plan, [(unit, scorer.score_unit(documents)) for unit, documents in units], {})
    open_output(out, plan)
    whole.publish(out)
    finish(out, plan, engine_version="test", describe=describe)
    return replace(whole, output=contents(out))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", place], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a file system is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> None:
    with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@contextmanager
def stopped(scored: Scored, out: Path, says: str) -> Iterator[None]:
    """A run that is stopped behind its first unit by what happens inside; once that is undone it completes.

    What it leaves is whole and as it will be, and nothing of what failed."""
    open_output(out, scored.plan)
    unit, result = scored.results[0]
    publish(out, scored.plan, unit, result)
    with pytest.raises(OutputError, match=says):
        yield
    found = contents(out)
    assert found.items() <= scored.output.items() and "_engine/shards/00000.json" in found
    assert "_engine/shards/00001.json" not in found and not list(out.rglob("*.part"))


def check_completed(scored: Scored, out: Path) -> None:
    assert open_output(out, scored.plan) == [0]
    scored.publish(out, 1)
    finish(out, scored.plan, engine_version="test", describe=describe)
    assert contents(out) == scored.output


def test_a_disk_that_becomes_full(disk: Path, scored: Scored) -> None:
    out = disk / "out"
    with stopped(
        scored, out, rf"{out}/.*: no room: [\d,]+ bytes are needed, 0 bytes are free; make room and run again"
    ):
        fill(disk)
        scored.publish(out, 1)
    (disk / "filler").unlink()
    check_completed(scored, out)


def test_a_limit_on_the_size_of_files(tmp_path: Path, scored: Scored) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with stopped(scored, tmp_path / "out", r"parquet: no room \(a file size limit or quota.*[\d,]+ bytes are free"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
            scored.publish(tmp_path / "out", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_completed(scored, tmp_path / "out")


def test_a_disk_that_turns_read_only(disk: Path, scored: Scored) -> None:
    with stopped(scored, disk / "out", r"Read-only file system.*give this user access.*\(or mount it writable\)"):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        scored.publish(disk / "out", 1)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    check_completed(scored, disk / "out")


def test_folders_that_lose_their_permission(scored: Scored) -> None:
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        out = Path(name) / "out"
        Path(name).chmod(0o755)

        def allow(mode: int) -> None:
            for path in [out, *out.rglob("*")]:
                if path.is_dir():
                    path.chmod(mode)

        try:
            with stopped(scored, out, "Permission denied.*give this user access to the folder"):
                allow(0o555)
                if root:
                    os.seteuid(NOBODY)
                scored.publish(out, 1)
        finally:
            if root:
                os.seteuid(0)
        allow(0o755)
        check_completed(scored, out)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_the_command_on_a_disk_that_fills_and_turns_read_only(disk: Path, tmp_path: Path) -> None:
    """Twice it stops with exit code 1 and one message; with room it completes. Actors write here, the driver looks on."""
    texts = tuple(f"{text} {number}" for number in range(8) for text in TEXTS)
    wanted = contents(score_here(write(tmp_path / "calm", texts=texts)))
    ray = "[ray]\nactors = 1\nmax_in_flight = 1"
    run_file = write(tmp_path / "run", output=str(disk / "out"), texts=texts, extra=ray)

    def score(when_begun: Callable[[], object]) -> subprocess.CompletedProcess[str]:
        before = len(list((disk / "out" / "_engine" / "shards").glob("*.json")))
        command = [sys.executable, "-m", "jobs.score", str(run_file)]
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if len(list((disk / "out" / "_engine" / "shards").glob("*.json"))) > before:
                    when_begun()
                    return
                time.sleep(0.01)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400)
        finally:
            over.set()
            watcher.join()

    for happens, says, undo in (
        (
            lambda: fill(disk),
            r"disk/out/\S+: no room: [\d,]+ bytes are needed, [\d,]+ bytes are free",
            (disk / "filler").unlink,
        ),
        (
            lambda: subprocess.run(["mount", "-o", "remount,ro", disk], check=True),
            r"disk/out/\S+: cannot be written or read \(Read-only file system\)",
            lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True),
        ),
    ):
        done = score(happens)
        assert done.returncode == 1, done.stderr
        assert re.search(says, done.stderr) and "Traceback" not in done.stderr, done.stderr
        found = contents(disk / "out")
        found.pop("filler", None)
        assert found.items() <= wanted.items() and "_engine/manifest.json" not in found
        undo()
    done = score(lambda: None)
    assert done.returncode == 0, done.stderr
    assert contents(disk / "out") == wanted


# ---- power


def test_everything_is_durable_before_what_relies_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole run: contents are synced before they have a name, the name before the next thing is named, and names come in
    the order of the protocol. What is named is thus there after a loss of power, as far as the disk keeps its word."""
    out, calls, opened = tmp_path / "out", list[tuple[str, str]](), dict[int, str]()
    own = {name: getattr(os, name) for name in ("open", "write", "fsync", "link", "mkdir", "close")}

    def noted(name: str) -> Callable[..., object]:
        def call(*args, **kwargs):
            result = own[name](*args, **kwargs)
            if name == "open":
                opened[result] = os.fspath(args[0])
            elif name == "close":
                opened.pop(args[0], None)
            else:
                on = (
                    opened.get(args[0], "?")
                    if name in ("write", "fsync")
                    else os.fspath(args[-1 if name == "link" else 0])
                )
                calls.append((name, f"{args[0]} {on}" if name == "link" else on))
            return result

        return call

    for name in own:
        monkeypatch.setattr(os, name, noted(name))
    plan = small_plan(units=2)
    open_output(out, plan)
    for unit in plan.units:
        publish_unit(out, plan, unit.index, unit_tables(plan, unit.index), [], {"documents": 4.0})
    finish(out, plan, engine_version="test", describe=describe)
    monkeypatch.undo()

    unsynced: set[str] = set()  # folders with an entry that a loss of power may take
    names = []
    for call, on in calls:
        if call == "write":
            unsynced.add(on)
        elif call == "fsync":
            unsynced.discard(on)
        elif call == "mkdir" and Path(on).is_relative_to(out):
            unsynced.add(str(Path(on).parent))
        elif call == "link":
            _, target = on.split(" ")
            assert not unsynced, f"{target} gets its name while {unsynced} may be lost"
            unsynced.add(str(Path(target).parent))
            names.append(Path(target).relative_to(out).as_posix())
    assert not unsynced
    unit = ["_engine/quarantine/0000{}.jsonl", "data/student/small/train-0000{}-of-00002.parquet"]
    unit += ["data/teacher/train-0000{}-of-00002.parquet", "_engine/shards/0000{}.json"]
    wanted = [
        "_engine/plan.json",
        *(name.format(i) for i in (0, 1) for name in unit),
        "README.md",
        "croissant.json",
        "_engine/manifest.json",
    ]
    assert names == wanted
