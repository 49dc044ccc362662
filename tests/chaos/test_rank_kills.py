"""Actors that share one teacher (tensor parallelism over gloo, GPUs that only Ray believes in) are killed: the group is made
anew, the unit is done again, and the files are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.reader.targets import Targets
from tests.chaos.checks import Log, accounts, files, tally, wait_for
from tests.chaos.cluster import Nodes, nodes
from tests.chaos.rounds import Command, Site, actors_below, progress, site

RANKS = "num_gpus = 2"


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    with site(units=10) as found:
        yield found


@pytest.fixture(scope="module")
def ray(place: Site) -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="c", dir=place.folder))
    with nodes(folder, place.env, workers=0) as found:
        found.add(cpus=2, gpus=2)
        yield found


def followers(ray: Nodes) -> list[int]:
    return [pid for pid in actors_below(ray.process.pid) if "_Follower" in psutil.Process(pid).cmdline()[0]]


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_ranks_are_killed_and_the_files_are_the_same(place: Site, ray: Nodes) -> None:
    calm = place.run_file("calm", actors=1, more=RANKS)
    Command(place, calm, ray.address, pause_s=0).finish()
    near_one_process(calm.with_name("out"), place)

    killed = place.run_file("killed", actors=1, more=RANKS)
    command, lost = Command(place, killed, ray.address), set[int]()
    for victim in ("follower", "leader"):
        progress(command, 2)
        assert command.running(), "it was done before a rank was killed"
        wait_for("a unit in work", lambda: Log(command.log).running().keys() - lost)
        (leader,) = Log(command.log).running().keys() - lost
        (follower,) = followers(ray)
        lost.add(leader)
        time.sleep(0.1)
        os.kill(follower if victim == "follower" else leader, signal.SIGKILL)
        wait_for("both to be gone", lambda ends=(leader, follower): not any(map(psutil.pid_exists, ends)))
    command.finish()
    said = command.said.read_text()
    assert said.count("an actor died in unit") == 2, said
    # rank 0 lives on for a moment without the other, and may begin the unit that waits, which fails at its first pass
    counted = tally(Log(command.log), place.units, lost, outlived=lost)
    assert not counted.faults, counted
    assert accounts(killed.with_name("out"), place.documents) == (0, 0)
    assert files(killed.with_name("out")) == files(calm.with_name("out"))
    wait_for("the last ranks to be gone", lambda: not actors_below(ray.process.pid))


def near_one_process(out: Path, place: Site) -> None:
    """The stored values are those of one process but for rounding."""
    one, two = (Targets(folder, "student/bl").documents() for folder in (place.reference, out))
    compared = 0
    for a, b in zip(one, two, strict=True):
        assert a.doc_row == b.doc_row and (abs(a.gold_logp - b.gold_logp) < 1e-3).all()
        compared += len(a.gold_logp)
    assert compared > 100
