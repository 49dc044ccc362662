"""Runs that are killed: the command as a process, and rounds of kills at random moments.

    with site(units=24) as place, cluster(place) as ray:
        kills = nodes_killed(place, "first", random.Random(0), 2, ray)

Each round scores one small corpus with the real command (tests/chaos/driver.py), kills it, its actors or its nodes, and runs
it again until it is finished. Who checks what is left: tests/chaos/checks.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.checks import Log, Tally, tally, wait_for
from tests.chaos.cluster import ROOT, Nodes, end, nodes
from tests.support.runs import STUDENTS, score_here, write_run

IN_HAND = 2  # [ray] max_in_flight
BAD = ('{"id": "b0"}', '{"id": "good", "text": "4 + 4 = 8"}', '{"id": "b1", "text": ""}', "no json")
"""The last two units: one with a bad document, one without a good one."""


# ---- one run


@dataclass(frozen=True)
class Site:
    """What the runs of a session share: environment, corpus and its undisturbed output. `folder` is short and private."""

    folder: Path
    env: dict[str, str]
    documents: int
    units: int
    reference: Path
    commands: list[Command] = field(default_factory=list)  # all that were ever started here

    def run_file(self, name: str, actors: int = 2, more: str = "") -> Path:
        """A run of its own on the same corpus. more: settings of [ray]."""
        return _write(self.folder / name, self.documents, actors, more)

    def stop(self) -> None:
        """End what a round that failed has left running."""
        for command in self.commands:
            if command.running():
                command.kill()


def _write(folder: Path, documents: int, actors: int, more: str = "") -> Path:
    folder.mkdir()
    texts = tuple(
        f"Tom has {i} apples and gets {i % 7} more. {i} + {i % 7} = {i + i % 7}." for i in range(documents - 4)
    )
    return write_run(
        folder,
        texts=texts,
        lines="\n".join(BAD) + "\n",
        students={"bl": STUDENTS["bl"]},
        targets='top_k = 8\nregime = "fast"\ncalibration_documents = 8',
        extra=f"[ray]\nactors = {actors}\nmax_in_flight = {IN_HAND}\n{more}",
    )


@contextlib.contextmanager
def site(units: int) -> Iterator[Site]:
    """A site for corpora of so many units, two documents each. Its folder is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tsk-", dir="/tmp"))
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env = plain | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    found = None
    try:
        found = Site(folder, env, 2 * units, units, score_here(_write(folder / "reference", 2 * units, 2)))
        yield found
    finally:
        if found is not None:
            found.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def cluster(place: Site, workers: int = 2) -> Iterator[Nodes]:
    """A cluster for the runs of a site."""
    folder = Path(tempfile.mkdtemp(prefix="c", dir=place.folder))
    with nodes(folder, place.env, workers) as found:
        yield found


class Command:
    """`score` on a run file as a process. Several, one after the other or at one time, share its output and log."""

    def __init__(
        self, place: Site, run_file: Path, address: str = "local", pause_s: float = 0.3, gate: Path | None = None
    ) -> None:
        self.log = run_file.with_name("log")
        self.said = run_file.with_name(f"said-{secrets.token_hex(3)}")
        command = [sys.executable, "-m", "tests.chaos.driver", str(run_file), "--log", str(self.log)]
        command += ["--address", address, "--pause", str(pause_s), "--gate", str(gate or "")]
        with self.said.open("w") as stream:
            self.process = subprocess.Popen(command, cwd=ROOT, env=place.env, stdout=stream, stderr=stream)
        place.commands.append(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> list[psutil.Process]:
        """SIGKILL. Its actors (and its private Ray) must end by themselves; what does not is killed, and returned."""
        below = psutil.Process(self.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        below += [psutil.Process(pid) for pid in self.actors() if psutil.pid_exists(pid)]
        # Ray's agents hold a few MB for a minute more, until they have given up to report that their node is dead.
        agents = [process for process in below if _title(process).endswith("Agent")]
        _, alive = psutil.wait_procs([process for process in below if process not in agents], timeout=60)
        end([*agents, *alive])
        return alive

    def actors(self) -> set[int]:
        """Its actors that have begun a unit, dead ones too."""
        return {one.pid for one in Log(self.log).executions if one.driver == self.pid}

    def check_sound(self) -> None:
        """AssertionError with what it said when it has ended with an error of its own."""
        code = self.process.poll()
        assert code is None or code <= 0, f"exit code {code}\n{self.said.read_text()}"

    def finish(self, timeout_s: float = 240) -> None:
        """Wait for exit code 0."""
        code = self.process.wait(timeout_s)
        assert code == 0, f"exit code {code}\n{self.said.read_text()}"
        assert "Traceback" not in self.said.read_text(), self.said.read_text()


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return (process.cmdline() or [""])[0]
    return ""


def actors_below(*roots: int) -> list[int]:
    """pids of all actors below these processes, those that still load the teacher too."""
    found = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(root).children(recursive=True)
            found += [process.pid for process in below if _title(process).startswith("ray::_")]
    return found


# ---- rounds


@dataclass
class Kills:
    """What was killed in a round. Sets of pids; frozen: raylets."""

    drivers: set[int] = field(default_factory=set)
    actors: set[int] = field(default_factory=set)
    raylets: set[int] = field(default_factory=set)
    frozen: set[int] = field(default_factory=set)
    orphans: list[str] = field(default_factory=list)

    def number(self) -> int:
        return sum(map(len, (self.drivers, self.actors, self.raylets, self.frozen)))

    def tally(self, log: Log, units: int) -> Tally:
        lost = {one.pid for one in log.executions if one.driver in self.drivers or one.pid in self.actors}
        outlived = {one.pid for one in log.executions if one.raylet in self.raylets | self.frozen}
        return tally(log, units, lost, outlived, IN_HAND)


def kill_driver(command: Command, kills: Kills) -> None:
    kills.drivers.add(command.pid)
    kills.orphans += [f"{process.pid} of driver {command.pid}" for process in command.kill()]


def kill_actor(command: Command, kills: Kills, rng: random.Random, roots: list[int]) -> bool:
    """SIGKILL of a random actor; False when there was none to be killed.

    A unit that was hit once is left in peace: two deaths are how the pool knows a bad document (test_ray_pool.py). And
    every other kill at most hits an actor that loads the teacher: three in a row are how it knows a small machine.
    """
    log = Log(command.log)
    hit = {one.unit for one in log.executions if one.pid in kills.actors and one.end is None}
    started = {one.pid for one in log.executions}
    running = log.running()
    loading_allowed = bool(kills.actors) and kills.actors <= started
    able = [
        pid
        for pid in actors_below(*roots)
        if (pid in started or loading_allowed) and not (pid in running and running[pid].unit in hit)
    ]
    if not able:
        return False
    victim = rng.choice(able)
    kills.actors.add(victim)
    os.kill(victim, signal.SIGKILL)
    return True


def progress(command: Command, units: int) -> None:
    """Wait until so many units more are published, or the command has ended."""
    before = Log(command.log).ended()
    command.check_sound()
    wait_for(
        f"{units} units more\n{command.said.read_text()}",
        lambda: Log(command.log).ended() >= before + units or not command.running(),
    )
    command.check_sound()


def moment(command: Command, rng: random.Random) -> None:
    """Some time at which units are in work: after 1 to 6 more, and a part of one. Ends early with the command."""
    progress(command, rng.randint(1, 6))
    time.sleep(rng.uniform(0, 0.4))


def drivers_killed(place: Site, name: str, rng: random.Random, number: int, address: str = "local") -> Kills:
    """The command is killed at random moments: while it starts, while actors load, while they work, again and again."""
    kills, run_file = Kills(), place.run_file(name, actors=rng.choice((1, 2)))
    while len(kills.drivers) < number:
        command = Command(place, run_file, address)
        if rng.random() < 0.4:
            time.sleep(rng.uniform(0, 20))
        else:
            moment(command, rng)
        if not command.running():
            break
        kill_driver(command, kills)
    Command(place, run_file, address).finish()
    return kills


def actors_killed(place: Site, name: str, rng: random.Random, number: int, address: str = "local") -> Kills:
    kills, command = Kills(), Command(place, place.run_file(name), address)
    while len(kills.actors) < number and command.running():
        moment(command, rng)
        kill_actor(command, kills, rng, [command.pid])
    command.finish()
    return kills


def nodes_killed(place: Site, name: str, rng: random.Random, number: int, ray: Nodes, how: str = "kill") -> Kills:
    """Nodes die, or leave with notice, and others join, while the command runs."""
    kills, command = Kills(), Command(place, place.run_file(name), ray.address)
    while len(kills.raylets) < number:
        moment(command, rng)
        if not command.running():
            break
        victim = rng.choice(ray.raylets)
        kills.raylets.add(victim)
        ray.remove(victim, how)
        time.sleep(rng.uniform(0, 3))
        ray.add()
    command.finish()
    return kills


def nodes_frozen(place: Site, name: str, rng: random.Random, number: int, ray: Nodes) -> Kills:
    """SIGSTOP of a raylet: its node is declared dead, its actor goes on writing; thawed or killed later."""
    kills, command = Kills(), Command(place, place.run_file(name), ray.address)
    for _ in range(number):
        moment(command, rng)
        if not command.running():
            break
        victim = rng.choice(ray.raylets)
        freeze(ray, victim, command, kills)
        ray.add()
        if rng.random() < 0.5:
            os.kill(victim, signal.SIGCONT)
            time.sleep(rng.uniform(0, 2))
        ray.remove(victim)
    command.finish()
    return kills


def freeze(ray: Nodes, victim: int, command: Command, kills: Kills, gate: Path | None = None) -> float:
    """SIGSTOP of a raylet. Returns once Ray has declared the node dead (the time of that) and the actor there has finished
    what it had in hand; `gate` is opened in between."""
    alive = ray.alive()
    kills.frozen.add(victim)
    os.kill(victim, signal.SIGSTOP)
    wait_for("the frozen node to be declared dead", lambda: ray.alive() < alive)
    dead_at = time.time()
    if gate:
        gate.touch()
    mine = set(actors_below(victim))
    wait_for("its actor to finish", lambda: not mine & set(Log(command.log).running()))
    return dead_at


def two_drivers(place: Site, name: str, rng: random.Random, number: int, address: str) -> Kills:
    """Two commands on one output at one time; one of them is killed and started again, `number` times."""
    kills, run_file = Kills(), place.run_file(name, actors=1)
    pair = [Command(place, run_file, address) for _ in range(2)]
    while len(kills.drivers) < number and all(command.running() for command in pair):
        moment(pair[0], rng)
        victim = rng.randrange(2)
        if pair[victim].running():
            kill_driver(pair[victim], kills)
            pair[victim] = Command(place, run_file, address)
    for command in pair:
        command.finish()
    return kills
