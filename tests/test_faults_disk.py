"""Faults of the disk under an output: full, read-only, without power; in whole runs. Also the order in which things are made
durable."""

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
from pathlib import Path

import pytest

from engine.calibrate import sample
from engine.corpus import read_units, scan_corpus
from engine.finish import finish
from engine.plan import make_plan, pin
from engine.shards import open_output, publish_unit
from jobs.worker import UnitWorker
from schemas.errors import OutputError
from schemas.runfile import load_run
from tests.faults import BAD, contents
from tests.runs import ASSETS, TEXTS, score_here, write_run
from tests.tables import small_plan, unit_tables
from tests.test_jobs import environment

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534


def write(folder: Path, *, output: str = "out", texts: tuple[str, ...] = TEXTS[2:], extra: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    targets = "top_k = 8\nmax_nodes_per_token = 1\ncalibration_documents = 2"
    students = {"sp": ASSETS / "student_sp"}
    return write_run(folder, texts=texts, lines=BAD, targets=targets, students=students, output=output, extra=extra)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The undisturbed output."""
    return contents(score_here(write(tmp_path_factory.mktemp("calm") / "run")))


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


def score_until(run_file: Path, after_first: Callable[[], object]) -> None:
    """As score_here; something happens once the first unit is published."""
    run = load_run(run_file)
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    worker = UnitWorker(pin(run), plan, sample(run.corpus, scan, run.targets.calibration_documents))
    for unit, documents in read_units(run.corpus, scan, range(scan.n_units)):
        worker.score(unit, documents)
        if unit.index == 0:
            after_first()


def fill(disk: Path) -> None:
    with pytest.raises(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def check_stopped(out: Path, calm: dict[str, bytes]) -> None:
    """What is there is whole and as it will be; of what failed nothing is left."""
    found = contents(out)
    assert (
        found.items() <= calm.items() and "_engine/shards/00000.json" in found and "_engine/manifest.json" not in found
    )
    assert not list(out.rglob("*.part"))


def test_a_disk_that_becomes_full(disk: Path, tmp_path: Path, calm: dict[str, bytes]) -> None:
    run_file = write(tmp_path / "run", output=str(disk / "out"))
    with pytest.raises(
        OutputError, match=rf"{disk}/out/.*: no room: [\d,]+ bytes are needed, 0 bytes are free; make room"
    ):
        score_until(run_file, lambda: fill(disk))
    check_stopped(disk / "out", calm)
    (disk / "filler").unlink()
    assert contents(score_here(run_file)) == calm


def test_a_limit_on_the_size_of_files(tmp_path: Path, calm: dict[str, bytes]) -> None:
    run_file = write(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OutputError, match=r"parquet: no room \(a file size limit or quota.*[\d,]+ bytes are free"):
            score_until(run_file, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_stopped(tmp_path / "run" / "out", calm)
    assert contents(score_here(run_file)) == calm


def test_a_disk_that_turns_read_only(disk: Path, tmp_path: Path, calm: dict[str, bytes]) -> None:
    run_file = write(tmp_path / "run", output=str(disk / "out"))
    with pytest.raises(OutputError, match=r"Read-only file system.*give this user access.*\(or mount it writable\)"):
        score_until(run_file, lambda: subprocess.run(["mount", "-o", "remount,ro", disk], check=True))
    check_stopped(disk / "out", calm)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert contents(score_here(run_file)) == calm


def test_folders_that_lose_their_permission(calm: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        run_file = write(folder / "run")
        out = folder / "run" / "out"

        def close(mode: int = 0o555) -> None:
            for path in [out, *out.rglob("*")]:
                if path.is_dir():
                    path.chmod(mode)

        def lose() -> None:
            close()
            if not os.geteuid():
                os.seteuid(NOBODY)

        try:
            with pytest.raises(OutputError, match="Permission denied.*give this user access to the folder"):
                score_until(run_file, lose)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
        close(0o755)
        check_stopped(out, calm)
        assert contents(score_here(run_file)) == calm


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
    finish(out, plan, engine_version="test")
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
        "_engine/manifest.json",
    ]
    assert names == wanted
