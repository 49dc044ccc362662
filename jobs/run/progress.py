"""How far a run is: a live line in a terminal, lines with the time in a log file. Nothing is silent for more than five seconds.

    12/40 units · 2,980 documents · 41,200 tokens/s · 3 quarantined · 0:01:12 left

Documents and tokens (the teacher's, of the corpus) are counted within units, too, as actors say what they are at. The rate and
the time left are counted from the moment when the first actor is ready.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from jobs.pool.events import Step
from schemas.counts import counted
from schemas.redact import without_secrets

LOG_EVERY_S = 5.0
_LIVE_EVERY_S = 0.5
_BAR = 20  # characters


@dataclass(slots=True)
class Counts:
    """What is done so far in this run of the command (not by earlier ones)."""

    units_total: int = 0  # all units of the run; 0: not known yet
    units_before: int = 0  # finished by earlier commands
    documents_left: int = 0  # of the units that are not finished yet when this command begins
    units: int = 0
    documents: int = 0
    quarantined: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    ready: float | None = None  # when the first actor took work
    steps: tuple[Step, ...] = ()  # what actors are at
    done: set[int] = field(default_factory=set)  # units
    actors: int = 0  # that have taken work
    cold_s: float = 0.0  # of as many units, the first that were done: what is made once is in them
    cold_tokens: int = 0
    warm_s: float = 0.0  # seconds of actors at all other units
    warm_tokens: int = 0

    def add(self, unit: int, stats: dict[str, float], seconds: float = 0.0) -> None:
        """One more unit, with its sums as the scorer counted them, and the seconds that an actor was at it."""
        tokens = int(stats.get("teacher_tokens", 0))  # absent where no document of the unit is good
        if self.units < self.actors:
            self.cold_s, self.cold_tokens = self.cold_s + seconds, self.cold_tokens + tokens
        else:
            self.warm_s, self.warm_tokens = self.warm_s + seconds, self.warm_tokens + tokens
        self.done.add(unit)
        self.units += 1
        self.documents += int(stats["documents"])
        self.quarantined += int(stats["quarantined"])
        self.tokens += tokens

    def actor_is_ready(self) -> None:
        """One more actor takes work; with the first one, work begins."""
        self.actors += 1
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
    def within(self) -> tuple[int, int]:
        """(documents, tokens) of units that are not done yet. Of copies of a unit the one that is further counts."""
        furthest: dict[int, tuple[int, int]] = {}
        for step in self.steps:
            if step.unit is not None and step.unit not in self.done:
                furthest[step.unit] = max(furthest.get(step.unit, (0, 0)), (step.done, step.tokens))
        return sum(documents for documents, _ in furthest.values()), sum(tokens for _, tokens in furthest.values())

    @property
    def tokens_per_s(self) -> float:
        return (self.tokens + self.within[1]) / self.working_seconds if self.working_seconds else 0.0

    @property
    def share(self) -> float:
        """Of what this command has to do, by documents."""
        return (self.documents + self.within[0]) / self.documents_left if self.documents_left else 0.0

    def line(self) -> str:
        """The whole state in one line."""
        if not self.units_total:
            return f"{clock(self.seconds)} so far"
        if self.ready is None:
            return f"{self._preparing()} · {clock(self.seconds)} so far"
        done = self.units_before + self.units
        documents = self.documents + self.within[0]
        if done == self.units_total:
            end = clock(self.seconds)
        elif self.share:
            end = f"{clock(self.working_seconds * (1 / self.share - 1))} left"
        else:
            end = f"waiting for the first documents, {clock(self.working_seconds)} so far"
        return (
            f"{done}/{counted(self.units_total, 'unit')} · {counted(documents, 'document')} · "
            f"{self.tokens_per_s:,.0f} tokens/s · "
            f"{self.quarantined} quarantined · {end}"
        )

    def as_json(self) -> dict[str, Any]:
        """The same as values. seconds_left: None where nothing is known yet."""
        return {
            "units": self.units_before + self.units,
            "units_total": self.units_total,
            "documents": self.documents + self.within[0],
            "quarantined": self.quarantined,
            "teacher_tokens": self.tokens + self.within[1],
            "tokens_per_s": round(self.tokens_per_s, 1),
            "seconds": round(self.seconds, 1),
            "seconds_left": round(self.working_seconds * (1 / self.share - 1), 1) if self.share else None,
        }

    def _preparing(self) -> str:
        """What actors do before the first is ready: that of most of them, with a bar where it is counted."""
        if not self.steps:
            return "waiting for the first actor"
        what, actors = Counter(step.what for step in self.steps).most_common(1)[0]
        least = min((step for step in self.steps if step.what == what), key=lambda step: step.done)
        told = f"{counted(actors, 'actor')}: {what}" if len(self.steps) > 1 else what
        if not least.total:
            return told
        full = _BAR * least.done // least.total
        return f"{told} [{'#' * full}{'.' * (_BAR - full)}] {least.done:,}/{least.total:,}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read along has gone; the run goes on."""
        self.quiet = True


class Display:
    """Use as a context; call `update` when something has happened. Writes to `stream` (standard error in the commands).

    A thread of its own writes while the command is busy with one thing: `stepping`, or a call that takes its time.
    """

    def __init__(self, counts: Counts, stream: TextIO, *, every_s: float = LOG_EVERY_S, as_json: bool = False) -> None:
        """as_json: an object a line, in a terminal, too."""
        self._counts, self._every_s, self._as_json = counts, every_s, as_json
        self._console = _Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._last_line_at = time.monotonic()
        self._doing = ""
        self._doing_since = 0.0
        self._lock, self._over = threading.RLock(), threading.Event()
        self._beat: threading.Thread | None = None
        if self._console.is_terminal and not as_json:
            columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}", markup=False))
            self._live = Progress(*columns, console=self._console, transient=True)
            self._live.add_task(self._line(), total=1.0)

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        self._beat = threading.Thread(target=self._keep_telling, name="progress", daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._beat is not None:
            self._beat.join()
        if self._live:
            self._live.stop()

    @contextmanager
    def stepping(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """While the command itself does this, and nothing else is going on. Gives a function to be told (done, all)."""
        self.say(what)

        def tell(done: int, total: int) -> None:
            with self._lock:
                self._doing = f"{what} · {done} of {total}"

        with self._lock:
            self._doing, self._doing_since = what, time.monotonic()
        try:
            yield tell
        finally:
            with self._lock:
                self._doing = ""

    def update(self, steps: Sequence[Step] | None = None, *, unit_done: bool = False) -> None:
        """Show the counts: at once in a terminal; in a log behind the last unit, else every few seconds. steps: what actors are
        at now."""
        with self._lock:
            if steps is not None:
                self._counts.steps = tuple(steps)
            counts = self._counts
            last = unit_done and counts.units_before + counts.units == counts.units_total
            self._tell(now=last)

    def say(self, text: str) -> None:
        """One line that stays, without secrets: above the live line, or with the time in a log."""
        with self._lock:
            if self._as_json:
                self._write_json({"message": without_secrets(text)})
                return
            self._last_line_at = time.monotonic()
            stamp = "" if self._live else time.strftime("%Y-%m-%d %H:%M:%S  ")
            self._console.print(f"{stamp}{without_secrets(text)}", markup=False)

    def _write_json(self, told: dict[str, Any]) -> None:
        self._last_line_at = time.monotonic()
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._console.print(json.dumps({"time": now, **told}, ensure_ascii=False), markup=False)

    def _line(self) -> str:
        if self._doing:
            return f"{self._doing} · {clock(time.monotonic() - self._doing_since)} so far"
        return self._counts.line()

    def _tell(self, *, now: bool) -> None:
        if self._live:
            self._live.update(self._live.tasks[0].id, description=self._line(), completed=self._counts.share)
        elif now or time.monotonic() - self._last_line_at >= self._every_s:
            if self._as_json:
                self._write_json({"doing": self._doing or None, "progress": self._counts.as_json()})
            else:
                self.say(self._line())

    def _keep_telling(self) -> None:
        while not self._over.wait(min(_LIVE_EVERY_S, self._every_s / 4)):
            with self._lock:
                self._tell(now=False)
