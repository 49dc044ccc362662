"""What must hold after kills: every document once, the files of an undisturbed run, and no work done twice without cause.

`Log` reads what tests/chaos/driver.py noted; `Watcher` reads an output while others write it and are killed.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
from datasets import load_dataset

from engine.dataset.layout import load_manifest
from engine.reader.targets import Targets

PRODUCTS = ("teacher", "student/bl")


# ---- the output


def files(out: Path) -> dict[str, str]:
    """sha256 of everything that a run leaves: shards, seals, quarantine, plan, manifest, card. Not of staging."""
    found = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in found.items()
        if not name.startswith("_engine/tmp/")
    }


def accounts(out: Path, documents: int) -> tuple[int, int]:
    """(missing, duplicated) documents over all products, counted in the files, not in the manifest."""
    missing = duplicated = 0
    listed = [json.loads(line) for path in (out / "_engine/quarantine").glob("*.jsonl") for line in path.open()]
    for product in PRODUCTS:
        rows = pl.scan_parquet(out / "data" / product / "*.parquet").select("doc_row").collect()["doc_row"].to_list()
        times = Counter(rows) + Counter(record["doc_row"] for record in listed)
        missing += sum(times[row] == 0 for row in range(documents))
        duplicated += sum(n - 1 for n in times.values()) + sum(row >= documents for row in times)
    return missing, duplicated


def check_output(out: Path, reference: Path, documents: int) -> None:
    """AssertionError unless the run is finished and the same as an undisturbed one, to the byte."""
    assert load_manifest(out).documents == documents
    assert accounts(out, documents) == (0, 0)
    assert files(out) == files(reference)
    staged = [path.name for path in (out / "_engine/tmp").glob("*")]
    assert all(name.endswith(".part") for name in staged), staged  # no reader picks these up


# ---- the log


@dataclass(frozen=True, slots=True)
class Execution:
    """A unit scored by one actor. end: None when it died in it."""

    unit: int
    pid: int
    raylet: int
    driver: int
    start: float
    end: float | None


class Log:
    """All that is in the log by now. begun: driver -> when its command began."""

    def __init__(self, path: Path) -> None:
        self.begun: dict[int, float] = {}
        ends: dict[tuple[int, int], list[float]] = defaultdict(list)
        starts: list[tuple[int, int, int, int, float]] = []
        for line in path.read_text().splitlines() if path.exists() else ():
            what, *numbers, at = line.split()
            unit, pid, raylet, driver = map(int, numbers)
            if what == "begin":
                self.begun[driver] = float(at)
            elif what == "start":
                starts.append((unit, pid, raylet, driver, float(at)))
            else:
                ends[unit, pid].append(float(at))
        self.executions = [
            Execution(*start, min((at for at in ends[start[0], start[1]] if at >= start[4]), default=None))
            for start in starts
        ]

    def running(self) -> dict[int, Execution]:
        """pid -> what that actor is at, as far as the log knows: the dead are in it, too."""
        return {one.pid: one for one in self.executions if one.end is None}

    def ended(self) -> int:
        return sum(one.end is not None for one in self.executions)


@dataclass(frozen=True, slots=True)
class Tally:
    """Executions of a log, and why there are more than units. faults: what nothing explains; must be empty."""

    units: int
    executions: int
    redone: dict[int, list[int]]  # pid of an actor that was lost -> units that another had to do again
    copies: int  # of units that were still in other hands when all the rest had been handed out
    faults: list[str]


def tally(log: Log, units: int, lost: Collection[int], outlived: Collection[int] = (), in_hand: int = 2) -> Tally:
    """Explain every execution of a unit beside its first.

    lost: pids of actors that were killed, or whose driver was; each excuses the unit that it scored, and the one before where
    that was still being published (neither has ended). outlived: pids of actors whose node was
    frozen or killed, while they went on for a moment or for long; each excuses the `in_hand` units that it had been given.
    Two drivers at one time know nothing of each other: their executions are compared only where one began after the other.
    """

    def excused(last: Execution) -> int:
        if last.pid in outlived:
            return in_hand
        return (2 if last.end is None else 1) if last.pid in lost else 0

    redone: dict[int, list[int]] = defaultdict(list)
    copies, faults = 0, []
    seen: list[Execution] = []
    for one in sorted(log.executions, key=lambda execution: execution.start):
        began = log.begun[one.driver]
        past = [other for other in seen if other.driver == one.driver or (other.end or other.start) < began]
        own = {other.unit for other in seen if other.driver == one.driver}
        before = [other for other in past if other.unit == one.unit]
        known = {other.unit for other in seen if other.end is not None and other.end < began}
        tail = units - len(known | own) <= 2 * in_hand  # no more units than actors may hold
        seen.append(one)
        if not before:
            continue
        last = before[-1]
        if last.driver != one.driver and last.end is not None:
            faults.append(f"unit {one.unit} was published before driver {one.driver} began, and scored again")
        elif last.driver != one.driver and one.unit in redone[last.pid]:
            continue  # each of two commands at one time does it again
        elif len(redone[last.pid]) < excused(last):
            redone[last.pid].append(one.unit)
        elif tail and last.driver == one.driver:
            copies += 1
        else:
            faults.append(f"unit {one.unit} was scored by {last.pid} and again by {one.pid}; {redone[last.pid]} before")
    faults += [f"unit {unit} was never scored" for unit in set(range(units)) - {one.unit for one in log.executions}]
    return Tally(units, len(log.executions), {pid: again for pid, again in redone.items() if again}, copies, faults)


# ---- readers at work


class Watcher:
    """Reads an output again and again in a thread, as four kinds of readers do. Any error, any document twice is kept."""

    def __init__(self, out: Path, documents: int) -> None:
        self.reads, self.most, self.errors = 0, 0, []
        self._out, self._documents, self._stop = out, documents, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self._stop.set()
        self._thread.join(timeout=120)
        return False

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            if not list((self._out / "_engine/shards").glob("*.json")):
                continue
            try:
                for how, rows in self._read():
                    if len(rows) != len(set(rows)) or not set(rows) <= set(range(self._documents)):
                        self.errors.append(f"{how}: {sorted(rows)}")
                    self.most = max(self.most, len(rows))
                self.reads += 1
            except Exception as error:  # the very thing that must not happen
                self.errors.append(f"{type(error).__name__}: {error}")

    def _read(self) -> Iterator[tuple[str, list[int]]]:
        shards = str(self._out / "data" / PRODUCTS[0] / "*.parquet")
        yield "polars", pl.scan_parquet(shards).select("doc_row").collect()["doc_row"].to_list()
        if self.reads % 10 == 0:  # half a second each, taken from those that are watched
            stream = load_dataset("parquet", data_files=shards, split="train", streaming=True)
            yield "datasets", [record["doc_row"] for record in stream]
        for product in PRODUCTS:
            targets = Targets(self._out, product, allow_partial=True, verify=True)
            yield product, [document.doc_row for document in targets.documents()]


def wait_for(what: str, true: object, timeout_s: float = 240.0) -> None:
    """Poll until `true()`; AssertionError with `what` when that takes too long even for a slow machine."""
    assert callable(true)
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)
