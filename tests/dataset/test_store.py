"""The store under an output: put-if-absent, reads, listings, on a disk and on a real server that speaks S3; lost answers, races,
liars and listings that are behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.card.describe import describe
from engine.dataset import posix as publish
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.layout import sealed_units, unsealed_units
from engine.dataset.store import ObjectStore, PosixStore, open_store
from schemas.errors import OutputError
from tests.support.objectstores import Wrapped, contents, publish_all, real
from tests.support.tables import quarantine_record, small_plan, unit_tables

# ---- the operations


def test_both_kinds_of_store_do_the_same(bucket: str, tmp_path: Path) -> None:
    for store in (open_store(tmp_path / "out"), open_store(f"{bucket}/deep/out")):
        store.check()
        beside = open_store(f"{store}2")
        assert beside.put_if_absent("stranger", b"of a longer name")
        assert [store.put_if_absent("a/b/c", data) for data in (b"first", b"second", b"first")] == [True, False, False]
        assert store.put_if_absent("empty", b"") and store.read("a/b/c") == b"first"
        sizes = [store.size(name) for name in ("a/b/c", "empty", "a/b", "a", "x")]
        assert sizes == [5, 0, None, None, None] and store.exists("empty") and not store.exists("x")
        assert dict(store.files()) == {"a/b/c": 5, "empty": 0} and dict(store.files("a")) == {"a/b/c": 5}
        assert dict(store.files("none")) == dict(store.files("a/b/c/d")) == {}
        with store.open("a/b/c") as file:
            assert file.seek(2) == 2 and file.read(2) == b"rs"
        assert store.map(len, ["a", "bb"]) == [1, 2]
        for call in (store.read, store.open):
            with pytest.raises(OutputError, match=r"out/x: .*missing"):
                call("x")
        assert open_store(store) is store and dict(beside.files()) == {"stranger": 16}


def test_of_eight_writers_one_wins(bucket: str) -> None:
    writers = [open_store(f"{bucket}/out") for _ in range(8)]
    barrier = threading.Barrier(len(writers))

    def put(name: str, number: int) -> bool:
        barrier.wait()
        return writers[number].put_if_absent(name, bytes([number]) * 1000)

    with ThreadPoolExecutor(len(writers)) as threads:
        for attempt in range(10):
            name = f"race/{attempt}"
            won = list(threads.map(put, [name] * len(writers), range(len(writers))))
            assert won.count(True) == 1
            assert writers[0].read(name) == bytes([won.index(True)]) * 1000


def test_large_files_go_in_one_put(bucket: str) -> None:
    """Above s3fs's limit for multipart uploads (100 MB), which are not one step. An ETag with a dash is a multipart's."""
    store, data = open_store(f"{bucket}/out"), bytes(101 * 2**20)
    assert store.put_if_absent("large", data) and not store.put_if_absent("large", b"")
    assert store.size("large") == len(data)
    assert "-" not in real(store).info(f"{bucket.removeprefix('s3://')}/out/large")["ETag"]


def test_files_are_durable_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX: part written, fsynced, linked, its new folder entry fsynced; only then does the call return. Folders that are
    there already may have been made by somebody who was killed before their names were durable: those are, once."""
    (tmp_path / "data").mkdir()
    (tmp_path / "_engine" / "tmp").mkdir(parents=True)
    calls, names = [], {}

    def note(name: str) -> None:
        own = getattr(os, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            if name == "open":
                names[result] = Path(args[0]).suffix or Path(args[0]).name
            on = names[args[0]] if args[0] in names else Path(args[-1]).name if name == "link" else ""
            calls.append((name, on))
            return result

        monkeypatch.setattr(publish.os, name, noted)

    for name in ("open", "write", "fsync", "link"):
        note(name)
    assert PosixStore(tmp_path).put_if_absent("data/x.parquet", b"rows")
    kept = [call for call in calls if call[0] != "open"]
    folders = [("fsync", tmp_path.name), ("fsync", "_engine")]
    assert kept == [*folders, ("write", ".part"), ("fsync", ".part"), ("link", "x.parquet"), ("fsync", "data")]
    calls.clear()
    assert PosixStore(tmp_path).put_if_absent("data/y.parquet", b"rows")
    assert [call for call in calls if call[0] == "fsync"] == [("fsync", ".part"), ("fsync", "data")]


# ---- a store that misbehaves


def test_lost_answers_do_no_harm(bucket: str) -> None:
    """Every PUT succeeds, and its first answer is lost: the repeat finds the name taken and takes the file over."""
    plan, calm = small_plan(units=2), open_store(f"{bucket}/calm")
    fs, lost = real(calm), []

    def pipe_file(path: str, data: bytes, **how: Any) -> None:
        fs.pipe_file(path, data, **how)
        if path not in lost:
            lost.append(path)
            raise TimeoutError("the answer was lost")

    shaky = ObjectStore(f"{bucket}/shaky", Wrapped(fs, pipe_file=pipe_file))
    for store in (calm, shaky):
        open_output(store, plan)
        bad = [quarantine_record(1)]
        publish_unit(store, plan, 0, unit_tables(plan, 0, without=(1,)), bad, {"documents": 4.0})
        publish_unit(store, plan, 1, unit_tables(plan, 1), [], {"documents": 4.0})
        finish(store, plan, engine_version="test", describe=describe)
    assert len(lost) > len(contents(calm)) and contents(shaky) == contents(calm)


def test_an_answer_lost_for_good_is_an_error_and_a_rerun_completes(bucket: str) -> None:
    plan = small_plan(units=1)
    whole = open_store(f"{bucket}/whole")
    open_output(whole, plan)
    publish_all(whole, plan)
    fs = real(whole)
    out = ObjectStore(f"{bucket}/out", fs)
    open_output(out, plan)

    def pipe_file(path: str, data: bytes, **how: Any) -> None:
        if path.endswith(".parquet"):
            fs.pipe_file(path, data, **{**how, "mode": "overwrite"})
            raise OSError("no route to https://me:my-password@host/key?signature=abc")
        fs.pipe_file(path, data, **how)

    with pytest.raises(OutputError, match="all finished units are kept") as caught:
        publish_all(ObjectStore(out.url, Wrapped(fs, pipe_file=pipe_file)), plan)
    assert "my-password" not in str(caught.value) and "abc" not in str(caught.value)
    assert sealed_units(out) == []
    publish_all(out, plan)
    assert contents(out) == contents(whole)


def test_errors_that_pass_are_outlived_and_others_are_not_repeated(bucket: str) -> None:
    fs, tried = real(open_store(f"{bucket}/out")), []

    def failing(times: int, error: Exception) -> Any:
        def pipe_file(path: str, data: bytes, **how: Any) -> None:
            tried.append(path)
            if len(tried) <= times:
                raise error
            fs.pipe_file(path, data, **how)

        tried.clear()
        return ObjectStore(f"{bucket}/out", Wrapped(fs, pipe_file=pipe_file))

    assert failing(2, OSError(16, "Please reduce your request rate")).put_if_absent("a", b"") and len(tried) == 3
    with pytest.raises(OutputError, match="PermissionError: Access Denied; check the address, the credentials"):
        failing(9, PermissionError("Access Denied")).put_if_absent("b", b"")
    assert len(tried) == 1


def test_a_store_that_overwrites_is_refused_at_the_start(bucket: str) -> None:
    fs = real(open_store(f"{bucket}/out"))

    def pipe_file(path: str, data: bytes, **how: Any) -> None:
        fs.pipe_file(path, data)

    liar = ObjectStore(f"{bucket}/out", Wrapped(fs, pipe_file=pipe_file))
    with pytest.raises(OutputError, match="overwrites where it was told to create only"):
        open_output(liar, small_plan())
    assert dict(liar.files()) == {}  # not even a plan


def test_listings_that_are_behind_or_repeat_do_no_harm(bucket: str) -> None:
    class Behind(ObjectStore):
        """Leaves out every second name, and tells the others twice."""

        def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
            for name, size in sorted(super().files(folder))[::2]:
                yield from [(name, size)] * 2

    plan, calm = small_plan(units=3, rows=2), open_store(f"{bucket}/calm")
    open_output(calm, plan)
    publish_all(calm, plan)
    finish(calm, plan, engine_version="test", describe=describe)
    behind = Behind(f"{bucket}/behind", real(calm))
    open_output(behind, plan)
    for _ in range(2):  # the second time each unit is there, and half of them are not listed
        publish_all(behind, plan)
        assert open_output(behind, plan) == [0, 2]
    assert unsealed_units(behind, plan) == []
    finish(behind, plan, engine_version="test", describe=describe)
    assert contents(ObjectStore(behind.url, real(calm))) == contents(calm)
