"""The local cache of remote row groups: below its limit, right whatever dies or is damaged, of use; what is fetched ahead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from huggingface_hub import HfFileSystem
from torch.utils.data import DataLoader

from engine.reader import RangeCache, Targets, TargetsDataset, TargetsError, run_files
from tests.support.codecs import write_output
from tests.support.hub import hub
from tests.support.objectstores import bucket, endpoint

__all__ = ["bucket", "endpoint"]  # fixtures


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 units of 40 documents in 10 row groups each."""
    out = tmp_path_factory.mktemp("cached") / "out"
    write_output(out, rows=40, products=("student/small", "teacher"), longest=12)
    return out


@pytest.fixture
def remote(bucket: str, local: Path) -> str:
    fsspec.filesystem("s3").put(str(local), f"{bucket}/out", recursive=True)
    return f"{bucket}/out"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is asked of the store by this process, by whatever thread."""
    asked: list[tuple[str, int, int]] = []
    real = run_files.OutputFolder.fetch

    def fetch(folder: run_files.OutputFolder, name: str, start: int, stop: int) -> bytes:
        asked.append((name, start, stop))
        return real(folder, name, start, stop)

    monkeypatch.setattr(run_files.OutputFolder, "fetch", fetch)
    return asked


def same_batches(one: Targets, other: Targets, **how: Any) -> int:
    count = 0
    for mine, yours in zip(one.batches(4, seed=1, **how), other.batches(4, seed=1, **how), strict=True):
        assert mine.keys() == yours.keys()
        assert all(torch.equal(mine[key], yours[key]) for key in mine if isinstance(mine[key], torch.Tensor))
        count += len(mine["lengths"])
    return count


# ---- in a trainer ----


def test_a_second_epoch_and_a_second_trainer_ask_the_store_for_nothing(
    local: Path, remote: str, tmp_path: Path, fetched: list[Any]
) -> None:
    cache = RangeCache(tmp_path / "cache", 10**8)
    targets = Targets(remote, "small", beside=("teacher",), cache=cache)
    here = Targets(local, "small", beside=("teacher",))
    assert same_batches(targets, here) == 120
    once = len(fetched)
    assert once == len(set(fetched)) == cache.misses  # nothing twice
    assert same_batches(targets, here, epoch=1) == 120 and len(fetched) == once
    another = RangeCache(tmp_path / "cache", 10**8)
    assert same_batches(Targets(remote, "small", beside=("teacher",), cache=another), here) == 120
    assert len(fetched) == once and another.misses == 0 and another.hits >= 60


def test_a_small_cache_stays_small_and_gives_the_same(local: Path, remote: str, tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "cache", 20_000)
    targets, here = Targets(remote, "small", cache=cache), Targets(local, "small")
    total = sum(file.stat().st_size for file in here.files)
    assert total > 3 * cache.limit_bytes
    for epoch in range(2):
        assert same_batches(targets, here, epoch=epoch) == 120
        assert 0 < cache.held_bytes() <= cache.limit_bytes


def test_workers_share_the_cache(remote: str, tmp_path: Path) -> None:
    """Forks of a process that has read already: each fills it and finds in it what the others have left there."""
    cache = RangeCache(tmp_path / "cache", 10**8)
    targets = Targets(remote, "small", cache=cache)
    next(iter(targets.batches(4)))
    for workers in (2, 1):
        loader = DataLoader(TargetsDataset(targets, 4, seed=2), batch_size=None, num_workers=workers)
        assert sorted(row for batch in loader for row in batch["doc_row"].tolist()) == list(range(120))
    held = cache.held_bytes()
    assert sum(len(batch["lengths"]) for batch in targets.batches(4)) == 120
    assert cache.held_bytes() == held


def test_a_damaged_piece_is_fetched_again(local: Path, remote: str, tmp_path: Path, fetched: list[Any]) -> None:
    cache = RangeCache(tmp_path / "cache", 10**8)
    assert same_batches(Targets(remote, "small", cache=cache), Targets(local, "small")) == 120
    pieces = sorted((tmp_path / "cache").glob("*.piece"))
    for number, piece in enumerate(pieces[:12]):
        data = piece.read_bytes()
        piece.write_bytes((data[:-1], b"", data[:3], data[:9] + bytes([data[9] ^ 4]) + data[10:])[number % 4])
    before = len(fetched)
    assert same_batches(Targets(remote, "small", cache=cache), Targets(local, "small")) == 120
    assert cache.damaged == 12 and len(fetched) == before + 12


def test_the_hub(local: Path, tmp_path: Path) -> None:
    files = {f"out/{p.relative_to(local)}": p.read_bytes() for p in sorted(local.rglob("*")) if p.is_file()}
    with hub(files, log := []) as url:
        HfFileSystem.clear_instance_cache()
        cache, options = RangeCache(tmp_path / "cache", 10**8), {"endpoint": url, "token": False}
        targets = Targets("hf://datasets/org/name/out", "small", storage_options=options, cache=cache)
        for epoch in range(2):
            assert same_batches(targets, Targets(local, "small"), epoch=epoch) == 120
            asked, log[:] = len(log), []
            assert asked > 30 if epoch == 0 else asked == 0


# ---- fetched ahead ----


def test_the_next_pool_is_fetched_while_one_is_used(
    local: Path, remote: str, fetched: list[tuple[str, int, int]]
) -> None:
    targets = Targets(remote, "small")
    targets.prepare()
    fetched.clear()
    dataset = TargetsDataset(targets, 4, seed=1, pool_groups=3)
    batches = iter(dataset)
    next(batches)
    _until(lambda: len({*fetched}) >= 6)
    time.sleep(0.2)
    groups = [(name, start, stop) for name, start, stop in fetched]
    assert len(groups) == len({*groups})
    assert 6 <= len(groups) <= 6 + 3  # two pools of three row groups, and footers
    assert sum(len(batch["lengths"]) for batch in batches) == 116
    assert len(fetched) == len({*fetched})  # in all: nothing twice


def _until(true: Any) -> None:
    for _ in range(200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("not within 10 s")


def test_errors_of_what_was_fetched_ahead_name_the_file(remote: str) -> None:
    targets = Targets(remote, "small")
    batches = iter(TargetsDataset(targets, 4, pool_groups=1))
    next(batches)
    fs = fsspec.filesystem("s3")
    for url in targets.urls[1:]:
        fs.rm_file(url)
    with pytest.raises(TargetsError, match=r"train-00001-of-00003.parquet.*missing, sealed with"):
        list(batches)


# ---- the cache alone ----


def body(number: int, size: int = 1000) -> bytes:
    return bytes([number % 251]) * size


def test_what_was_read_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "cache", 4 * 1004)
    for number in range(4):
        cache.put(f"k{number}", body(number))
        time.sleep(0.01)
    assert cache.get("k0") == body(0)
    cache.put("k4", body(4))
    assert [cache.get(f"k{n}") is not None for n in range(5)] == [True, False, True, True, True]
    cache.put("large", bytes(4 * 1004))  # with its checksum above the limit: not kept, and nothing is removed for it
    assert cache.get("large") is None and cache.held_bytes() == 4 * 1004
    cache.put("k4", body(4))
    assert cache.held_bytes() == 4 * 1004
    with pytest.raises(ValueError, match="limit_bytes 0"):
        RangeCache(tmp_path, 0)


def _use(folder: Path, seed: int, rounds: int) -> None:
    cache = RangeCache(folder, 20_000)
    for i in range(rounds):
        number = (seed * 7 + i * 13) % 60
        found = cache.get(f"k{number}")
        assert found in (None, body(number, 500 + number))
        if found is None:
            cache.put(f"k{number}", body(number, 500 + number))
    os._exit(0 if cache.damaged == 0 else 3)


def test_processes_at_once_never_pass_the_limit_and_never_see_half_a_piece(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_use, args=(tmp_path, n, 150)) for n in range(4)]
    watched = RangeCache(tmp_path, 20_000)
    for process in processes:
        process.start()
    highest = 0
    while any(process.is_alive() for process in processes):
        highest = max(highest, watched.held_bytes())
    assert [process.exitcode for process in processes] == [0] * 4
    assert 10_000 < highest <= 20_000


KILLED = """
import os, signal, sys
from engine.reader import RangeCache
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)  # with the lock held and the piece written under its other name
RangeCache(sys.argv[1], 5000).put("k0", bytes(3000))
"""


def test_a_writer_that_was_killed_leaves_nothing_and_stops_nobody(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 5000)
    cache.put("k1", body(1))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len([*tmp_path.glob("*.part")]) == 1 and cache.get("k0") is None
    cache.put("k2", body(2))
    assert not [*tmp_path.glob("*.part")]
    assert cache.get("k1") == body(1) and cache.get("k2") == body(2) and cache.held_bytes() == 2 * 1004


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[RangeCache]:
    cache = RangeCache(tmp_path / "cache", 5000)
    (tmp_path / "cache" / "lock").mkdir()  # whatever the reason: root may write anywhere
    yield cache


def test_a_folder_that_cannot_be_written_costs_speed_alone(unwritable: RangeCache) -> None:
    with pytest.warns(UserWarning, match="nothing can be kept here"):
        unwritable.put("k0", body(0))
    assert unwritable.get("k0") is None
