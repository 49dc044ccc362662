"""A file appears whole, once and for ever; full, read-only and closed disks are messages."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.posix import put_if_absent
from schemas.errors import OutputError
from tests.support.tables import small_plan, unit_tables

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.binary(max_size=2000)), min_size=1, max_size=8))
def test_put_if_absent_first_wins_for_ever(puts: list[tuple[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, first = Path(folder), {}
        for name, data in puts:
            won = put_if_absent(root / "deep" / "er" / name, data, staging=root / "tmp")
            assert won == (name not in first)
            first.setdefault(name, data)
            assert (root / "deep" / "er" / name).read_bytes() == first[name]
        assert list((root / "tmp").iterdir()) == []


# ---- disks that refuse -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@AS_ROOT
def test_full_disk_names_path_needed_and_free_then_resumes(small_disk: Path) -> None:
    plan, out = small_plan(units=1), small_disk / "out"
    open_output(out, plan)
    filler = small_disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(OutputError, match=r"no room: [\d,]+ bytes are needed, 0 bytes are free"):
        put_if_absent(out / "_engine" / "quarantine" / "00000.jsonl", b"", staging=out / "_engine" / "tmp")
        publish_unit(out, plan, 0, unit_tables(plan, 0), [], {})
    assert not list(out.rglob("*.parquet")) and not list(out.rglob("*.part"))
    filler.unlink()
    publish_unit(out, plan, 0, unit_tables(plan, 0), [], {})
    finish(out, plan, engine_version="test", describe=describe)


@AS_ROOT
def test_read_only_file_system(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OutputError, match="Read-only file system.*mount it writable"):
        open_output(small_disk / "out", small_plan())


def test_file_size_limit(tmp_path: Path) -> None:
    plan = small_plan(units=1)
    open_output(tmp_path, plan)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match=r"a file size limit or quota.*bytes are needed"):
            publish_unit(tmp_path, plan, 0, unit_tables(plan, 0), [], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob("*.part"))
    assert publish_unit(tmp_path, plan, 0, unit_tables(plan, 0), [], {}).files["teacher"] is not None


def _open_as_nobody(out: str, queue) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        open_output(Path(out) / "out", small_plan())
        queue.put("")
    except OutputError as error:
        queue.put(str(error))


def test_folder_without_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o555)
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        worker = context.Process(target=_open_as_nobody, args=(folder, queue))
        worker.start()
        message = queue.get(timeout=60)
        worker.join(60)
        os.chmod(folder, 0o755)
    assert "Permission denied" in message and "give this user access" in message
