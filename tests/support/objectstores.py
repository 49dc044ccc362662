"""An object store for tests: a real server that speaks S3, new buckets, and what is done with outputs on it."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from engine.dataset import store as stores
from engine.dataset.commit import publish_unit
from engine.dataset.store import ObjectStore, open_store
from schemas.manifest import Plan
from tests.support.tables import unit_tables

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-very-secret-key"
SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the test process ends, however it ends
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server of its own process: it must not share the interpreter's lock with what is tested."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket's URL; the environment says where and who, as it does for a person."""
    for key, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "an-access-key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(stores, "_WAITS_S", (0.0, 0.0))
    # first forget: an instance that another file of tests has left speaks to a server that is gone
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    name = f"b{uuid.uuid4().hex}"
    fs.mkdir(name)
    return f"s3://{name}"


class Wrapped:
    """The real file system; `changed` methods stand in for its own."""

    def __init__(self, fs: Any, **changed: Any) -> None:
        self._fs, self._changed = fs, changed

    def __getattr__(self, name: str) -> Any:
        return self._changed.get(name) or getattr(self._fs, name)


def real(store: stores.Store) -> Any:
    """Its file system."""
    assert isinstance(store, ObjectStore)
    return store._fs


def publish_all(out: stores.Out, plan: Plan, seed: int = 0) -> None:
    for unit in plan.units:
        tables = unit_tables(plan, unit.index, seed=seed)
        publish_unit(out, plan, unit.index, tables, [], {"documents": unit.n_rows})


def contents(out: stores.Out) -> dict[str, bytes]:
    store = open_store(out)
    return {name: store.read(name) for name, _ in store.files() if not name.startswith("_engine/tmp/")}
