"""The only file that knows Ray: a pool of actors fed from a queue that the driver owns.

corpus units ──► Pool.run ──► actor.score(unit, documents) ──► Done(unit, stats)
                    │ a death: the unit goes back to the queue, a new actor takes the dead one's place
                    │ two deaths by one unit: its documents go one by one through an actor that may die
                    └──────────────────────────────────────────► Salvaged(unit, outcome of each document)

Ray retries nothing here (max_restarts=0, max_task_retries=0): a retry bound to an actor hangs when no replacement
comes, and Ray cannot know which unit is to blame. Nothing depends on who scores a unit: any actor takes any of them.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as failures
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.corpus import Document, Unit
from jobs.events import Call, Died, Done, Event, Notice, Ready, Salvaged, Slot, Task, Tick, Worker
from schemas.errors import RunFileError, TargetsmithError, WorkError
from schemas.runfile import RayConfig

DEATHS_PER_UNIT = 2  # deaths that one unit may cause before its documents are scored one by one
STARTS_FAILED = 3  # actors that die in a row while loading the teacher: the machine, not the work, is to blame
PLACE_LIMIT_S = 600.0  # no actor found a place (an autoscaler may need minutes)
LOAD_LIMIT_S = 3600.0  # no actor finished loading the teacher (hundreds of GB from a network disk)
POLL_S = 1.0
OBJECT_STORE_BYTES = 256 * 2**20  # local Ray only; units are a few MB, results are published by the actors themselves
HANDED_ON = ("HF_HUB_OFFLINE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that actors on other nodes get. No secrets: Ray shows them in its dashboard and logs."""
LONGEST_TEMP = 40  # bytes; Ray adds about 65 for its sockets, and a Unix socket path has at most 103 to 107


class _Shell:
    """The actor: builds the worker in `start`, not in the constructor, so that its errors keep their type."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._make_worker = make_worker

    def place(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def start(self) -> str:
        self._worker = self._make_worker()
        return self._worker.note

    def score(self, unit: Unit, documents: list[Document]) -> dict[str, float]:
        return self._worker.score(unit, documents)

    def score_alone(self, document: Document) -> Any:
        return self._worker.score_alone(document)


@contextmanager
def connect(config: RayConfig, address: str | None = None) -> Iterator[str]:
    """Ray for the length of a `with` block; yields "local" or "cluster".

    The address is, in this order: `address` (the command line), `[ray] address`, RAY_ADDRESS (set inside a Ray job),
    else a private Ray on this machine that ends with the block; "local" asks for that one explicitly.
    Raises RunFileError for an address of a wrong kind, WorkError when the cluster does not answer.
    """
    in_job = "RAY_JOB_CONFIG_JSON" in os.environ  # set by `ray job submit`, which ships the code to all workers itself
    where = address or config.address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in where:
        raise RunFileError(
            f"Ray address {where!r}: wanted HOST:PORT of a cluster that this machine belongs to, or 'auto'. "
            f"From outside: ray job submit --address http://HEAD:8265 --working-dir . -- python -m jobs.score RUN.toml"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    root = Path(__file__).resolve().parent.parent
    env_vars = {"TOKENIZERS_PARALLELISM": "false"} | {k: os.environ[k] for k in HANDED_ON if k in os.environ}
    runtime_env: dict[str, Any] = {"env_vars": env_vars}
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": runtime_env}
    if where != "local":
        if not in_job:
            runtime_env["py_modules"] = [str(root / package) for package in ("schemas", "engine", "jobs")]
        _init(where, common, "Is it running? If it wants a token, set RAY_AUTH_MODE=token as for the ray commands.")
        try:
            with redirect_stdout(sys.stderr):  # Ray tells on standard output what nodes and autoscaler do
                yield "cluster"
        finally:
            ray.shutdown()
        return
    # The command may be started from any folder with a checkout that is not installed: tell workers where the code is.
    env_vars["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    temp = _short_temp()
    if isinstance(config.actors, int):  # more actors than cores is a person's explicit wish
        common["num_cpus"] = max(os.cpu_count() or 1, math.ceil(config.actors * config.num_cpus))
    # A private Ray asks for a token (else other users of the machine could run code through it). Given here, it stays
    # in memory; left to Ray, it would become a file in the home folder that changes how later `ray start`s behave.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    common |= {"_temp_dir": str(temp), "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        _init("local", common, "Is the disk full or the memory short?")
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Ray's long version of our notices
            yield "local"
    except WorkError as error:
        logs = temp / "session_latest" / "logs"
        if not logs.is_dir():
            raise
        kept = shutil.copytree(logs, temp.with_name(temp.name + "-logs"), symlinks=True)
        raise WorkError(f"{error}\nRay's own logs are kept in {kept}") from error
    finally:
        ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _init(where: str, options: dict[str, Any], advice: str) -> None:
    host, _, port = where.rpartition(":")
    try:
        if port.isdecimal():  # where nobody listens, Ray tries for long and then ends the whole process
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=where, **options)
    except (OSError, RuntimeError, ValueError, failures.AuthenticationError) as error:
        raise WorkError(f"Ray {where!r}: cannot start or connect: {error}. {advice}") from error


def _short_temp() -> Path:
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(parent)) + len("/ts-12345678") <= LONGEST_TEMP and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="ts-", dir=parent))
    raise WorkError(
        f"Ray's temporary folder: {tempfile.gettempdir()!r} is too long for Unix sockets and /tmp cannot be written; "
        f"set TMPDIR to a writable folder with a path of at most {LONGEST_TEMP - 12} bytes"
    )


class Pool:
    """Actors and the queue. Use inside `connect`; one `run` per pool."""

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        config: RayConfig,
        *,
        local: bool,
        place_limit_s: float = PLACE_LIMIT_S,
        load_limit_s: float = LOAD_LIMIT_S,
    ) -> None:
        """`make_worker` is called inside each actor and must pickle; `config` is [ray] of the run file."""
        self._make_worker = make_worker
        self._config = config
        self._local = local
        self._limit_s = {False: place_limit_s, True: load_limit_s}  # by "some actor has found a place"
        self._cpus = config.num_cpus
        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        self._gpus = config.num_gpus if config.num_gpus is not None else float(has_gpus)
        self._slots: list[Slot] = []
        self._queue: deque[Task] = deque()  # came back unblamed after a death
        self._suspects: deque[Task] = deque()  # blamed once: run with nothing else in flight on their actor
        self._alone: deque[Task] = deque()  # to be scored document by document
        self._starts_failed = 0
        self._deaths_in_a_row = 0  # no unit or document was finished in between
        self._waiting_since = time.monotonic()  # no actor is ready since then

    def run(self, tasks: Iterator[tuple[Unit, list[Document]]], count: int) -> Generator[Event, None, None]:
        """Score all `count` tasks. Yields as things happen; closing the iterator kills the actors.

        `tasks` is read only as fast as actors take work. Raises WorkError when the work cannot go on (running again
        resumes), and whatever TargetsmithError a worker raised.
        """
        source = (Task(unit, documents) for unit, documents in tasks)
        open_tasks = count
        try:
            while open_tasks:
                self._grow(open_tasks)
                self._feed(source)
                self._check_progress()
                refs = [slot.calls[0].ref for slot in self._slots if slot.calls]
                landed, _ = ray.wait(refs, timeout=POLL_S) if refs else ([], time.sleep(POLL_S))
                if not landed:
                    yield Tick()
                for slot in [slot for slot in self._slots if slot.calls and slot.calls[0].ref in landed]:
                    for event in self._collect(slot):
                        open_tasks -= isinstance(event, Done | Salvaged)
                        yield event
        finally:
            for slot in self._slots:
                ray.kill(slot.handle)

    # ---- actors

    def _nodes(self) -> dict[str, int]:
        """Node id -> actors that fit on the whole node, for all nodes alive."""
        fits = {}
        for node in ray.nodes():
            if node["Alive"]:
                have = node["Resources"]
                counts = [have.get("CPU", 0) // self._cpus] if self._cpus else []
                counts += [have.get("GPU", 0) // self._gpus] if self._gpus else []
                most = int(min(counts, default=1))
                fits[node["NodeID"]] = min(most, self._config.actors_per_node or most)
        return fits

    def _grow(self, open_tasks: int) -> None:
        """Start actors up to the wanted number. Asked every moment: dead ones are replaced, new nodes are used."""
        fits = self._nodes()
        if self._local and not any(fits.values()):
            raise WorkError(self._no_place())
        wanted = self._config.actors if isinstance(self._config.actors, int) else max(1, sum(fits.values()))
        for _ in range(min(wanted, open_tasks) - len(self._slots)):
            node_id = None
            strategy: Any = "SPREAD"
            if self._config.actors_per_node is not None:
                taken = [slot.node_id for slot in self._slots]
                free = {node: taken.count(node) for node, most in fits.items() if taken.count(node) < most}
                if not free:
                    return
                node_id = min(free, key=lambda node: free[node])
                strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
            actor: Any = ray.remote(_Shell).options(
                num_cpus=self._cpus,
                num_gpus=self._gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=strategy,
            )
            handle = actor.remote(self._make_worker)
            calls = deque([Call("place", handle.place.remote()), Call("start", handle.start.remote())])
            self._slots.append(Slot(handle, node_id, calls))

    def _check_progress(self) -> None:
        if any(slot.ready for slot in self._slots):
            self._waiting_since = time.monotonic()
            return
        waited = time.monotonic() - self._waiting_since
        placed = any(slot.placed for slot in self._slots)
        if waited > self._limit_s[placed]:
            still = "every actor is still loading the teacher." if placed else "no actor has found a place."
            raise WorkError(f"Ray: after {waited:.0f} s {still} {_RESUME if placed else self._no_place()}")

    def _no_place(self) -> str:
        gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
        have = {key: ray.cluster_resources().get(key, 0) for key in ("CPU", "GPU")}
        return (
            f"Each actor wants {self._cpus:g} CPUs{gpus} on one node; all nodes together have {have['CPU']:g} CPUs and "
            f"{have['GPU']:g} GPUs. Lower [ray] num_cpus or num_gpus, or add nodes. {_RESUME}"
        )

    # ---- work

    def _feed(self, source: Iterator[Task]) -> None:
        """Give work to actors that are ready, the idlest first, at most `max_in_flight` units to each.

        When an actor dies, the result of the unit before may be lost with it, and the wrong unit is blamed. A suspect
        therefore runs with nothing else in flight: a second death is certainly its own.
        """
        for slot in self._slots:
            if slot.ready and slot.alone is None and self._alone:
                slot.alone = self._alone.popleft()
            if slot.alone is not None and not slot.calls:
                self._next_document(slot, slot.alone)
        for depth in range(self._config.max_in_flight):
            for slot in self._slots:
                if not slot.ready or slot.alone or len(slot.calls) != depth or slot.has_suspect():
                    continue
                task = self._suspects.popleft() if self._suspects and depth == 0 else None
                task = task or (self._queue.popleft() if self._queue else next(source, None))
                if task is None:
                    return
                slot.calls.append(Call("unit", slot.handle.score.remote(task.unit, task.documents), task))

    def _next_document(self, slot: Slot, task: Task) -> None:
        document = task.documents[len(task.outcomes)]
        slot.calls.append(Call("document", slot.handle.score_alone.remote(document), task))

    def _collect(self, slot: Slot) -> Iterator[Event]:
        """The first call of a slot has landed: take its result, or bury the actor."""
        try:
            value = ray.get(slot.calls[0].ref)
        except failures.RayTaskError as error:  # raised by our own code, the actor lives
            if isinstance(error.cause, TargetsmithError):
                raise error.cause from None
            raise
        except (failures.LocalRayletDiedError, failures.RaySystemError, failures.RuntimeEnvSetupError) as error:
            raise WorkError(f"Ray itself failed: {error} {_RESUME}") from error
        except failures.RayError as error:  # the actor, its node or the result is lost
            yield from self._bury(slot, error)
            return
        yield from self._take(slot, slot.calls.popleft(), value)

    def _take(self, slot: Slot, call: Call, value: Any) -> Iterator[Event]:
        if call.kind == "place":
            slot.placed, slot.node_id = True, value
            return
        if call.kind == "start":
            slot.ready, self._starts_failed = True, 0
            yield Ready(value)
            return
        assert call.task is not None
        self._deaths_in_a_row = 0
        if call.kind == "unit":
            yield Done(call.task.unit, value)
            return
        yield from self._outcome(slot, call.task, value)

    def _outcome(self, slot: Slot, task: Task, outcome: Any) -> Iterator[Event]:
        """One document of a task that is scored one by one is decided."""
        task.outcomes.append((task.documents[len(task.outcomes)], outcome))
        if len(task.outcomes) == len(task.documents):
            slot.alone = None
            yield Salvaged(task.unit, task.outcomes)

    def _bury(self, slot: Slot, error: failures.RayError) -> Iterator[Event]:
        """A dead actor: blame the call it was running, requeue the rest. `slot.calls[0]` is the one that failed."""
        self._slots.remove(slot)
        ray.kill(slot.handle)
        call = slot.calls.popleft()
        blame = self._blame(slot, error)
        how = _how(error)
        if call.kind in ("place", "start"):
            self._starts_failed += 1
            yield Notice(f"an actor died while it started: {how}")
            if self._starts_failed >= STARTS_FAILED:
                raise WorkError(
                    f"Ray: {self._starts_failed} actors in a row died while loading the teacher, the last one: {how}\n"
                    f"Most often the memory of the node is too small for [ray] actors teachers. {_RESUME}"
                )
        elif call.kind == "unit":
            assert call.task is not None
            yield Notice(f"an actor died in unit {call.task.unit.index}: {how}")
            call.task.deaths += blame
            deaths = call.task.deaths
            (self._alone if deaths >= DEATHS_PER_UNIT else self._suspects if deaths else self._queue).append(call.task)
        elif call.kind == "document" and blame:
            assert call.task is not None
            document = call.task.documents[len(call.task.outcomes)]
            yield Notice(f"document {document.doc_id!r} ({document.source}, {document.place}) kills its process: {how}")
            yield from self._outcome(slot, call.task, Died(how))
        # Calls behind the failed one never ran. An undecided task of single documents goes on where it stopped.
        self._queue.extendleft(later.task for later in reversed(slot.calls) if later.kind == "unit" and later.task)
        if slot.alone is not None:
            self._alone.appendleft(slot.alone)
        self._deaths_in_a_row += blame
        limit = 4 * (DEATHS_PER_UNIT + len(self._slots))
        if self._deaths_in_a_row > limit:
            raise WorkError(
                f"Ray: {self._deaths_in_a_row} actors died without one unit or document finished in between, the last "
                f"one: {how}\nThis is not one bad document. Look at memory, drivers and the teacher. {_RESUME}"
            )

    def _blame(self, slot: Slot, error: failures.RayError) -> bool:
        """Whether the work killed the actor. Not when the node died or was taken away, or only the connection broke."""
        if isinstance(error, failures.OutOfMemoryError | failures.WorkerCrashedError):
            return True
        if not isinstance(error, failures.ActorDiedError) or error.preempted or not slot.ready:
            return False
        return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == slot.node_id)


_RESUME = "What is published stays; running the same command again does only what is missing."


def _how(error: failures.RayError) -> str:
    """The telling part of Ray's long message, on one line."""
    text = " ".join(str(error).split())
    for start in ("Worker exit detail:", "The actor is dead because"):
        text = text[text.find(start) :] if start in text else text
    return text.split(" Some common causes include")[0][:300]
