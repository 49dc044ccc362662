"""What `targetsmith verify` has found: findings, each with its place, and the report of a whole output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that docs/format.md does not allow. file: relative to the output; document: its doc_id; count: places like
    the one that is named, in this file."""

    file: str
    found: str
    wanted: str
    document: str | None = None
    position: int | None = None
    column: str | None = None
    count: int = 1

    def __str__(self) -> str:
        place = [self.file]
        if self.document is not None:
            place.append(f"document {self.document!r}")
        if self.position is not None:
            place.append(f"position {self.position}")
        if self.column is not None:
            place.append(self.column)
        more = f" (and {self.count - 1:,} more such places in the file)" if self.count > 1 else ""
        return printable(f"{', '.join(place)}: found {self.found}; wanted {self.wanted}{more}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, every key always there."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Report:
    """What was looked at, and what is wrong with it.

    finished: there is a manifest. positions, bytes: of the files that were read. notes: what a person should know and
    that is no fault. seconds: wall time.
    """

    out: str
    fingerprint: str = ""
    finished: bool = False
    units: int = 0
    sealed: int = 0
    files: int = 0
    documents: int = 0
    quarantined: int = 0
    positions: int = 0
    bytes: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing is wrong with what is there; the run may be unfinished."""
        return not self.findings

    def add(self, file: str, found: str, wanted: str, **place: Any) -> None:
        """One more finding."""
        self.findings.append(Finding(file, found, wanted, **place))

    def extend(self, findings: Iterable[Finding]) -> None:
        """More findings."""
        self.findings.extend(findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `sound` first."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "findings"}
        return {"sound": self.sound, **values, "findings": [finding.to_json() for finding in self.findings]}


def short(value: object, limit: int = 200) -> str:
    """A value for a message: its first line, not too long."""
    text = str(value).strip().partition("\n")[0]
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def printable(text: str) -> str:
    """One line that changes no terminal: control characters, and bytes that are no text, are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
