"""What every actor is at: asked now and then beside their work, never waited for.

The calls run on a thread of their own in the actor (Ray's concurrency groups), so that they are answered while a unit is scored.
One call at most is on its way to an actor: one that is frozen, or far away, costs nothing but its own answer. Of an actor
only the last answer is kept, so the driver's memory does not grow with the work.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import exceptions as failures

from jobs.pool.events import Step
from jobs.pool.schedule import Slot

ASK_EVERY_S = 1.0
MOST_ASKED_PER_S = 100  # of a large cluster each actor is asked more rarely


class StepBoard:
    """The last answers. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._asked: dict[Any, Slot] = {}  # call on its way -> its actor
        self._asked_at: dict[int, float] = {}  # by id of the slot, of those that are alive
        self._steps: dict[int, Step] = {}

    def ask(self, slots: list[Slot], now: float) -> None:
        """Take the answers that are there, and ask the actors whose turn it is. Raises nothing: the dead do not answer."""
        self._take()
        alive, waiting = {id(slot) for slot in slots}, {id(slot) for slot in self._asked.values()}
        self._asked_at = {key: at for key, at in self._asked_at.items() if key in alive}
        self._steps = {key: step for key, step in self._steps.items() if key in alive}
        every = max(ASK_EVERY_S, len(slots) / MOST_ASKED_PER_S)
        for slot in slots:
            if slot.placed and id(slot) not in waiting and now - self._asked_at.get(id(slot), -every) >= every:
                self._asked[slot.handle.step.remote()] = slot
                self._asked_at[id(slot)] = now

    def steps(self) -> tuple[Step, ...]:
        """What the actors are at that have said it."""
        return tuple(self._steps.values())

    def _take(self) -> None:
        if not self._asked:
            return
        for ref in ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[0]:
            slot = self._asked.pop(ref)
            try:
                step = ray.get(ref)
            except failures.RayError:  # its death is noticed by the call that it was working on
                continue
            if step is not None:
                self._steps[id(slot)] = step
