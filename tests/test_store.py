"""Outputs on an object store: a real server that speaks S3, with lost answers, races, liars and listings that are behind.

TARGETSMITH_EFFORT=n kills n times as often.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from engine import publish, shards
from engine import store as stores
from engine.head import HEAD
from engine.outfolder import claim_name, seal_name, sealed_shards, unsealed_units
from engine.store import ObjectStore, PosixStore, open_store
from engine.stream import Targets
from jobs.cli import main
from schemas.errors import FingerprintMismatch, OutputError, RunFileError
from schemas.manifest import Plan
from schemas.runfile import load_run
from tests.runs import TEXTS, score_here, score_run, write_run
from tests.tables import quarantine_record, small_plan, unit_tables
from tests.vocabularies import EFFORT

ROOT = Path(__file__).resolve().parent.parent
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
    fs = fsspec.filesystem("s3")
    fs.clear_instance_cache()
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
        shards.publish_unit(out, plan, unit.index, tables, [], {"documents": unit.n_rows})


def contents(out: stores.Out) -> dict[str, bytes]:
    store = open_store(out)
    return {name: store.read(name) for name, _ in store.files() if not name.startswith("_engine/tmp/")}


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
    """POSIX: part written, fsynced, linked, its new folder entry fsynced; only then does the call return."""
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
    assert kept == [("write", ".part"), ("fsync", ".part"), ("link", "x.parquet"), ("fsync", "data")]


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
        shards.open_output(store, plan)
        bad = [quarantine_record(1)]
        shards.publish_unit(store, plan, 0, unit_tables(plan, 0, without=(1,)), bad, {"documents": 4.0})
        shards.publish_unit(store, plan, 1, unit_tables(plan, 1), [], {"documents": 4.0})
        shards.finish(store, plan, engine_version="test")
    assert len(lost) > len(contents(calm)) and contents(shaky) == contents(calm)


def test_an_answer_lost_for_good_is_an_error_and_a_rerun_completes(bucket: str) -> None:
    plan = small_plan(units=1)
    whole = open_store(f"{bucket}/whole")
    shards.open_output(whole, plan)
    publish_all(whole, plan)
    fs = real(whole)
    out = ObjectStore(f"{bucket}/out", fs)
    shards.open_output(out, plan)

    def pipe_file(path: str, data: bytes, **how: Any) -> None:
        if path.endswith(".parquet"):
            fs.pipe_file(path, data, **{**how, "mode": "overwrite"})
            raise OSError("no route to https://me:my-password@host/key?signature=abc")
        fs.pipe_file(path, data, **how)

    with pytest.raises(OutputError, match="all finished units are kept") as caught:
        publish_all(ObjectStore(out.url, Wrapped(fs, pipe_file=pipe_file)), plan)
    assert "my-password" not in str(caught.value) and "abc" not in str(caught.value)
    assert shards.sealed_units(out) == []
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
        shards.open_output(liar, small_plan())
    assert dict(liar.files()) == {}  # not even a plan


def test_listings_that_are_behind_or_repeat_do_no_harm(bucket: str) -> None:
    class Behind(ObjectStore):
        """Leaves out every second name, and tells the others twice."""

        def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
            for name, size in sorted(super().files(folder))[::2]:
                yield from [(name, size)] * 2

    plan, calm = small_plan(units=3, rows=2), open_store(f"{bucket}/calm")
    shards.open_output(calm, plan)
    publish_all(calm, plan)
    shards.finish(calm, plan, engine_version="test")
    behind = Behind(f"{bucket}/behind", real(calm))
    shards.open_output(behind, plan)
    for _ in range(2):  # the second time each unit is there, and half of them are not listed
        publish_all(behind, plan)
        assert shards.open_output(behind, plan) == [0, 2]
    assert unsealed_units(behind, plan) == []
    shards.finish(behind, plan, engine_version="test")
    assert contents(ObjectStore(behind.url, real(calm))) == contents(calm)


# ---- runs


def test_a_unit_without_its_seal_is_sealed_and_one_without_data_is_scored(bucket: str) -> None:
    plan, out = small_plan(units=3), open_store(f"{bucket}/out")
    shards.open_output(out, plan)
    publish_all(out, plan)
    before, fs, root = contents(out), real(out), out.url.removeprefix("s3://")
    gone = [seal_name(1), seal_name(2), claim_name(2)]  # killed before the seal; killed before anything
    gone += [name for name in before if name.startswith("data/") and "00002-of" in name]
    for name in gone:
        fs.rm_file(f"{root}/{name}")
    assert shards.open_output(out, plan) == [0, 1] and unsealed_units(out, plan) == [2]
    with pytest.raises(OutputError, match="1 of 3 units are not sealed"):
        shards.finish(out, plan, engine_version="test")
    publish_all(out, plan)
    assert contents(out) == before


def test_two_drivers_with_different_numbers_make_one_output(bucket: str) -> None:
    """The second commit of each name loses; nobody sees two halves of a unit."""
    plan, out = small_plan(units=4), f"{bucket}/out"

    def drive(seed: int) -> Any:
        store = open_store(out)
        shards.open_output(store, plan)
        publish_all(store, plan, seed=seed)
        return shards.finish(store, plan, engine_version="test")

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(drive, [1, 2])
    assert first == second and len(list(sealed_shards(out, "teacher"))) == 4
    assert sum(1 for _ in Targets(out, "teacher", verify=True).documents()) == 16
    assert len([name for name in contents(out) if name.startswith("data/")]) == 8


PUBLISH = """
import sys
from engine import shards
from engine.store import open_store
from tests.tables import quarantine_record, small_plan, unit_tables
plan, store = small_plan(units=4, rows=2), open_store(sys.argv[1])
print("begun", flush=True)
shards.open_output(store, plan)
for unit in plan.units:
    shards.publish_unit(store, plan, unit.index, unit_tables(plan, unit.index), [], {"documents": 2.0})
shards.finish(store, plan, engine_version="test")
"""


def test_killed_at_any_time_then_repeated_gives_the_undisturbed_output(bucket: str) -> None:
    """SIGKILL at random times: what is there is whole, and the same bytes as in the end."""
    calm, out = open_store(f"{bucket}/calm"), open_store(f"{bucket}/out")
    rng = random.Random(5)

    def start(store: stores.Store) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PUBLISH, str(store)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    with start(calm) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        began = time.monotonic()
        assert process.wait(120) == 0
        seconds = time.monotonic() - began
    wanted = contents(calm)
    for _ in range(EFFORT):
        with start(out) as process:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            time.sleep(rng.uniform(0.2, 0.9) * seconds)
            process.kill()
        assert contents(out).items() <= wanted.items()
    with start(out) as process:
        assert process.wait(120) == 0
    assert contents(out) == wanted


def test_foreign_and_changed_outputs_are_refused(bucket: str) -> None:
    plan, store = small_plan(units=1), open_store(f"{bucket}/foreign")
    out = ObjectStore(f"{bucket}/out", real(store))
    store.put_if_absent("thesis.tex", b"x")
    with pytest.raises(OutputError, match=r"not empty and not an output.*foreign/thesis.tex"):
        shards.open_output(store, plan)
    shards.open_output(out, plan)
    with pytest.raises(FingerprintMismatch, match="top_k: 8 -> 9"):
        shards.open_output(out, small_plan(units=1, top_k=9))
    publish_all(out, plan)
    fs, root = real(out), out.url.removeprefix("s3://")
    out.put_if_absent("data/teacher/stray.parquet", b"x")
    with pytest.raises(OutputError, match=r"stray.parquet: not a file of this run"):
        shards.finish(out, plan, engine_version="test")
    fs.rm_file(f"{root}/data/teacher/stray.parquet")
    name = next(sealed_shards(out, "teacher"))
    fs.pipe_file(f"{root}/{name}", b"torn")
    with pytest.raises(OutputError, match=f"{name}: 4 bytes, sealed with"):
        shards.finish(out, plan, engine_version="test")
    with pytest.raises(OutputError, match="specified bucket does not exist; make the bucket first"):
        shards.open_output(ObjectStore("s3://nobody-has-this/out", fs), plan)


def test_a_shard_that_is_too_large_says_what_to_set(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "most_bytes", 1000)
    plan, out = small_plan(units=1), open_store(f"{bucket}/out")
    shards.open_output(out, plan)
    with pytest.raises(OutputError, match=r"parquet: [\d,]+ bytes.*at most 1,000; set \[corpus\] unit_bytes"):
        publish_all(out, plan)
    assert not list(out.files("data"))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (f"s3://me:{SECRET}@bucket/out", "credentials belong into the environment"),
        (f"s3://bucket/out?signature={SECRET}", "credentials belong into the environment"),
        ("s3://bucket", "add a prefix of its own"),
        ("http://host/out", "a URL of s3://, gs://, az://"),
        (f"ftp://me:{SECRET}@host/out", "a URL of s3://, gs://, az://"),
    ],
)
def test_urls_that_are_no_output(output: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RunFileError) as in_run_file:
        load_run(write_run(tmp_path, output=output))
    with pytest.raises(OutputError) as opened:
        open_store(output)
    for caught in (in_run_file, opened):
        assert says in str(caught.value) and SECRET not in str(caught.value)


def test_addresses(tmp_path: Path) -> None:
    assert load_run(write_run(tmp_path, output="s3://bucket/a/b/")).output == "s3://bucket/a/b"
    assert load_run(write_run(tmp_path, output=f"file://{tmp_path}/x")).output == tmp_path / "x"
    local = open_store(f"file://{tmp_path}/x")
    assert isinstance(local, PosixStore) and local.root == tmp_path / "x"


def test_a_run_on_a_store_is_the_run_on_a_disk(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Scored, interrupted, resumed, shown, printed and read: all as from a folder, and no secret anywhere."""
    caplog.set_level(logging.INFO)
    bad = '{"id": "bad", "text": ""}\n'
    here, there = (tmp_path / place for place in ("here", "there"))
    for folder in (here, there):
        folder.mkdir()
    made: Any = {"texts": TEXTS[:4], "lines": bad, "targets": "top_k = 16\nhidden = true"}
    local = score_here(write_run(here, **made))
    run = load_run(write_run(there, **made, output=f"{bucket}/out"))
    manifest, out = score_run(run), f"{bucket}/out"
    assert manifest.quarantined == 1
    whole, fs = contents(out), real(open_store(out))
    wanted = contents(local)
    assert len(whole.pop(HEAD)) == len(wanted.pop(HEAD)) and whole == wanted  # the head's metadata have no order

    for name in ("_engine/manifest.json", "README.md", seal_name(1)):
        fs.rm_file(f"{out.removeprefix('s3://')}/{name}")
    assert score_run(run) == manifest
    assert contents(out).items() >= whole.items()

    for mine, yours in zip(Targets(local, "sp").documents(), Targets(out, "sp", verify=True).documents(), strict=True):
        assert mine.doc_id == yours.doc_id and (mine.logps == yours.logps).all()

    def printed(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert stop.value.code == 0
        return capsys.readouterr().out

    for verb, *options in (
        ("cat", "--student", "sp"),
        ("cat", "--view", "teacher", "--limit", 2),
        ("show", "--student", "sp", "--doc", "t3"),
        ("show", "--view", "teacher", "--doc", 2),
    ):
        said = printed(verb, out, *options)
        assert said == printed(verb, local, *options) and len(said.splitlines()) >= 1
    with pytest.raises(SystemExit):
        main(["show", out, "--doc", "4", "--student", "sp"])
    assert "document 4 is in quarantine: empty_text" in capsys.readouterr().err

    kept = b"".join(whole.values()) + caplog.text.encode()
    assert SECRET.encode() not in kept and b"an-access-key" not in kept
    assert bucket.removeprefix("s3://").encode() not in b"".join(whole.values())  # where it lies is no part of the run


@pytest.mark.ray
def test_actors_write_to_the_store(bucket: str, tmp_path: Path) -> None:
    """The command, through real Ray: actors of other processes publish, the driver sees it and finishes."""
    run_file = write_run(tmp_path, texts=TEXTS[:4], extra="[ray]\nactors = 2", output=f"{bucket}/out")
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.score", str(run_file)],
        cwd=ROOT,
        env=plain | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"{bucket}/out: run" in done.stdout and SECRET not in done.stdout + done.stderr
    (tmp_path / "here").mkdir()
    local = score_here(write_run(tmp_path / "here", texts=TEXTS[:4]))
    data = {name: content for name, content in contents(local).items() if name.startswith("data/")}
    assert {name: content for name, content in contents(f"{bucket}/out").items() if name in data} == data
