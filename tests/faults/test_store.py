"""Faults of an object store, each operation in turn: errors before and after it was carried out, one file damaged or lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.layout import MANIFEST, seal_name, unsealed_units
from engine.dataset.store import ObjectStore, open_store
from engine.reader.targets import Targets, TargetsError
from engine.verify.output import verify
from schemas.errors import OutputError
from tests.support.objectstores import Wrapped, contents, real
from tests.support.tables import quarantine_record, small_plan, unit_tables

SHARD = "data/student/small/train-00001-of-00002.parquet"
ERRORS: list[Callable[[], Exception]] = [
    lambda: OSError(5, "503 Slow Down: please reduce your request rate"),
    lambda: TimeoutError("no answer"),
    lambda: ConnectionResetError("connection reset by peer"),
]


def run(store: ObjectStore) -> None:
    plan = small_plan(units=2)
    for _ in range(2):  # the second time all is there
        open_output(store, plan)
        bad = [quarantine_record(1)]
        publish_unit(store, plan, 0, unit_tables(plan, 0, without=(1,)), bad, {"documents": 4.0})
        publish_unit(store, plan, 1, unit_tables(plan, 1), [], {"documents": 4.0})
        assert unsealed_units(store, plan) == []
        finish(store, plan, engine_version="test", describe=describe)


def shaky(fs: Any, seed: int, told: Counter[str]) -> Wrapped:
    """Of three tries of any operation at most two fail, before or after it was carried out."""
    rng, failed = random.Random(seed), Counter[tuple[str, str]]()

    def wrap(name: str) -> Callable[..., Any]:
        own = getattr(fs, name)

        def call(path: str, *args: Any, **kwargs: Any) -> Any:
            may_fail = failed[name, path] < 2
            if may_fail and rng.random() < 0.3:
                failed[name, path] += 1
                told[f"{name} before"] += 1
                raise rng.choice(ERRORS)()
            result = own(path, *args, **kwargs)
            if may_fail and rng.random() < 0.3:
                failed[name, path] += 1
                told[f"{name} after"] += 1
                raise rng.choice(ERRORS)()
            failed[name, path] = 0
            return result

        return call

    return Wrapped(fs, **{name: wrap(name) for name in ("pipe_file", "cat_file", "info", "find", "open")})


def test_every_operation_may_fail_before_and_after(bucket: str) -> None:
    calm = open_store(f"{bucket}/calm")
    assert isinstance(calm, ObjectStore)
    run(calm)
    wanted, told = contents(calm), Counter[str]()
    for seed in range(2):
        run(ObjectStore(f"{bucket}/{seed}", shaky(real(calm), seed, told)))
        assert contents(f"{bucket}/{seed}") == wanted
    assert {
        f"{name} {when}" for name in ("pipe_file", "cat_file", "info", "find") for when in ("before", "after")
    } <= set(told)


def test_a_store_that_is_down_is_one_message(bucket: str) -> None:
    """Every operation fails for good: an error that says what is kept and what to do, whatever was asked."""
    store = open_store(f"{bucket}/out")
    assert isinstance(store, ObjectStore)
    run(store)

    def down(*args: Any, **kwargs: Any) -> Any:
        raise ERRORS[0]()

    names = ("pipe_file", "cat_file", "info", "find", "open")
    dead = ObjectStore(store.url, Wrapped(real(store), **dict.fromkeys(names, down)))
    calls: list[Callable[[], object]] = [
        lambda: dead.put_if_absent("x", b""),
        lambda: dead.read(MANIFEST),
        lambda: dead.size(MANIFEST),
        lambda: list(dead.files()),
        lambda: dead.open(SHARD),
        lambda: open_output(dead, small_plan(units=2)),
    ]
    for call in calls:
        with pytest.raises(OutputError, match=f"{bucket}/out.*503 Slow Down.*run again, all finished units are kept"):
            call()


def test_damaged_and_lost_objects_are_repaired_as_on_a_disk(bucket: str) -> None:
    store = open_store(f"{bucket}/out")
    assert isinstance(store, ObjectStore)
    run(store)
    wanted, fs, root = contents(store), real(store), store.url.removeprefix("s3://")
    for name in (SHARD, seal_name(0), MANIFEST, "_engine/plan.json"):
        fs.pipe_file(f"{root}/{name}", wanted[name][:-50])
        with pytest.raises(OutputError, match=f"{name}: .*remove this file and run `targetsmith score`"):
            run(store)
        if name != "_engine/plan.json":
            assert not verify(store).sound
        fs.rm_file(f"{root}/{name}")
        if name == SHARD:
            with pytest.raises(TargetsError, match="missing, sealed with"):
                list(Targets(store.url, "small").documents())
        run(store)
        assert contents(store) == wanted
