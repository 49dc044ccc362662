"""The policy of the pool without Ray: every unit counts once, whatever dies, freezes or is slow; copies blame nobody wrongly."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from benchmarks.simulation import Costs, simulate
from engine.corpus.document import Document, Unit
from jobs.pool.events import Death, Done, Event, Notice, Salvaged
from jobs.pool.schedule import STUCK, Call, Schedule, Slot, Task
from schemas.errors import WorkError


def task(index: int, documents: int = 2, size: int = 10) -> Task:
    texts = [Document(f"d{index}.{i}", index * documents + i, "x" * size, "f", "row") for i in range(documents)]
    return Task(Unit(index, 0, index * documents, documents, index * documents), texts)


class Run:
    """A schedule with actors that are ready; the test says what lands and what dies. `now` is moved by hand."""

    def __init__(self, count: int, actors: int, depth: int = 2) -> None:
        self.schedule = Schedule(map(task, range(count)), count, depth)
        self.now, self.events = 0.0, list[Event]()
        self.slots = [self.join() for _ in range(actors)]

    def join(self) -> Slot:
        slot = Slot(calls=deque([Call("start")]))
        self.schedule.join(slot, self.now)
        self.schedule.landed(slot, "", self.now)
        return slot

    def hand_out(self) -> None:
        assert all(call in slot.calls for slot, call in self.schedule.hand_out(self.now))

    def land(self, slot: Slot) -> Event | None:
        event = self.schedule.landed(slot, {}, self.now)
        self.events += [event] if event else []
        self.hand_out()
        return event

    def die(self, slot: Slot, blame: bool = True) -> None:
        self.events += self.schedule.died(slot, blame, "killed")

    def units(self, slot: Slot) -> list[int]:
        return [call.task.unit.index for call in slot.calls if call.task]

    def finished(self) -> list[int]:
        return [event.unit.index for event in self.events if isinstance(event, Done | Salvaged)]


def test_an_idle_actor_first_takes_what_waits_and_then_what_is_overdue() -> None:
    run = Run(4, actors=2)
    run.hand_out()
    first, second = run.slots
    assert (run.units(first), run.units(second)) == ([0, 2], [1, 3])
    run.now = 1.0
    run.land(second)
    run.now = 2.0
    run.land(second)
    assert (run.units(first), run.units(second)) == ([0, 2], [2])  # a copy, and nothing behind it
    run.now = 3.0
    assert isinstance(run.land(second), Done)
    assert run.units(second) == [0]  # overdue: units take a second, this one has taken three
    run.now = 3.5
    assert run.land(second) == Done(Unit(0, 0, 0, 2, 0), {}, 0.5)
    assert run.schedule.open_tasks == 0 and run.finished() == [1, 3, 2, 0]
    assert run.land(first) is None and run.land(first) is None  # what is known already is not told again


def test_a_unit_that_runs_as_long_as_its_size_lets_expect_is_not_copied() -> None:
    schedule = Schedule(iter([task(0), task(1, size=40)]), 2, depth=1)
    run = Run(0, actors=0)
    run.schedule = schedule
    small, large = run.join(), run.join()
    run.hand_out()
    run.now = 1.0
    run.land(small)
    run.now = 4.0
    run.hand_out()
    assert not small.calls and large.calls
    run.now = 6.0
    run.hand_out()
    assert run.units(small) == run.units(large) == [1]


def test_an_actor_that_is_stuck_gets_no_more_work_and_is_made_up_for() -> None:
    run = Run(40, actors=2)
    run.hand_out()
    frozen, other = run.slots
    run.now = 1.0
    run.land(frozen)
    assert len(run.units(frozen)) == 2
    while run.schedule.open_tasks > 2:
        run.now += 1.0
        run.land(other)
        assert len(run.units(frozen)) == 2
    assert (
        run.schedule.missing(8, run.now) == run.schedule.open_tasks + 1 - 2
    )  # two tasks, and one of two actors is stuck
    assert run.now > STUCK


def test_a_copy_that_dies_blames_nobody_wrongly() -> None:
    """The original dies, its copy goes on: the unit is neither handed out again nor thought of as a killer of two."""
    run = Run(2, actors=2, depth=1)
    run.hand_out()
    slow, fast = run.slots
    run.now = 1.0
    run.land(fast)
    run.now = 3.0
    run.hand_out()
    assert run.units(slow) == run.units(fast) == [0]
    run.die(slow)
    new = run.join()
    run.hand_out()
    assert run.units(new) == []
    assert isinstance(run.land(fast), Done)
    assert run.finished() == [1, 0] and run.schedule.open_tasks == 0


def test_a_unit_that_kills_original_and_copy_is_scored_document_by_document_once() -> None:
    run = Run(2, actors=2, depth=1)
    run.hand_out()
    slow, fast = run.slots
    run.now = 1.0
    run.land(fast)
    run.now = 3.0
    run.hand_out()
    run.die(slow)
    run.die(fast)
    slots = [run.join(), run.join()]
    run.hand_out()
    (busy,) = [slot for slot in slots if slot.calls]
    assert busy.calls[0].kind == "document"
    run.die(busy)  # the first document kills, the second does not
    run.hand_out()
    busy = next(slot for slot in run.schedule.slots if slot.calls)
    run.land(busy)
    (salvaged,) = [event for event in run.events if isinstance(event, Salvaged)]
    assert [isinstance(outcome, Death) for _, outcome in salvaged.outcomes] == [True, False]
    assert run.schedule.open_tasks == 0


def test_a_node_that_leaves_blames_nobody() -> None:
    run = Run(20, actors=3)
    run.hand_out()
    run.die(run.slots[1], blame=False)  # had 1 and 4
    run.land(run.slots[0])
    run.land(run.slots[2])
    assert {run.units(run.slots[0])[-1], run.units(run.slots[2])[-1]} == {
        1,
        4,
    }  # what was lost with the node comes next
    assert not any(slot.alone or slot.by_itself() for slot in run.schedule.slots)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_dies_and_freezes_each_unit_counts_once(seed: int) -> None:
    """Random results, deaths (blamed or not), frozen actors and newcomers, until all is done."""
    rng = random.Random(seed)
    count, depth = rng.randint(1, 25), rng.randint(1, 3)
    run = Run(count, actors=rng.randint(1, 4), depth=depth)
    frozen: set[int] = set()
    for _ in range(3000):
        if not run.schedule.open_tasks:
            break
        run.now += rng.expovariate(1.0)
        run.hand_out()
        awake = [slot for slot in run.schedule.slots if id(slot) not in frozen]
        assert all(len(slot.calls) <= depth for slot in run.schedule.slots)
        if not awake or rng.random() < 0.05:
            run.slots.append(run.join())
            continue
        slot, chance = rng.choice(awake), rng.random()
        if chance < 0.02 and len(frozen) < 3 and run.finished():  # before, nothing tells what is slow
            frozen.add(id(slot))
        elif slot.calls and chance < 0.1:
            run.die(slot, blame=rng.random() < 0.5)
        elif slot.calls:
            run.land(slot)
    assert run.schedule.open_tasks == 0
    assert Counter(run.finished()) == Counter(range(count))
    assert all(task.held >= 0 for slot in run.schedule.slots for call in slot.calls if (task := call.task))
    notices = [event for event in run.events if isinstance(event, Notice)]
    assert all(" died " in event.text or "kills its process" in event.text for event in notices)


def test_simulation_of_even_units_is_what_one_computes_by_hand() -> None:
    assert simulate([2.0] * 12, [10] * 12, 3).wall_s == pytest.approx(8.0)
    assert simulate([2.0] * 12, [10] * 12, 3, Costs(load_s=5.0)).wall_s == pytest.approx(13.0)
    slow_driver = simulate([2.0] * 100, [10] * 100, 50, Costs(unit_s=0.5))
    assert slow_driver.wall_s == pytest.approx(52.0, rel=0.02)  # 100 units at two a second, and the last one's end


def test_a_frozen_actor_and_a_slow_one_hold_nobody() -> None:
    """Four actors, 40 units of a second: with one frozen the others do 40 / 3; without copies it would never end."""
    frozen = simulate([1.0] * 40, [10] * 40, 4, speeds=[0.0])
    assert 40 / 3 < frozen.wall_s < 40 / 3 + 2.5
    assert Counter(frozen.done) == Counter(range(40)) and 2 <= frozen.copies <= 4
    slow = simulate([1.0] * 40, [10] * 40, 4, speeds=[0.1])
    alone = simulate([1.0] * 40, [10] * 40, 4, speeds=[0.1], patience=1e9)
    assert slow.wall_s < 40 / 3.1 + 2.5 and alone.wall_s > slow.wall_s + 3


def test_a_calibration_document_that_kills_is_taken_from_all_who_have_it_before_them() -> None:
    """And an actor that was at it meanwhile counts once: the last call of each, empty or not, ends its sample."""
    first, second = task(0).documents
    run = Run(1, actors=0)
    run.schedule = Schedule(map(task, range(1)), 1, depth=2, sample=[first, second])

    def at(slot: Slot) -> list[Document] | None:
        return slot.calls[0].sample

    whole = run.join()
    run.hand_out()
    assert at(whole) == [first, second]
    run.die(whole)
    waits, slow = run.join(), run.join()
    run.hand_out()
    run.land(slow)
    assert (at(waits), at(slow)) == ([first], [second])
    for _ in range(2):
        other = run.join()
        run.hand_out()
        run.land(other)
        assert at(other) == [second]
        run.die(other)
    assert run.schedule.lost == [(second, "killed")]
    run.die(slow)
    assert [one.doc_id for one, _ in run.schedule.lost] == ["d0.1"] and not run.schedule.slots[1:]
    told = [event.text.partition("document")[0] for event in run.events if isinstance(event, Notice)]
    assert told == [
        "an actor died in the calibration sample, whose ",
        "an actor died in ",
        "",
        "another actor died in ",
    ]
    run.land(waits)
    assert at(waits) == [] and not waits.ready and not waits.sample
    run.land(waits)
    late = run.join()
    run.hand_out()
    assert waits.ready and (at(late), len(late.sample)) == ([first], 0)


def test_without_documents_an_actor_still_ends_its_sample() -> None:
    """So that its calibration by no document is published, and everybody takes that."""
    run = Run(1, actors=0)
    run.schedule = Schedule(map(task, range(1)), 1, depth=2, sample=[])
    slot = run.join()
    run.hand_out()
    assert slot.calls[0].sample == [] and not slot.ready
    run.land(slot)
    assert slot.ready and run.units(slot) == [0]


# ---- documents that go one by one


def alone(run: Run, task_of: int) -> Task:
    """The unit's actors die until its documents go one by one; new ones take the places."""
    found = None
    while found is None or not any(call.kind == "document" for slot in run.schedule.slots for call in slot.calls):
        run.hand_out()
        slot = next((s for s in run.schedule.slots if s.calls and s.calls[0].task is not None), None)
        assert slot is not None and slot.calls[0].task is not None
        if slot.calls[0].task.unit.index == task_of and slot.calls[0].kind == "unit":
            found = slot.calls[0].task
            run.die(slot)
            run.join()
        elif slot.calls[0].kind == "unit":
            run.now += 1
            run.land(slot)
    return found


def test_a_document_that_takes_far_longer_than_its_unit_ends_the_wait_when_it_lands() -> None:
    """One actor: a unit takes a second, each document of the bad one six, as when memory is short. It is done once each."""
    run = Run(4, actors=1)
    bad = alone(run, 2)
    calls = 0
    while run.schedule.open_tasks and calls < 20:
        (slot,) = run.schedule.slots
        calls += slot.calls[0].kind == "document"
        for _ in range(6 if slot.calls[0].kind == "document" else 1):
            run.now += 1
            run.hand_out()
        run.land(slot)
    assert calls == len(bad.outcomes) == 2 and sorted(run.finished()) == [0, 1, 2, 3]


@pytest.mark.parametrize("dies", [False, True])
def test_what_an_actor_says_late_is_of_the_document_that_it_was_given(dies: bool) -> None:
    """It freezes at the first document; another does that one and is lost. When it wakes up, or dies of it, nothing is said
    of the second document, and it is given no more before."""
    run = Run(6, actors=2)
    bad = alone(run, 1)
    frozen = next(slot for slot in run.schedule.slots if slot.calls and slot.calls[0].kind == "document")
    other = next(slot for slot in run.schedule.slots if slot is not frozen)
    while not (other.calls and other.calls[0].kind == "document"):
        run.now += 10
        run.hand_out()
        if other.calls and other.calls[0].kind == "unit":
            run.land(other)
    run.land(other)
    assert [document.doc_id for document, _ in bad.outcomes] == ["d1.0"]
    run.die(other, blame=False)
    run.now += 0.1
    run.hand_out()
    assert frozen.alone is None and [call.number for call in frozen.calls] == [0]
    if dies:
        run.die(frozen)
    else:
        run.land(frozen)
    assert len(bad.outcomes) == 1 and not any("kills its process" in str(event) for event in run.events)
    run.join()
    for _ in range(20):
        run.hand_out()
        for slot in [slot for slot in run.schedule.slots if slot.calls]:
            run.land(slot)
    assert [document.doc_id for document, _ in bad.outcomes] == ["d1.0", "d1.1"] and run.schedule.open_tasks == 0
    assert not any(isinstance(outcome, Death) for _, outcome in bad.outcomes)


def test_a_unit_of_killers_alone_is_decided_one_by_one() -> None:
    """As many as the quarantine allows by default; then it is not the documents."""
    run = Run(0, actors=0)
    run.schedule = Schedule(iter([task(0, documents=20), task(1, documents=20)]), 2, depth=2)
    run.join()
    for _ in range(2 + 20):
        run.hand_out()
        (slot,) = run.schedule.slots
        run.die(slot)
        run.join()
    (done,) = [event for event in run.events if isinstance(event, Salvaged)]
    assert len(done.outcomes) == 20 and all(isinstance(outcome, Death) for _, outcome in done.outcomes)
    with pytest.raises(WorkError, match="29 actors died without one unit or document finished"):
        for _ in range(20):
            run.hand_out()
            (slot,) = run.schedule.slots
            run.die(slot)
            run.join()


def test_an_actor_that_dies_behind_its_sample_is_replaced() -> None:
    run = Run(1, actors=0)
    run.schedule = Schedule(map(task, range(1)), 1, depth=2, sample=[])
    for _ in range(2):
        slot = run.join()
        run.hand_out()
        run.die(slot)
    with pytest.raises(WorkError, match="3 actors in a row died while loading"):
        slot = run.join()
        run.hand_out()
        run.die(slot)
