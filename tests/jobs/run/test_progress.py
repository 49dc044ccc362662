"""What a person sees of a run: counts within units, the time left from the first group on, never silence."""

from __future__ import annotations

import io
import json
import re
import time

import pytest

from jobs.pool.events import Step
from jobs.run import progress
from jobs.run.progress import Counts, Display


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def counts_at(clock: list[float], *, before: int = 0, left: int = 40) -> Counts:
    return Counts(4, before, left, started=clock[0])


def test_documents_and_tokens_count_within_units(clock: list[float]) -> None:
    counts = counts_at(clock)
    counts.actor_is_ready()
    clock[0] += 10
    assert counts.line() == (
        "0/4 units · 0 documents · 0 tokens/s · 0 quarantined · waiting for the first documents, 0:00:10 so far"
    )
    counts.steps = (Step("scoring", 4, 10, 0, 800), Step("scoring", 1, 10, 1, 200))
    line = counts.line()
    assert line == "0/4 units · 5 documents · 100 tokens/s · 0 quarantined · 0:01:10 left"  # 35 of 40 at 0.5/s
    counts.add(0, {"documents": 10, "quarantined": 1, "teacher_tokens": 2000})
    clock[0] += 10
    # the actor of unit 0 has not said anything new, and a copy of unit 1 is further than the first
    counts.steps = (*counts.steps, Step("scoring", 3, 10, 1, 600))
    assert counts.line() == "1/4 units · 13 documents · 130 tokens/s · 1 quarantined · 0:00:42 left"


def test_units_of_earlier_commands_are_not_counted_into_the_time_left(clock: list[float]) -> None:
    counts = counts_at(clock, before=3, left=10)
    counts.actor_is_ready()
    clock[0] += 6
    counts.steps = (Step("scoring", 5, 10, 3, 50),)
    assert counts.line().startswith("3/4 units · 5 documents") and counts.line().endswith("0:00:06 left")
    counts.add(3, {"documents": 10, "quarantined": 0, "teacher_tokens": 100})
    assert counts.line().startswith("4/4 units · 10 documents") and counts.line().endswith("0:00:06")


def test_what_happens_before_the_first_actor_is_ready(clock: list[float]) -> None:
    counts = counts_at(clock)
    clock[0] += 3
    assert counts.line() == "waiting for the first actor · 0:00:03 so far"
    counts.steps = (Step("loading the teacher"), Step("loading the teacher"), Step("compiling", 7, 10))
    assert counts.line() == "2 actors: loading the teacher · 0:00:03 so far"
    counts.steps = (Step("compiling q -> s", 8, 10), Step("compiling q -> s", 5, 10))
    assert counts.line() == "2 actors: compiling q -> s [##########..........] 5/10 · 0:00:03 so far"
    counts.steps = (Step("calibrating", 64, 64),)
    assert counts.line() == "calibrating [####################] 64/64 · 0:00:03 so far"


def test_a_step_tells_how_far_it_is() -> None:
    stream = io.StringIO()
    with Display(Counts(), stream, every_s=0.1) as display, display.stepping("compiling functions") as tell:
        tell(3, 70)
        time.sleep(0.5)
    assert "compiling functions · 3 of 70 · 0:00:00 so far" in stream.getvalue()


def test_a_log_is_never_silent() -> None:
    """A thread writes while the command is busy with something else."""
    stream = io.StringIO()
    counts = Counts(units_total=2, documents_left=4)
    with Display(counts, stream, every_s=0.2) as display:
        with display.stepping("reading the corpus"):
            time.sleep(0.7)
        display.update([Step("loading the teacher")])
        time.sleep(0.5)
        counts.actor_is_ready()
        display.update([Step("scoring", 1, 2, 0, 30)])
        time.sleep(0.5)
        counts.add(0, {"documents": 2, "quarantined": 0, "teacher_tokens": 60})
        counts.add(1, {"documents": 2, "quarantined": 0, "teacher_tokens": 60})
        display.update(unit_done=True)
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)
    told = [line[21:] for line in lines]
    assert told[0] == "reading the corpus"
    assert 2 <= sum(line.startswith("reading the corpus · 0:00:0") for line in told) <= 4
    assert sum(line.startswith("loading the teacher ·") for line in told) >= 1
    assert sum("0/2 units · 1 document " in line and line.endswith(" left") for line in told) >= 1
    assert told[-1].startswith("2/2 units · 4 documents")


def test_the_thread_ends_with_the_display() -> None:
    display = Display(Counts(), io.StringIO(), every_s=0.05)
    with display:
        pass
    assert display._beat is not None and not display._beat.is_alive()


def test_progress_as_json_is_an_object_a_line(clock: list[float]) -> None:
    stream, counts = io.StringIO(), counts_at(clock)
    display = Display(counts, stream, every_s=1.0, as_json=True)
    display.say('a note with "quotes" and a token hf_abcdefghijklmnopqrstuvwxyz012345')
    counts.actor_is_ready()
    clock[0] += 10
    display.update([Step("scoring", 4, 10, 0, 800)])
    counts.add(0, {"documents": 10, "quarantined": 1, "teacher_tokens": 2000}, 10.0)
    clock[0] += 10
    display.update([])
    note, *progress_ = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert note["message"].startswith('a note with "quotes"') and "hf_abc" not in note["message"]
    assert [line["progress"]["documents"] for line in progress_] == [4, 10]
    assert (
        progress_[0]["progress"] | {"teacher_tokens": 800, "tokens_per_s": 80.0, "seconds_left": 90.0}
        == progress_[0]["progress"]
    )
    assert progress_[1]["progress"]["quarantined"] == 1 and progress_[1]["doing"] is None
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["time"]) for line in [note, *progress_])
