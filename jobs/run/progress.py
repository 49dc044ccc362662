"""How far a run is: a live line in a terminal, plain timestamped lines in a log file.

    12/40 units · 2,980 documents · 41,200 tokens/s · 3 quarantined · 0:01:12 left

Tokens are the teacher's own tokens of the corpus; the rate counts from the moment when the first actor is ready.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from schemas.redact import without_secrets

LOG_EVERY_S = 10.0


@dataclass(slots=True)
class Counts:
    """What is done so far in this run of the command (not by earlier ones)."""

    units_total: int  # all units of the run
    units_before: int  # finished by earlier commands
    units: int = 0
    documents: int = 0
    quarantined: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    ready: float | None = None  # when the first actor took work

    def add(self, stats: dict[str, float]) -> None:
        """One more unit, with its sums as the scorer counted them."""
        self.units += 1
        self.documents += int(stats["documents"])
        self.quarantined += int(stats["quarantined"])
        self.tokens += int(stats.get("teacher_tokens", 0))  # absent where no document of the unit is good

    def actor_is_ready(self) -> None:
        """Work begins (the first call counts)."""
        self.ready = self.ready or time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return time.monotonic() - self.started

    @property
    def working_seconds(self) -> float:
        """Since the first actor was ready."""
        return time.monotonic() - self.ready if self.ready is not None else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.working_seconds if self.working_seconds else 0.0

    def line(self) -> str:
        """The whole state in one line."""
        done = self.units_before + self.units
        left = self.units_total - done
        eta = f"{clock(self.working_seconds / self.units * left)} left" if self.units else "waiting for the first unit"
        return (
            f"{done}/{self.units_total} units · {self.documents:,} documents · {self.tokens_per_s:,.0f} tokens/s · "
            f"{self.quarantined} quarantined · {eta if left else clock(self.seconds)}"
        )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read along has gone; the run goes on."""
        self.quiet = True


class Display:
    """Use as a context; call `update` often. Writes to `stream` (standard error in the commands)."""

    def __init__(self, counts: Counts, stream: TextIO) -> None:
        self._counts = counts
        self._console = _Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._last_line_at = time.monotonic()
        if self._console.is_terminal:
            columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
            self._live = Progress(*columns, console=self._console, transient=True)
            self._live.add_task(counts.line(), total=counts.units_total, completed=counts.units_before)

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, *, unit_done: bool = False) -> None:
        """Show the counts: at once in a terminal; in a log after a unit or a long wait, at most every ten seconds."""
        if self._live:
            task = self._live.tasks[0].id
            done = self._counts.units_before + self._counts.units
            self._live.update(task, description=self._counts.line(), completed=done)
            return
        last = unit_done and self._counts.units_before + self._counts.units == self._counts.units_total
        if last or time.monotonic() - self._last_line_at >= LOG_EVERY_S:
            self._last_line_at = time.monotonic()
            self.say(self._counts.line())

    def say(self, text: str) -> None:
        """One line that stays, without secrets: above the live line, or with the time in a log."""
        stamp = "" if self._live else time.strftime("%Y-%m-%d %H:%M:%S  ")
        self._console.print(f"{stamp}{without_secrets(text)}", markup=False)
