"""The command `score` as it is, with a worker that notes each execution: what the kill tests start, kill and start again.

    python -m tests.chaos.driver RUN.toml --log FILE [--address HOST:PORT] [--pause SECONDS] [--gate FILE]

Lines `WHAT UNIT PID RAYLET DRIVER TIME` go into the log: `begin` when the command starts (unit -1), `start` before a unit is
scored, `end` when it is published. RAYLET, the actor's parent when it was made, is its node. Each line is one write to a file
opened with O_APPEND, so that lines of several processes never mix, and what is written survives its writer. With a gate, a
unit that has started goes on once that file exists: so several commands are at work at one time.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import jobs.run.job
from engine.corpus.document import Document, Unit
from engine.dataset.unit_result import UnitResult
from jobs.cli import main
from jobs.pool.events import Report
from jobs.pool.unit_worker import UnitWorker
from schemas.manifest import Plan
from schemas.runfile import RunConfig


def note(log: str, what: str, unit: int, raylet: int, driver: int) -> None:
    """One line about this process."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, f"{what} {unit} {os.getpid()} {raylet} {driver} {time.time():.6f}\n".encode())
    finally:
        os.close(handle)


class ObservedWorker(UnitWorker):
    """The real worker. Ray ships this class by value, since it lives in the script that was started. What is noted is real
    work: a unit that is found to be sealed is no execution."""

    def __init__(
        self,
        log: str,
        driver: int,
        pause_s: float,
        gate: str,
        run: RunConfig,
        plan: Plan,
        sample: Sequence[Document] | None = None,
        *,
        report: Report,
    ) -> None:
        super().__init__(run, plan, sample, report=report)
        self._note = partial(note, log, raylet=os.getppid(), driver=driver)
        self._pause_s, self._gate = pause_s, gate
        self._at = (
            threading.local()
        )  # a unit may be published while the next one is scored, each on a thread of its own
        self._real_score = self._scorer.score_unit
        self._scorer.score_unit = self._score_unit  # type: ignore[method-assign]

    def score(self, unit: Unit, documents: Sequence[Document]) -> dict[str, float]:
        self._at.unit, self._at.works = unit.index, False
        stats = super().score(unit, documents)
        if self._at.works:
            self._note("end", unit.index)
        return stats

    def _score_unit(self, documents: Sequence[Document], report: Callable[[int, int], None]) -> UnitResult:
        self._at.works = True
        self._note("start", self._at.unit)
        while self._gate and not os.path.exists(self._gate):
            time.sleep(0.05)
        time.sleep(self._pause_s)  # a teacher that takes its time: random moments lie inside units
        return self._real_score(documents, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run_file")
    parser.add_argument("--log", required=True)
    parser.add_argument("--address", default="local")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--gate", default="")
    options = parser.parse_args()
    note(options.log, "begin", -1, 0, os.getpid())
    observed = partial(ObservedWorker, options.log, os.getpid(), options.pause, options.gate)
    jobs.run.job.UnitWorker = observed  # type: ignore[assignment]
    main(["score", options.run_file, "--address", options.address])
