"""The pool: units of documents go in, actors of Ray score them, events come out. The policy: jobs/pool/schedule.py.

corpus units ──► Pool.run ──► actor.score(unit, documents) ──► Done(unit, stats)
                    │ a death: the unit goes back to the queue, a new actor takes the dead one's place
                    │ two deaths by one unit: its documents go one by one through an actor that may die
                    └──────────────────────────────────────────► Salvaged(unit, outcome of each document)

Ray retries nothing here (max_restarts=0, max_task_retries=0): a retry bound to an actor hangs when no replacement
comes, and Ray cannot know which unit is to blame.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import ray
from ray import exceptions as failures
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine.corpus.document import Document, Unit
from engine.teacher.rank import RankLost, join
from jobs.pool.events import Event, MakeWorker, Step, Tick
from jobs.pool.ray_cluster import connect
from jobs.pool.ray_metrics import UnitMetrics
from jobs.pool.ray_ranks import RankGroup, rank_of
from jobs.pool.ray_steps import StepBoard
from jobs.pool.schedule import RESUME, Call, Schedule, Slot, Task
from schemas.errors import TargetsmithError, WorkError
from schemas.runfile import RayConfig

__all__ = ["Pool", "connect"]  # a pool is used inside `connect`

PLACE_LIMIT_S = 600.0  # no actor found a place (an autoscaler may need minutes)
LOAD_LIMIT_S = 3600.0  # no actor finished loading the teacher (hundreds of GB from a network disk)
POLL_S = 1.0
_ASIDE = "aside"  # concurrency group of calls that are answered beside the work
_UNITS = "units"  # of the units: while one is published, the next is scored


class _Shell:
    """The actor: builds the worker in `start`, not in the constructor, so that its errors keep their type."""

    def __init__(self, make_worker: MakeWorker, run: str) -> None:
        self._make_worker, self._run = make_worker, run
        self._step: Step | None = None

    @ray.method(concurrency_group=_ASIDE)
    def step(self) -> Step | None:
        """What the worker is at. On a thread of its own, beside the work."""
        return self._step

    def _report(self, step: Step) -> None:
        self._step = step

    def place(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def start(self, rank: tuple[int, int, str] | None = None) -> str:
        """rank: where several actors share one teacher, whose rank 0 this one is."""
        if rank is not None:
            join(rank_of(rank))
        self._worker = self._make_worker(report=self._report)
        self._metrics = UnitMetrics(self._run)
        return self._worker.note

    def calibrate(self, documents: list[Document], last: bool, lost: list[tuple[Document, str]]) -> None:
        self._worker.calibrate(documents, last, lost)

    @ray.method(concurrency_group=_UNITS)
    def score(self, unit: Unit, documents: Sequence[Document]) -> dict[str, float]:
        """On two threads: the worker sees to it that one unit is scored at a time."""
        begin = time.monotonic()
        stats = self._worker.score(unit, documents)
        self._metrics.add(stats, time.monotonic() - begin)
        return stats

    def score_alone(self, document: Document) -> Any:
        return self._worker.score_alone(document)


class Pool:
    """Actors and the queue. Use inside `connect`; one `run` per pool."""

    def __init__(
        self,
        make_worker: MakeWorker,
        config: RayConfig,
        *,
        local: bool,
        sample: Sequence[Document] | None = None,
        run: str = "",
        follow: Callable[[], None] | None = None,
        place_limit_s: float = PLACE_LIMIT_S,
        load_limit_s: float = LOAD_LIMIT_S,
    ) -> None:
        """`make_worker` is called inside each actor and must pickle; `config` is [ray] of the run file; `sample`:
        the calibration sample, which every worker reads before its first unit; None: the run needs none. run: its name in
        metrics. follow: where several processes share a teacher (one for each of [ray] num_gpus), what those behind the worker
        do; it must pickle."""
        self._make_worker = ray.put(make_worker)  # once for all actors: it holds the plan, which lists every unit
        self._config = config
        self._local, self._sample, self._run = local, sample, run
        self._limit_s = {False: place_limit_s, True: load_limit_s}  # by "some actor has found a place"
        self._cpus = config.num_cpus
        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        self._gpus = config.num_gpus if config.num_gpus is not None else float(has_gpus)
        self._waiting_since = self._placeless_since = time.monotonic()  # no actor is ready, has a place, since then
        self._follow = None if follow is None else ray.put(follow)
        self._ranks: dict[int, RankGroup] = {}  # by id of the slot
        self._fits: dict[str, int] = {}
        self._asked_at = -math.inf  # when `_fits` was
        self._schedule = Schedule(iter(()), 0, config.max_in_flight)

    def run(self, tasks: Iterator[tuple[Unit, Sequence[Document]]], count: int) -> Generator[Event, None, None]:
        """Score all `count` tasks. Yields as things happen; closing the iterator kills the actors.

        `tasks` is read only as fast as actors take work. Raises WorkError when the work cannot go on (running again
        resumes), and whatever TargetsmithError a worker raised.
        """
        source = (Task(unit, documents) for unit, documents in tasks)
        schedule = self._schedule = Schedule(source, count, self._config.max_in_flight, sample=self._sample)
        board = StepBoard()
        try:
            while schedule.open_tasks:
                self._grow()
                for slot, call in schedule.hand_out(time.monotonic()):
                    call.ref = self._begin(slot, call)
                self._check_progress()
                self._mourn()
                for slot in self._landed():
                    yield from self._collect(slot)
                board.ask(schedule.slots, time.monotonic())
                yield Tick(board.steps())
        finally:
            for slot in schedule.slots:
                self._kill(slot)

    # ---- actors

    def _nodes(self) -> dict[str, int]:
        """Node id -> actors that fit on the whole node, for all nodes alive. Asked once in a while: nodes come and go."""
        if time.monotonic() - self._asked_at < POLL_S:
            return self._fits
        self._fits, self._asked_at = {}, time.monotonic()
        for node in ray.nodes():
            if node["Alive"]:
                have = node["Resources"]
                wanted = (("CPU", self._cpus), ("GPU", self._gpus))
                most = min((int(have.get(key, 0) / want + 1e-6) for key, want in wanted if want), default=1)
                self._fits[node["NodeID"]] = min(most, self._config.actors_per_node or most)
        return self._fits

    def _grow(self) -> None:
        """Start actors up to the wanted number. Asked every moment: dead ones are replaced, new nodes are used."""
        fits, slots = self._nodes(), self._schedule.slots
        if self._local and not any(fits.values()):
            raise WorkError(self._no_place())
        wanted = self._config.actors if isinstance(self._config.actors, int) else max(1, sum(fits.values()))
        for _ in range(self._schedule.missing(wanted, time.monotonic())):
            node_id = None
            if self._config.actors_per_node is not None:
                taken = [slot.node_id for slot in slots]
                free = {node: taken.count(node) for node, most in fits.items() if taken.count(node) < most}
                if not free:
                    return
                node_id = min(free, key=lambda node: free[node])
            ranks = None if self._follow is None else self._rank_group(node_id)
            remote: Any = ray.remote  # its types do not know of groups
            actor = remote(concurrency_groups={_ASIDE: 1, _UNITS: 2})(_Shell).options(
                max_restarts=0, max_task_retries=0, **(ranks.options(0, self._cpus) if ranks else self._place(node_id))
            )
            handle = actor.remote(self._make_worker, self._run)
            slot = Slot(handle, node_id, deque([Call("place", ref=handle.place.remote())]))
            if ranks is not None:
                self._ranks[id(slot)] = ranks
            self._schedule.join(slot, time.monotonic())

    def _place(self, node_id: str | None) -> dict[str, Any]:
        """Options of an actor by itself."""
        strategy = "SPREAD" if node_id is None else NodeAffinitySchedulingStrategy(node_id, soft=False)
        return {"num_cpus": self._cpus, "num_gpus": self._gpus, "scheduling_strategy": strategy}

    def _rank_group(self, node_id: str | None) -> RankGroup:
        address = next((node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id), None)
        return RankGroup(int(self._gpus), self._cpus, self._follow, address)

    def _kill(self, slot: Slot) -> None:
        """The actor, and those that share its teacher."""
        ray.kill(slot.handle)
        if (ranks := self._ranks.pop(id(slot), None)) is not None:
            ranks.end()

    def _mourn(self) -> None:
        """An actor that has lost a rank of its teacher cannot go on, and may not notice: its death is then handled like any."""
        for slot in self._schedule.slots:
            if self._failed_rank(slot):
                ray.kill(slot.handle)

    def _failed_rank(self, slot: Slot) -> str:
        ranks = self._ranks.get(id(slot))
        return "" if ranks is None else ranks.gone()

    def _check_progress(self) -> None:
        now, placed = time.monotonic(), any(slot.placed for slot in self._schedule.slots)
        if placed:
            self._placeless_since = now
        if any(slot.ready for slot in self._schedule.slots):
            self._waiting_since = now
        waited = now - (self._waiting_since if placed else self._placeless_since)
        if waited > self._limit_s[placed]:
            still = "every actor is still loading the teacher." if placed else "no actor has found a place."
            raise WorkError(f"Ray: after {waited:.0f} s {still} {RESUME if placed else self._no_place()}")

    def _no_place(self) -> str:
        gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
        have = {key: ray.cluster_resources().get(key, 0) for key in ("CPU", "GPU")}
        return (
            f"Each actor wants {self._cpus:g} CPUs{gpus} on one node; all nodes together have {have['CPU']:g} CPUs and "
            f"{have['GPU']:g} GPUs. Lower [ray] num_cpus or num_gpus, or add nodes. {RESUME}"
        )

    # ---- work

    def _begin(self, slot: Slot, call: Call) -> Any:
        if call.kind == "start":
            ranks = self._ranks.get(id(slot))
            return slot.handle.start.remote() if ranks is None else slot.handle.start.remote(ranks.rank(0))
        if call.kind == "calibrate":
            return slot.handle.calibrate.remote(call.sample, not slot.sample, self._schedule.lost)
        assert call.task is not None
        if call.kind == "document":
            return slot.handle.score_alone.remote(call.task.documents[call.number])
        return slot.handle.score.remote(call.task.unit, call.task.documents)

    def _landed(self) -> list[Slot]:
        """Actors whose first call has ended, after a moment at most."""
        first_calls = {slot.calls[0].ref: slot for slot in self._schedule.slots if slot.calls}
        if not first_calls:
            time.sleep(POLL_S)
        elif ray.wait(list(first_calls), timeout=POLL_S)[0]:
            return [first_calls[ref] for ref in ray.wait(list(first_calls), num_returns=len(first_calls), timeout=0)[0]]
        return []

    def _collect(self, slot: Slot) -> Iterator[Event]:
        """The first call of a slot has landed: take its result, or bury the actor."""
        try:
            value = ray.get(slot.calls[0].ref)
        except failures.RayTaskError as error:  # raised by our own code, the actor lives
            if isinstance(error.cause, TargetsmithError):
                raise error.cause from None
            if not isinstance(error.cause, RankLost):
                raise
            yield from self._bury(slot, True, str(error.cause))
        except (failures.LocalRayletDiedError, failures.RaySystemError, failures.RuntimeEnvSetupError) as error:
            raise WorkError(f"Ray itself failed: {error} {RESUME}") from error
        except failures.RayError as error:  # the actor, its node or the result is lost
            yield from self._bury(slot, self._blame(slot, error), _how(error))
        else:
            event = self._schedule.landed(slot, value, time.monotonic())
            if event is not None:
                yield event

    def _bury(self, slot: Slot, blame: bool, how: str) -> Iterator[Event]:
        rank = self._failed_rank(slot)
        self._kill(slot)
        self._asked_at = -math.inf  # its place may be free, or gone
        yield from self._schedule.died(slot, blame, f"a process that shares its teacher: {rank}"[:300] if rank else how)

    def _blame(self, slot: Slot, error: failures.RayError) -> bool:
        """Whether the actor died by itself. Not when its node died or was taken away, or only the connection broke."""
        if isinstance(error, failures.OutOfMemoryError | failures.WorkerCrashedError):
            return True
        if not isinstance(error, failures.ActorDiedError) or error.preempted:
            return False
        return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == slot.node_id)


def _how(error: failures.RayError) -> str:
    """The telling part of Ray's long message, on one line."""
    text = " ".join(str(error).split())
    for start in ("Worker exit detail:", "The actor is dead because"):
        text = text[text.find(start) :] if start in text else text
    return text.split(" Some common causes include")[0][:300]
