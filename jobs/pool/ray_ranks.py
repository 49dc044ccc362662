"""Processes that share one teacher, as actors of Ray: rank 0 is the actor of the pool, the others follow it.

What they do: engine/teacher/ranks.py. A placement group reserves a GPU for each of them, all on one node, or none. They live and
die together: a rank that dies takes rank 0 with it, whose death the pool knows how to handle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import exceptions as failures
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from engine.teacher.rank import Rank, join
from schemas.errors import TargetsmithError


class _Follower:
    """An actor that runs what rank 0 runs."""

    def follow(self, rank: tuple[int, int, str], work: Callable[[], None]) -> None:
        join(rank_of(rank))
        work()


def rank_of(rank: tuple[int, int, str]) -> Rank:
    """(number, count, name of the group) -> a rank, with the file by which the ranks of a node find each other."""
    number, count, name = rank
    return Rank(number, count, str(Path(tempfile.gettempdir()) / f"targetsmith-ranks-{name}"))


class RankGroup:
    """The ranks of one teacher. The pool makes rank 0 with `options`, and calls `gone` now and then."""

    def __init__(self, count: int, cpus: float, work: Any, address: str | None) -> None:
        """count: of ranks, each with a GPU; cpus: of rank 0; work: what the others do, put into Ray's store; address: of the node
        where they are to be, None for any."""
        here = {} if address is None else {f"node:{address}": 0.001}
        bundles = [{"GPU": 1.0, **({"CPU": cpus} if cpus and not number else {}), **here} for number in range(count)]
        self._place, self._name, self._count = placement_group(bundles, strategy="STRICT_PACK"), uuid4().hex, count
        follower: Any = ray.remote(_Follower)
        self._others = [
            follower.options(max_restarts=0, max_task_retries=0, **self.options(number, 0)).remote()
            for number in range(1, count)
        ]
        self._ends = [other.follow.remote(self.rank(at + 1), work) for at, other in enumerate(self._others)]

    def rank(self, number: int) -> tuple[int, int, str]:
        return number, self._count, self._name

    def options(self, number: int, cpus: float) -> dict[str, Any]:
        """What an actor needs to take the place of a rank."""
        place = PlacementGroupSchedulingStrategy(self._place, placement_group_bundle_index=number)
        return {"num_cpus": cpus, "num_gpus": 1, "scheduling_strategy": place}

    def gone(self) -> str:
        """How one of the others failed; "" while all follow, and where they left because rank 0 is gone. Raises a
        TargetsmithError that one raised, as loading does."""
        for ended in ray.wait(self._ends, num_returns=len(self._ends), timeout=0)[0] if self._ends else []:
            try:
                ray.get(ended)
            except failures.RayTaskError as error:
                if isinstance(error.cause, TargetsmithError):
                    raise error.cause from None
                return str(error.cause)
            except failures.RayError as error:
                return " ".join(str(error).split())
        return ""

    def end(self) -> None:
        """Kill the others, and give their places back."""
        for other in self._others:
            ray.kill(other)
        remove_placement_group(self._place)
