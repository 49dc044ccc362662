"""A run of the pool in simulated time: the real policy (pool/schedule.py), actors that only have speeds, a driver that has costs.

The driver is one thread, as the real one: while it reads a unit or takes a result, nobody else is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.corpus.document import Unit
from jobs.pool.ray_pool import POLL_S
from jobs.pool.schedule import PATIENCE, Call, Schedule, Slot, Task


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds. unit_s: the driver reads a unit, hands it out and takes its result. round_s: it looks at one actor once."""

    load_s: float = 0.0
    unit_s: float = 0.0
    round_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """wall_s: until the last unit is done, from the moment when actors are started. copies: units handed out once more."""

    wall_s: float
    copies: int
    done: list[int]


def simulate(
    seconds: Sequence[float],
    sizes: Sequence[int],
    actors: int,
    costs: Costs = Costs(),
    *,
    speeds: Sequence[float] = (),
    depth: int = 2,
    patience: float = PATIENCE,
) -> Outcome:
    """seconds [U], sizes [U]: what each unit takes at speed 1, and its characters. speeds: of the first actors, the others
    have 1; 0 is frozen."""
    schedule = Schedule(_tasks(sizes), len(seconds), depth, patience)
    speed = {i: speeds[i] if i < len(speeds) else 1.0 for i in range(actors)}
    free = dict.fromkeys(range(actors), costs.load_s)  # when an actor has done all that it was given
    for i in range(actors):
        slot = Slot(i)
        slot.calls.append(Call("start", ref=costs.load_s))
        schedule.join(slot, 0.0)
    now, copies, done = 0.0, 0, []
    while schedule.open_tasks:
        now += costs.round_s * actors
        for slot, call in schedule.hand_out(now):
            assert call.task is not None
            now += costs.unit_s
            copies += call.copy
            takes = seconds[call.task.unit.index] / speed[slot.handle] if speed[slot.handle] else float("inf")
            free[slot.handle] = call.ref = max(free[slot.handle], now) + takes
        now = max(now, min(now + POLL_S, min(slot.calls[0].ref for slot in schedule.slots if slot.calls)))
        for slot in [slot for slot in schedule.slots if slot.calls and slot.calls[0].ref <= now]:
            task = slot.calls[0].task
            if task is not None and not task.done:
                done.append(task.unit.index)
            schedule.landed(slot, None, now)
    return Outcome(now, copies, done)


def _tasks(sizes: Sequence[int]):
    for index, size in enumerate(sizes):
        task = Task(Unit(index, 0, index, 1, index), [])
        task.size = size
        yield task
