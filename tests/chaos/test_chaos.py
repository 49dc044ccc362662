"""Real kills: SIGKILL and SIGSTOP of drivers, actors and nodes while the real command runs, and what is left afterwards.

Fast: an actor and a driver on a cluster of one node, and the checks. Marked `chaos`: every kind of kill, by `make chaos`.
Marked `soak`: TARGETSMITH_KILLS kills; `make soak` makes the same with a table. Seeds are printed; TARGETSMITH_SEED repeats one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from schemas.errors import OutputError
from tests.chaos.checks import Execution, Log, Tally, Watcher, check_output, tally, wait_for
from tests.chaos.cluster import Nodes
from tests.chaos.rounds import (
    Command,
    Kills,
    Site,
    actors_below,
    cluster,
    freeze,
    kill_actor,
    kill_driver,
    moment,
    progress,
    site,
)
from tests.chaos.soak import KINDS, Line, judge, play, soak
from tests.support.runs import STUDENTS, score_here, write_run

SEED = int(os.environ.get("TARGETSMITH_SEED", random.SystemRandom().randrange(10**6)))


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    with site(units=30) as found:
        yield found


@pytest.fixture(scope="module")
def ray(place: Site) -> Iterator[Nodes]:
    with cluster(place) as found:
        yield found


@pytest.fixture
def rng() -> random.Random:
    print(f"TARGETSMITH_SEED={SEED}")
    return random.Random(SEED)


def check(place: Site, name: str, kills: Kills, watcher: Watcher, *, pair: bool = False) -> Line:
    line = Line()
    judge(line, place, name, kills, watcher, pair=pair)
    assert line.good, line
    return line


def actors_and_drivers_killed(
    place: Site, ray: Nodes, rng: random.Random, actors: int, *, while_it_starts: bool
) -> None:
    """So many actors die in units, then the driver at work, then (if wanted) the next one while it starts. The last finishes."""
    kills, run_file = Kills(), place.run_file("killed", actors=1)
    with Watcher(run_file.with_name("out"), place.documents) as watcher:
        command = Command(place, run_file, ray.address)
        while len(kills.actors) < actors:
            assert command.running(), f"it was done before {actors} actors were killed"
            progress(command, 1)
            time.sleep(rng.uniform(0, 0.4))
            kill_actor(command, kills, rng, [ray.process.pid])
        progress(command, rng.randint(1, 3))
        assert command.running(), "it was done before its driver was killed"
        kill_driver(command, kills)
        if while_it_starts:
            command = Command(place, run_file, ray.address)
            time.sleep(rng.uniform(0, 5))
            kill_driver(command, kills)
        Command(place, run_file, ray.address, pause_s=0).finish()
    line = check(place, "killed", kills, watcher)
    assert line.kills == actors + 1 + while_it_starts and line.most <= 2


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_actors_and_drivers_killed(rng: random.Random) -> None:
    """One of each, at work; on one node."""
    with site(units=14) as place, cluster(place, workers=1) as ray:
        actors_and_drivers_killed(place, ray, rng, 1, while_it_starts=False)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_more_actors_and_drivers_killed(place: Site, ray: Nodes, rng: random.Random) -> None:
    actors_and_drivers_killed(place, ray, rng, 2, while_it_starts=True)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_frozen_node_and_a_dead_one_under_two_drivers(place: Site, ray: Nodes, rng: random.Random) -> None:
    """Two commands on one output. The actor of one goes on writing on a node that is frozen; the other loses its node to
    SIGKILL. Two nodes join late and take their places. Both commands end well."""
    kills, run_file = Kills(), place.run_file("nodes", actors=1)
    gate, out = run_file.with_name("gate"), run_file.with_name("out")
    with Watcher(out, place.documents) as watcher:
        pair = [Command(place, run_file, ray.address, pause_s=0.5, gate=gate) for _ in range(2)]
        wait_for("both to work", lambda: len(Log(pair[0].log).running()) == 2)  # and to wait at the gate
        frozen, killed = rng.sample(ray.raylets, 2)
        dead_at = freeze(ray, frozen, pair[0], kills, gate)
        time.sleep(rng.uniform(0, 1))
        kills.raylets.add(killed)
        ray.remove(killed)
        late = [ray.add(), ray.add()]
        ray.remove(frozen)
        for command in pair:
            command.finish()
    check(place, "nodes", kills, watcher, pair=True)
    done = Log(run_file.with_name("log")).executions
    assert {one.raylet for one in done} == {frozen, killed, *late}
    assert [one for one in done if one.raylet == frozen and one.end and one.end > dead_at], "it did not write on"


# ---- the tools can fail


def history(*lines: str) -> Log:
    """A log from lines `WHAT UNIT PID DRIVER TIME`; all on one node."""
    log = Log(Path(os.devnull))
    for line in lines:
        what, unit, pid, driver, at = line.split()
        if what == "begin":
            log.begun[int(driver)] = float(at)
        else:
            end = None if what == "died" else float(at) + 1
            log.executions.append(Execution(int(unit), int(pid), 1, int(driver), float(at), end))
    return log


def faults(*lines: str, units: int = 20, lost: tuple[int, ...] = (), outlived: tuple[int, ...] = ()) -> Tally:
    filler = [f"did {unit} 9 1 {100 + unit}" for unit in range(8, units)]
    return tally(history("begin -1 1 1 0", *lines, *filler), units, lost, outlived)


@pytest.mark.parametrize(
    ("lines", "lost", "outlived", "redone", "fault"),
    [
        (["died 0 5 1 1", "did 0 6 1 2"], (5,), (), 1, ""),
        (["did 0 5 1 1", "died 1 5 1 2", "did 1 6 1 4"], (5,), (), 1, ""),
        (["did 0 5 1 1", "did 1 5 1 2", "did 0 6 1 4", "did 1 6 1 5"], (5,), (), 1, "unit 1 was scored by 5 and again"),
        (["did 0 5 1 1", "did 1 5 1 2", "did 0 6 1 4", "did 1 6 1 5"], (5,), (5,), 2, ""),
        (["died 0 5 1 1", "died 1 5 1 2", "did 0 6 1 4", "did 1 6 1 5"], (5,), (), 2, ""),  # one was being published
        (
            [
                *(f"died {unit} 5 1 {unit + 1}" for unit in range(3)),
                *(f"did {unit} 6 1 {unit + 5}" for unit in range(3)),
            ],
            (5,),
            (),
            2,
            "unit 2 was scored by 5 and again",
        ),
        (["did 0 5 1 1", "did 0 6 1 4"], (), (), 0, "unit 0 was scored by 5 and again by 6"),
        (["died 0 5 1 1", "begin -1 2 2 2", "did 0 6 2 3"], (5,), (), 1, ""),
        (["did 0 5 1 1", "begin -1 2 2 4", "did 0 6 2 5"], (5,), (), 0, "unit 0 was published before driver 2 began"),
        (["did 0 5 1 1", "begin -1 2 2 1", "did 0 6 2 2"], (), (), 0, ""),  # two drivers at one time
        (["died 0 5 1 1", "begin -1 2 2 2", "begin -1 3 3 2", "did 0 6 2 3", "did 0 7 3 3"], (5,), (), 1, ""),
    ],
)
def test_the_tally(lines: list[str], lost: tuple[int, ...], outlived: tuple[int, ...], redone: int, fault: str) -> None:
    others = [f"did {unit} 7 1 {50 + unit}" for unit in range(8) if not any(x.split()[1] == str(unit) for x in lines)]
    found = faults(*lines, *others, lost=lost, outlived=outlived)
    assert sum(map(len, found.redone.values())) == redone
    assert (found.faults == []) if not fault else (len(found.faults) == 1 and found.faults[0].startswith(fault))


def test_the_tally_misses_no_unit() -> None:
    assert "unit 3 was never scored" in faults(*[f"did {unit} 5 1 {unit}" for unit in range(8) if unit != 3]).faults


def test_the_checks_of_an_output(tmp_path: Path) -> None:
    """A lost, a doubled and a changed document, and a file that readers would pick up, are each seen."""
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = score_here(write_run(tmp_path / "whole", students={"bl": STUDENTS["bl"]}))
    shards = sorted((whole / "data/teacher").glob("*.parquet"))
    check_output(whole, whole, documents=5)

    def broken(change: object) -> None:
        assert callable(change)
        out = tmp_path / "broken" / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        change(out)
        with pytest.raises((AssertionError, OutputError)):
            check_output(out, whole, documents=5)

    name = f"data/teacher/{shards[0].name}"
    broken(lambda out: (out / name).unlink())
    broken(lambda out: shutil.copy(out / name, out / "data/teacher/train-00009-of-00003.parquet"))
    broken(lambda out: shutil.copy(shards[1], out / name))
    broken(lambda out: (out / "_engine/tmp/x.parquet").write_bytes(b""))
    broken(lambda out: (out / "_engine/manifest.json").unlink())


# ---- by command


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(place: Site, ray: Nodes, rng: random.Random, kind: str) -> None:
    line = Line()
    made = play(line, kind, place, ray, "".join(letter for letter in kind if letter.isalpha()), rng)
    assert made and line.good, line


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_the_head_is_lost(place: Site, ray: Nodes) -> None:
    """Without its GCS a cluster is gone: the command ends (Ray waits a minute for it) and is finished on another one."""
    kills, run_file = Kills(), place.run_file("head")
    with Watcher(run_file.with_name("out"), place.documents) as watcher:
        with cluster(place) as doomed:
            command = Command(place, run_file, doomed.address)
            progress(command, 3)
            below = psutil.Process(doomed.process.pid).children(recursive=True)
            (gcs,) = [process for process in below if process.name() == "gcs_server"]
            kills.drivers.add(command.pid)
            gcs.kill()
            assert command.process.wait(300) == 1
            assert "Traceback" not in command.said.read_text()
        Command(place, run_file, ray.address).finish()
    check(place, "head", kills, watcher)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_one_node_is_left(place: Site, rng: random.Random) -> None:
    """A node dies and none joins: the other does the rest."""
    kills, run_file = Kills(), place.run_file("left")
    with cluster(place) as ray, Watcher(run_file.with_name("out"), place.documents) as watcher:
        command = Command(place, run_file, ray.address)
        moment(command, rng)
        kills.raylets.add(ray.raylets[0])
        ray.remove(ray.raylets[0])
        command.finish()
    check(place, "left", kills, watcher)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_nodes_that_die_while_their_actors_load_are_not_blamed_on_memory(place: Site) -> None:
    run_file, known = place.run_file("loading"), set[int]()

    def new_actor() -> bool:
        return bool(set(actors_below(ray.process.pid)) - known) or not command.running()

    with cluster(place, workers=1) as ray:
        command = Command(place, run_file, ray.address)
        for _ in range(3):
            wait_for("an actor", new_actor)
            known |= set(actors_below(ray.process.pid))
            ray.remove(ray.raylets[0])
            ray.add()
        command.finish()


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_nothing_of_a_private_ray_stays_behind(place: Site) -> None:
    """SIGKILL of the driver: actors end within seconds, Ray's small agents once they have given up to report it."""
    command = Command(place, place.run_file("behind"))
    progress(command, 2)
    below = psutil.Process(command.pid).children(recursive=True)
    assert len(actors_below(command.pid)) == 2
    os.kill(command.pid, signal.SIGKILL)
    command.process.wait()
    assert psutil.wait_procs(below, timeout=300)[1] == []


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_soak() -> None:
    table = soak(int(os.environ.get("TARGETSMITH_KILLS", "120")), SEED)
    assert all(line.good for line in table.values()), table
