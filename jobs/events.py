"""The values of the pool: what it asks of a worker, what it tells its user, what it keeps. No Ray, no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from engine.corpus import Document, Unit


class Worker(Protocol):
    """What runs inside an actor. Built there by a picklable callable; a TargetsmithError from it ends the run.

    note: one line that a person should read once the worker is loaded; empty for nothing.
    """

    note: str

    def score(self, unit: Unit, documents: list[Document]) -> dict[str, float]:
        """Score and publish one unit; returns its sums."""
        ...

    def score_alone(self, document: Document) -> Any:
        """Score one document; returns what `Salvaged` hands on, and publishes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Ready:
    """An actor has loaded its worker and takes work. `note`: the worker's."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A unit is scored and published."""

    unit: Unit
    stats: dict[str, float]


@dataclass(frozen=True, slots=True)
class Died:
    """Stands for the result of a document that killed its process."""

    how: str


@dataclass(frozen=True, slots=True)
class Salvaged:
    """A unit that kept killing its actors, by documents: what `score_alone` gave, or Died. Not yet published."""

    unit: Unit
    outcomes: list[tuple[Document, Any]]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should read now; the work goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened for a moment; lets a display move on."""


Event = Ready | Done | Salvaged | Notice | Tick


# ---- what the pool keeps


@dataclass(slots=True)
class Task:
    """A unit on its way through the pool."""

    unit: Unit
    documents: list[Document]
    deaths: int = 0
    outcomes: list[tuple[Document, Any]] = field(default_factory=list)  # when scored one by one


@dataclass(slots=True)
class Call:
    """A call that an actor was given; `ref` is Ray's promise of the result."""

    kind: Literal["place", "start", "unit", "document"]
    ref: Any
    task: Task | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """One actor. `calls` are in the order in which the actor runs them."""

    handle: Any
    node_id: str | None
    calls: deque[Call]
    placed: bool = False
    ready: bool = False
    alone: Task | None = None  # scores this task document by document, and nothing else

    def has_suspect(self) -> bool:
        """Whether a unit that was blamed for a death is in flight here."""
        return any(call.task is not None and call.task.deaths > 0 for call in self.calls)
