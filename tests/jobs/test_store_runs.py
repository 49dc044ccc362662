"""Runs on an object store: killed, raced, resumed, shown and read like runs on a disk.

TARGETSMITH_EFFORT=n kills n times as often.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, constants

from engine.card.describe import describe
from engine.card.publish import publish
from engine.dataset import store as stores
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.dataset.layout import claim_name, seal_name, unsealed_units
from engine.dataset.sidecars import LM_HEAD
from engine.dataset.store import ObjectStore, PosixStore, open_store
from engine.reader.targets import Targets
from jobs.cli import main
from schemas.errors import FingerprintMismatch, OutputError, RunFileError
from schemas.runfile import load_run
from tests.support.hub_writes import TOKEN, written_hub
from tests.support.objectstores import ROOT, SECRET, contents, publish_all, real
from tests.support.runs import STUDENTS, TEXTS, score_here, score_run, write_run
from tests.support.tables import sealed_names, small_plan
from tests.support.vocabularies import EFFORT

TARGETS = "top_k = 16\ncalibration_documents = 2"

# ---- runs


def test_a_unit_without_its_seal_is_sealed_and_one_without_data_is_scored(bucket: str) -> None:
    plan, out = small_plan(units=3), open_store(f"{bucket}/out")
    open_output(out, plan)
    publish_all(out, plan)
    before, fs, root = contents(out), real(out), out.url.removeprefix("s3://")
    gone = [seal_name(1), seal_name(2), claim_name(2)]  # killed before the seal; killed before anything
    gone += [name for name in before if name.startswith("data/") and "00002-of" in name]
    for name in gone:
        fs.rm_file(f"{root}/{name}")
    assert open_output(out, plan) == [0, 1] and unsealed_units(out, plan) == [2]
    with pytest.raises(OutputError, match="1 of 3 units not sealed"):
        finish(out, plan, engine_version="test", describe=describe)
    publish_all(out, plan)
    assert contents(out) == before


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its own library
def test_an_output_is_published_from_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # what the environment variable sets
    plan, out = small_plan(units=2), f"{bucket}/out"
    open_output(out, plan)
    publish_all(out, plan)
    finish(out, plan, engine_version="test", describe=describe)
    with written_hub() as hub:
        api = HfApi(endpoint=hub.url, token=TOKEN)
        sent = [publish(out, "org/name", api=api, say=lambda text: None).sent for _ in range(2)]
    whole, found = contents(out), hub.repositories["org/name"].files
    assert sent == [len(whole), 0] and found.keys() - {".gitattributes"} == whole.keys()
    for name, data in whole.items():
        file = found[name]
        assert file == data if isinstance(file, bytes) else file.sha256 == hashlib.sha256(data).hexdigest()


def test_two_drivers_with_different_numbers_make_one_output(bucket: str) -> None:
    """The second commit of each name loses; nobody sees two halves of a unit."""
    plan, out = small_plan(units=4), f"{bucket}/out"

    def drive(seed: int) -> Any:
        store = open_store(out)
        open_output(store, plan)
        publish_all(store, plan, seed=seed)
        return finish(store, plan, engine_version="test", describe=describe)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(drive, [1, 2])
    assert first == second and len(sealed_names(out, "teacher")) == 4
    assert sum(1 for _ in Targets(out, "teacher", verify=True).documents()) == 16
    assert len([name for name in contents(out) if name.startswith("data/")]) == 8


PUBLISH = """
import sys
from engine.dataset.commit import open_output, publish_unit
from engine.card.describe import describe
from engine.dataset.finish import finish
from engine.dataset.store import open_store
from tests.support.tables import quarantine_record, small_plan, unit_tables
plan, store = small_plan(units=4, rows=2), open_store(sys.argv[1])
print("begun", flush=True)
open_output(store, plan)
for unit in plan.units:
    publish_unit(store, plan, unit.index, unit_tables(plan, unit.index), [], {"documents": 2.0})
finish(store, plan, engine_version="test", describe=describe)
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
        open_output(store, plan)
    open_output(out, plan)
    with pytest.raises(FingerprintMismatch, match="top_k: 8 -> 9"):
        open_output(out, small_plan(units=1, top_k=9))
    publish_all(out, plan)
    fs, root = real(out), out.url.removeprefix("s3://")
    out.put_if_absent("data/teacher/stray.parquet", b"x")
    with pytest.raises(OutputError, match=r"stray.parquet: not a file of this run"):
        finish(out, plan, engine_version="test", describe=describe)
    fs.rm_file(f"{root}/data/teacher/stray.parquet")
    name = sealed_names(out, "teacher")[0]
    fs.pipe_file(f"{root}/{name}", b"torn")
    with pytest.raises(OutputError, match=f"{name}: 4 bytes, sealed with"):
        finish(out, plan, engine_version="test", describe=describe)
    with pytest.raises(OutputError, match="specified bucket does not exist; make the bucket first"):
        open_output(ObjectStore("s3://nobody-has-this/out", fs), plan)


def test_a_shard_that_is_too_large_says_what_to_set(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectStore, "most_bytes", 1000)
    plan, out = small_plan(units=1), open_store(f"{bucket}/out")
    open_output(out, plan)
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
    made: Any = {"texts": TEXTS[:4], "lines": bad, "targets": f"{TARGETS}\nhidden = true"}
    local = score_here(write_run(here, **made))
    run = load_run(write_run(there, **made, output=f"{bucket}/out"))
    manifest, out = score_run(run), f"{bucket}/out"
    assert manifest.quarantined == 1
    whole, fs = contents(out), real(open_store(out))
    wanted = contents(local)
    assert len(whole.pop(LM_HEAD)) == len(wanted.pop(LM_HEAD)) and whole == wanted  # the head's metadata have no order

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


@pytest.mark.thorough
@pytest.mark.ray
def test_actors_read_from_the_store_and_write_to_it(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command, through real Ray: an actor of another process reads and publishes, the driver sees it and finishes."""
    made: Any = {"texts": TEXTS[:4], "students": {"bl": STUDENTS["bl"]}, "targets": TARGETS}
    run_file = write_run(tmp_path, **made, extra="[ray]\nactors = 1", output=f"{bucket}/out")
    fsspec.filesystem("s3", skip_instance_cache=True).put(str(tmp_path / "corpus.jsonl"), f"{bucket}/in/corpus.jsonl")
    (tmp_path / "corpus.jsonl").unlink()
    run_file.write_text(run_file.read_text().replace('["corpus.jsonl"]', f'["{bucket}/in/*.jsonl"]'))
    for key in [key for key in os.environ if key.startswith("RAY_")]:
        monkeypatch.delenv(key)
    with pytest.raises(SystemExit) as stop:
        main(["score", str(run_file)])
    said = capfd.readouterr()
    assert stop.value.code == 0, said.err
    assert f"{bucket}/out: run" in said.out and SECRET not in said.out + said.err
    (tmp_path / "here").mkdir()
    local = score_here(write_run(tmp_path / "here", **made))
    data, far = contents(local), contents(f"{bucket}/out")
    for name in [name for name in data if name.startswith("data/")]:  # the run is another one: what S3 says of the file
        assert pq.read_table(pa.BufferReader(far[name])).equals(pq.read_table(pa.BufferReader(data[name])))
