"""Who works on what, and what follows a death: the policy of the pool, without Ray and without a clock. Units and news of
actors go in; calls for actors and events come out. benchmarks/scaling.py simulates this very code.

    source ──► hand_out ──► call of an actor ──► landed ──► Done, Salvaged
                  │                         └──► died: back into a queue; after two deaths by itself, document by document
                  └ nothing left to begin: a copy of what another actor has not begun, or takes too long for

Copies are safe because units are published put-if-absent: the first that lands counts, once, and the others are ignored.
Nothing depends on who scores a unit: any actor takes any of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from engine.corpus.document import Document, Unit
from engine.corpus.units import UnreadUnit
from jobs.pool.events import Death, Done, Event, Notice, Ready, Salvaged
from schemas.errors import WorkError

KILLERS_IN_A_ROW = 20  # documents that kill, as many as the quarantine allows by default
DEATHS_PER_UNIT = 2  # deaths that one unit may cause before its documents are scored one by one
STARTS_FAILED = 3  # actors that die in a row while loading the teacher: the machine, not the work, is to blame
PATIENCE = 1.25  # an idle actor copies a unit after so many times the seconds that its size lets expect
STUCK = 5.0  # an actor so many times too slow gets no more work, and another may be started
SAMPLE_LOST = 3  # documents that may be left out of the calibration sample because they kill
RESUME = "What is published stays; running the same command again does only what is missing."
_PACES = 101  # units that the pace is the median of


@dataclass(slots=True, eq=False)
class Task:
    """A unit on its way through the pool. size: characters."""

    unit: Unit
    documents: Sequence[Document]
    deaths: int = 0
    outcomes: list[tuple[Document, Any]] = field(default_factory=list)  # when scored one by one
    held: int = 0  # calls that actors have of it, copies included
    since: float = 0.0  # when the last of these calls began
    done: bool = False
    size: int = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.documents, UnreadUnit):
            self.size = 1 + self.documents.characters
        else:
            self.size = 1 + sum(len(document.text) for document in self.documents)


@dataclass(slots=True, eq=False)
class Call:
    """A call that an actor was given; `ref` is Ray's promise of the result. since: when it became its actor's first."""

    kind: Literal["place", "start", "calibrate", "unit", "document"]
    task: Task | None = None
    number: int = 0  # of "document": which of the task
    sample: list[Document] | None = None  # of "calibrate": these documents of the calibration sample
    copy: bool = False
    ref: Any = None
    since: float = 0.0


@dataclass(slots=True, eq=False)
class Slot:
    """One actor. `calls` are in the order in which the actor runs them."""

    handle: Any = None
    node_id: str | None = None
    calls: deque[Call] = field(default_factory=deque)
    placed: bool = False
    loaded: bool = False
    note: str = ""  # the worker's
    sample: deque[list[Document]] = field(
        default_factory=deque
    )  # of the calibration sample, still to be read before it is ready
    ready: bool = False
    alone: Task | None = None  # scores this task document by document, and nothing else

    def by_itself(self) -> bool:
        """Whether a unit is in flight here that nothing may be put behind: blamed for a death, or a copy."""
        return any(call.copy or (call.task is not None and call.task.deaths > 0) for call in self.calls)


class Schedule:
    """The queue and the actors of one run. Times are seconds of any one clock."""

    def __init__(
        self,
        source: Iterator[Task],
        count: int,
        depth: int,
        patience: float = PATIENCE,
        sample: Sequence[Document] | None = None,
    ) -> None:
        """source: all `count` tasks, read only as actors take work. depth: most calls at an actor. sample: the
        calibration sample, which every actor reads before its first unit; None: the run needs none."""
        self.slots: list[Slot] = []
        self.open_tasks = count
        self._source, self._depth, self._patience = source, depth, patience
        self._queue: deque[Task] = deque()  # came back unblamed after a death
        self._suspects: deque[Task] = deque()  # blamed once: run with nothing else in flight on their actor
        self._alone: deque[Task] = deque()  # to be scored document by document
        self._paces: deque[float] = deque(maxlen=_PACES)  # seconds per character of the last units
        self._pace: float | None = None  # their median, made when asked for
        self._sample = None if sample is None else list(sample)
        self._calibrated = False  # some actor has read them all, and those that start now find what it has published
        self.lost: list[tuple[Document, str]] = []  # of the sample: left out because they kill, and how
        self._one_by_one = False  # an actor has died in the sample, by a document of it or by itself
        self._sample_deaths: Counter[int] = Counter()  # by doc_row
        self._starts_failed = 0
        self._deaths_in_a_row = 0  # no unit or document was finished in between

    # ---- actors

    def missing(self, most: int, now: float) -> int:
        """Actors to start, when there may be `most`: no more than tasks, but those that are stuck do not count."""
        stuck = sum(self._stuck(slot, now) for slot in self.slots)
        return min(most, self.open_tasks + stuck) - len(self.slots)

    def join(self, slot: Slot, now: float) -> None:
        """A new actor, which has been given its first call (place).

        A document of the sample that kills is found by giving them one by one, and left out for all actors: none has read it.
        """
        if self._sample is not None:
            slot.sample = deque([one] for one in self._sample) if self._one_by_one else deque([self._sample])
            slot.sample = slot.sample or deque([[]])
        self.slots.append(slot)
        if slot.calls:
            self._begin(slot.calls[0], now)

    # ---- work

    def hand_out(self, now: float) -> Iterator[tuple[Slot, Call]]:
        """Work for actors that are ready, the idlest first. Each call is entered already; the caller starts it.

        When an actor dies, the result of the unit before may be lost with it, and the wrong unit is blamed. A suspect
        therefore runs with nothing else in flight, as does a copy: the next death is certainly its own.
        """
        for slot in self.slots:  # one at a time: with several in flight a death could be blamed on the wrong one
            if slot.calls:
                continue
            if slot.placed and not slot.loaded:
                yield slot, self._give(slot, Call("start"), now)
            elif slot.loaded and slot.sample:
                yield slot, self._give(slot, Call("calibrate", sample=slot.sample.popleft()), now)
        yield from self._hand_out_documents(now)
        open_slots = [slot for slot in self.slots if slot.ready and not slot.alone and len(slot.calls) < self._depth]
        open_slots = [slot for slot in open_slots if not slot.by_itself() and not self._stuck(slot, now)]
        for depth in range(self._depth):
            for slot in open_slots:
                if len(slot.calls) != depth or slot.by_itself():
                    continue
                task = self._suspects.popleft() if self._suspects and depth == 0 else None
                task = task or (self._queue.popleft() if self._queue else next(self._source, None))
                if task is None:
                    yield from self._hand_out_copies([slot for slot in open_slots if not slot.calls], now)
                    return
                yield slot, self._give(slot, Call("unit", task), now)

    def _hand_out_documents(self, now: float) -> Iterator[tuple[Slot, Call]]:
        for slot in self.slots:
            if slot.alone is not None and slot.alone.done:  # a call that was thought lost has landed
                slot.alone = None
            elif slot.alone is not None and self._stuck(slot, now):
                self._alone.append(slot.alone)
                slot.alone = None
        for slot in sorted(self.slots, key=lambda slot: len(slot.calls)) if self._alone else ():
            while self._alone and self._alone[0].done:
                self._alone.popleft()
            behind = slot.calls and slot.calls[0].kind == "document"  # one that was taken from it
            if self._alone and slot.ready and slot.alone is None and not behind and not self._stuck(slot, now):
                slot.alone = self._alone.popleft()
        for slot in self.slots:
            if slot.alone is not None and not slot.calls:
                yield slot, self._give(slot, Call("document", slot.alone, len(slot.alone.outcomes)), now)

    def _hand_out_copies(self, idle: list[Slot], now: float) -> Iterator[tuple[Slot, Call]]:
        """The source is exhausted: idle actors take over what others have not begun, then what is overdue."""
        for slot in idle:
            best: tuple[tuple[int, float], Task] | None = None
            for other in self.slots:
                for place, call in enumerate(other.calls):
                    task = call.task
                    if task is None or task.done or call.kind != "unit":
                        continue
                    if (place and task.held == 1) or (not place and self._overdue(task, now, self._patience)):
                        rank = (place, now - other.calls[0].since)
                        best = max(best, (rank, task), key=lambda one: one[0]) if best else (rank, task)
            if best is None:
                return
            yield slot, self._give(slot, Call("unit", best[1], copy=True), now)

    def _give(self, slot: Slot, call: Call, now: float) -> Call:
        slot.calls.append(call)
        if call.task is not None:
            call.task.held += 1
        if len(slot.calls) == 1:
            self._begin(call, now)
        return call

    def _begin(self, call: Call, now: float) -> None:
        call.since = now
        if call.task is not None:
            call.task.since = now

    def _overdue(self, task: Task, now: float, patience: float) -> bool:
        """Whether all calls of a task take too long. Each copy is waited for longer than the one before."""
        if not self._paces:
            return False
        if self._pace is None:
            self._pace = median(self._paces)
        return now - task.since > patience * self._pace * task.size * max(1, task.held)

    def _stuck(self, slot: Slot, now: float) -> bool:
        """Whether an actor is at a unit that others have finished, or far behind: it may be frozen."""
        task = slot.calls[0].task if slot.calls else None
        return task is not None and (task.done or self._overdue(task, now, STUCK))

    # ---- what comes of it

    def landed(self, slot: Slot, value: Any, now: float) -> Event | None:
        """The first call of an actor has this result. None: nothing that a user of the pool must know."""
        call = slot.calls.popleft()
        if slot.calls:
            self._begin(slot.calls[0], now)
        if call.kind == "place":
            slot.placed, slot.node_id = True, value
            return None
        if call.kind in ("start", "calibrate"):
            slot.loaded, slot.note = True, value if call.kind == "start" else slot.note
            if slot.sample:
                return None
            slot.ready, self._starts_failed = True, 0
            self._calibrated |= call.kind == "calibrate"
            return Ready(slot.note)
        task = call.task
        assert task is not None
        task.held -= 1
        self._deaths_in_a_row = 0
        if call.kind == "document":
            return self._outcome(task, call.number, value)
        if task.done:
            return None
        seconds = now - call.since
        self._paces.append(seconds / task.size)
        self._pace = None
        self._finish(task)
        return Done(task.unit, value, seconds)

    def _finish(self, task: Task) -> None:
        task.done = True
        task.documents = []  # an actor that hangs may hold the task for long
        self.open_tasks -= 1

    def _outcome(self, task: Task, number: int, outcome: Any) -> Salvaged | None:
        """One document of a task that is scored one by one is decided, by whichever actor was first with it."""
        if task.done or number != len(task.outcomes):
            return None
        task.outcomes.append((task.documents[number], outcome))
        if len(task.outcomes) < len(task.documents):
            return None
        self._finish(task)
        for slot in self.slots:
            if slot.alone is task:
                slot.alone = None
        return Salvaged(task.unit, task.outcomes)

    def died(self, slot: Slot, blame: bool, how: str) -> Iterator[Event]:
        """An actor is lost with its calls. blame: what it was running killed it. Raises WorkError when this must end."""
        self.slots.remove(slot)
        for call in slot.calls:
            if call.task is not None:
                call.task.held -= 1
        call, *later = slot.calls
        if call.kind == "calibrate" and call.sample and blame and not self._calibrated:
            yield self._killed_by_sample(call.sample, how)
            return
        if call.kind in ("place", "start", "calibrate"):
            # not when its node was lost with it; before it has a place nobody knows, and the pool's limit of time counts
            self._starts_failed += blame and (call.kind == "start" or (call.kind == "calibrate" and not call.sample))
            blame = False
            yield Notice(f"an actor died while it started: {how}")
            if self._starts_failed >= STARTS_FAILED:
                raise WorkError(
                    f"Ray: {self._starts_failed} actors in a row died while loading the teacher, the last one: {how}\n"
                    f"Most often the memory of the node is too small for [ray] actors teachers. {RESUME}"
                )
        elif call.task is not None and call.kind == "unit":
            yield Notice(f"an actor died in unit {call.task.unit.index}: {how}")
            self._give_back(call.task, blame)
        elif call.task is not None and not call.task.done and blame and call.number == len(call.task.outcomes):
            document = call.task.documents[call.number]
            yield Notice(f"document {document.doc_id!r} ({document.source}, {document.place}) kills its process: {how}")
            if (event := self._outcome(call.task, call.number, Death(how))) is not None:
                yield event
        # Calls behind the failed one never ran. An undecided task of single documents goes on where it stopped.
        for one in reversed(later):
            if one.kind == "unit" and one.task is not None and not one.task.done and not one.task.held:
                self._queue.appendleft(one.task)
        if slot.alone is not None and not slot.alone.done:
            self._alone.appendleft(slot.alone)
        self._deaths_in_a_row += blame
        if self._deaths_in_a_row > KILLERS_IN_A_ROW + 4 * (DEATHS_PER_UNIT + len(self.slots)):
            raise WorkError(
                f"Ray: {self._deaths_in_a_row} actors died without one unit or document finished in between, the last "
                f"one: {how}\nThis is not one bad document. Look at memory, drivers and the teacher. {RESUME}"
            )

    def _killed_by_sample(self, documents: list[Document], how: str) -> Notice:
        """An actor died in documents of the sample that none has survived yet: which of them kills? WorkError for too many."""
        if len(documents) > 1:
            self._one_by_one = True
            return Notice(f"an actor died in the calibration sample, whose documents now go one by one: {how}")
        document, self._one_by_one = documents[0], True
        self._sample_deaths[document.doc_row] += 1
        told = f"document {document.doc_id!r} ({document.source}, {document.place})"
        if self._sample_deaths[document.doc_row] < DEATHS_PER_UNIT:
            return Notice(f"an actor died in {told} of the calibration sample: {how}")
        if any(one.doc_row == document.doc_row for one, _ in self.lost):
            return Notice(f"another actor died in {told} of the calibration sample: {how}")
        self.lost.append((document, how))
        self._sample = [one for one in self._sample or () if one.doc_row != document.doc_row]
        for slot in self.slots:
            if slot.sample:
                slot.sample = deque(few for few in slot.sample if few != documents) or deque([[]])
        if len(self.lost) > SAMPLE_LOST:
            raise WorkError(
                f"Ray: more than {SAMPLE_LOST} documents of the calibration sample killed their actors, the last one: {how}\n"
                f"This is not one bad document. Look at memory, drivers and the teacher. {RESUME}"
            )
        return Notice(f"{told} kills its process and is left out of the calibration sample: {how}")

    def _give_back(self, task: Task, blame: bool) -> None:
        """Where a unit goes whose actor died in it. While another actor has it, a copy, that one is waited for; but two
        deaths are enough."""
        task.deaths += blame
        if task.done or task.deaths > DEATHS_PER_UNIT:
            return
        if task.deaths == DEATHS_PER_UNIT:
            if blame:
                self._alone.append(task)
        elif not task.held:
            (self._suspects if task.deaths else self._queue).append(task)
