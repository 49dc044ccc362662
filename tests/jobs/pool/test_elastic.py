"""The pool on real Rays whose actors freeze, whose nodes join late and leave early."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from engine.corpus.document import Document, Unit
from jobs.pool.events import Done, Event, Notice, Report, Salvaged, silent
from jobs.pool.ray_cluster import connect
from jobs.pool.ray_pool import Pool
from schemas.runfile import RayConfig
from tests.jobs.pool.test_ray_pool import quick, tasks

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[3]
FAST_HEALTH_CHECK = {  # a lost node is noticed in about a second; names of Ray's own, private to it
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "health_check_timeout_ms": 1000,
}


class SlowWorker:
    """Takes a moment for each unit, until the file `hurry` is there; the first that sees "freeze" stops itself like a hung
    process. Its sums name its process and its raylet, which is its node."""

    note = ""

    def __init__(self, folder: Path, *, report: Report = silent) -> None:
        self.folder = folder

    def score(self, unit: Unit, documents: Sequence[Document]) -> dict[str, float]:
        if documents[0].text == "freeze" and not (marker := self.folder / "frozen").exists():
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        if not (self.folder / "hurry").exists():
            time.sleep(0.2)
        return {"process": float(os.getpid()), "node": float(os.getppid())}

    def score_alone(self, document: Document) -> str:
        return document.text

    def calibrate(self, documents: list[Document], last: bool, lost: list[tuple[Document, str]]) -> None:
        raise AssertionError("there is no sample")


def done(events: list[Event]) -> list[Done]:
    return [event for event in events if isinstance(event, Done)]


def test_a_frozen_actor_does_not_hold_the_run(tmp_path: Path) -> None:
    """What it runs and what waits behind it is done by the other; each unit counts once; the frozen process is ended."""
    texts = [["a"]] * 4 + [["freeze"]] + [["b"]] * 15
    with quick(), connect(RayConfig(actors=2)):
        pool = Pool(partial(SlowWorker, tmp_path), RayConfig(actors=2), local=True)
        events = list(pool.run(tasks(texts), len(texts)))
        frozen = psutil.Process(int((tmp_path / "frozen").read_text()))
        assert frozen.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    assert Counter(event.unit.index for event in done(events)) == Counter(range(20))
    assert not [event for event in events if isinstance(event, Notice | Salvaged)]
    (late,) = [event for event in done(events) if event.unit.index == 4]
    assert late.stats["process"] != frozen.pid
    assert psutil.wait_procs([frozen], timeout=60)[1] == []


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node of one core, in a folder of its own. Made in the main thread: it sets a signal handler."""
    folder = Path(tempfile.mkdtemp(prefix="tse-", dir="/tmp"))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))  # else a plain `ray.init` elsewhere may find this cluster
        patch.setenv("RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32))
        patch.setenv("PYTHONPATH", str(ROOT))  # the workers of these tests
        node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=node | {"_system_config": FAST_HEALTH_CHECK})
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
            signal.signal(signal.SIGTERM, handler)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.thorough
def test_a_node_joins_late_and_leaves_early(cluster: Cluster, tmp_path: Path) -> None:
    """One node works; a second joins and works, too; it is killed, and the first does the rest, its units included."""
    texts, events, second, killed = [["a"]] * 400, list[Event](), None, False
    with quick(), connect(RayConfig(), cluster.address):
        pool = Pool(partial(SlowWorker, tmp_path), RayConfig(), local=False)
        for event in pool.run(tasks(texts), len(texts)):
            events.append(event)
            nodes = Counter(one.stats["node"] for one in done(events))
            if nodes and second is None:
                second = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
            if len(nodes) == 2 and min(nodes.values()) >= 3 and not killed:
                cluster.remove_node(second, allow_graceful=False)
                killed = True
            if isinstance(event, Notice):
                (tmp_path / "hurry").touch()
    assert killed, "the second node took no part"
    assert Counter(event.unit.index for event in done(events)) == Counter(range(400))
    assert [event.text for event in events if isinstance(event, Notice)][0].startswith("an actor died in unit")
    assert not [event for event in events if isinstance(event, Salvaged)]
