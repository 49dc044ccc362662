"""What the pool asks of a worker, and what it tells its user. Plain values: no Ray, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from engine.corpus import Document, Unit


class Worker(Protocol):
    """What runs inside an actor. Built there by a picklable callable; a TargetsmithError from it ends the run."""

    def score(self, unit: Unit, documents: list[Document]) -> dict[str, float]:
        """Score and publish one unit; returns its sums."""
        ...

    def score_alone(self, document: Document) -> Any:
        """Score one document; returns what `Salvaged` hands on, and publishes nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Ready:
    """An actor has loaded its worker and takes work."""


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
