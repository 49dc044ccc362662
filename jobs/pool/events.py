"""The values of the pool: what it asks of a worker, and the events that it tells the main job. No Ray, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.corpus.document import Document, Unit


@dataclass(frozen=True, slots=True)
class Step:
    """What a worker is at, as it says itself. done, total: documents of the step, or whatever it counts; 0, 0 where nothing is
    counted. unit: the one that it scores, None for other steps; tokens: the teacher's, of its documents done."""

    what: str
    done: int = 0
    total: int = 0
    unit: int | None = None
    tokens: int = 0


Report = Callable[[Step], None]
"""How a worker says what it is at; cheap, and from any thread. What was said before is forgotten."""


def silent(step: Step) -> None:
    """Nobody listens."""


class Worker(Protocol):
    """What runs inside an actor. Built there by a `MakeWorker`; a TargetsmithError from it ends the run.

    note: one line that a person should read once the worker is loaded; empty for nothing.
    """

    note: str

    def calibrate(self, documents: list[Document], last: bool, lost: list[tuple[Document, str]]) -> None:
        """What comes before the first unit: some documents of the calibration sample, or (last) the rest of them. lost: those
        that kill their process, and how. Not called where the pool has no sample."""
        ...

    def score(self, unit: Unit, documents: Sequence[Document]) -> dict[str, float]:
        """Score and publish one unit; returns its sums. Called again, on another thread, before it has returned: the next
        unit is read, and scored while this one is published."""
        ...

    def score_alone(self, document: Document) -> Any:
        """Score one document; returns what `Salvaged` hands on, and publishes nothing."""
        ...


class MakeWorker(Protocol):
    """Builds a worker. It is called inside each actor, and must pickle."""

    def __call__(self, *, report: Report) -> Worker: ...


@dataclass(frozen=True, slots=True)
class Ready:
    """An actor has loaded its worker and takes work. `note`: the worker's."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A unit is scored and published. seconds: that its actor took for it, as the pool saw it."""

    unit: Unit
    stats: dict[str, float]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Death:
    """Stands for the result of a document that killed its process."""

    how: str


@dataclass(frozen=True, slots=True)
class Salvaged:
    """A unit that kept killing its actors, by documents: what `score_alone` gave, or Death. Not yet published."""

    unit: Unit
    outcomes: list[tuple[Document, Any]]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should read now; the work goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment has passed; lets a display move on. steps: what each actor is at, of those that have said it yet."""

    steps: tuple[Step, ...] = ()


Event = Ready | Done | Salvaged | Notice | Tick
