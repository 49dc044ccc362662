"""Seconds of stages: each function's own, on every thread, and no name that the engine lacks."""

from __future__ import annotations

import threading
import time

import pytest

from benchmarks.stage_times import STAGES, StageTimes, find


class Engine:
    """Something with a stage inside a stage."""

    def outer(self) -> None:
        time.sleep(0.02)
        self.inner()

    def inner(self) -> None:
        time.sleep(0.05)


HERE = {"outer": (f"{__name__}:Engine.outer",), "inner": (f"{__name__}:Engine.inner",)}


def test_all_names_of_the_stages_are_there() -> None:
    for places in STAGES.values():
        for place in places:
            owner, name = find(place)
            assert callable(getattr(owner, name))


def test_a_name_that_is_gone_is_an_error() -> None:
    with pytest.raises(SystemExit, match="no engine.scoring.scorer:Scorer.vanished"):
        find("engine.scoring.scorer:Scorer.vanished")


def test_a_stage_counts_its_own_seconds_and_is_itself_again_afterwards() -> None:
    before = Engine.inner
    with StageTimes(HERE) as times:
        Engine().outer()
        thread = threading.Thread(target=Engine().inner)
        thread.start()
        thread.join()
    assert Engine.inner is before
    assert times.seconds["inner"] >= 0.1  # once inside, once on the other thread
    assert 0.02 <= times.seconds["outer"] < 0.07  # without what the inner stage took
    assert times.cpu["inner"] < 0.05  # asleep
