"""Outputs on fsspec stores: in memory, and on a real local server that speaks S3. Same documents, same errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from engine.reader.targets import Targets, TargetsError
from engine.reader.torch_dataset import TargetsDataset
from tests.support.codecs import write_output


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "out"
    write_output(out, products=("student/small", "teacher"))
    return out


@pytest.fixture
def memory(local: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    fs = fsspec.filesystem("memory")
    fs.put(str(local), "/run/out", recursive=True)
    yield "memory://run/out", {}
    fs.rm("/run", recursive=True)


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, Any]]:
    """A server on a free port of this machine; returns storage_options."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "key": "test",
        "secret": "test",
        "endpoint_url": f"http://{host}:{port}",
    }
    server.stop()


@pytest.fixture
def s3(server: dict[str, Any], local: Path) -> tuple[str, dict[str, Any]]:
    fs = fsspec.filesystem("s3", **server)
    if fs.exists("bucket"):
        fs.rm("bucket", recursive=True)
    fs.mkdir("bucket")
    fs.put(str(local), "bucket/out", recursive=True)
    return "s3://bucket/out", server


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.getfixturevalue(request.param)


def rows_of(dataset: TargetsDataset, workers: int = 0) -> list[int]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return [row for batch in loader for row in batch["doc_row"].tolist()]


def test_a_store_gives_what_the_folder_gives(remote: tuple[str, dict[str, Any]], local: Path) -> None:
    url, options = remote
    here, there = Targets(local, "small"), Targets(url, "small", storage_options=options, verify=True)
    assert there.rows == here.rows and there.urls[0].startswith(url)
    for mine, yours in zip(here.documents(), there.documents(), strict=True):
        assert mine.doc_id == yours.doc_id and mine.text == yours.text
        assert (mine.logps == yours.logps).all() and (mine.ids == yours.ids).all()
    for mine, yours in zip(here.batches(4, seed=1), there.batches(4, seed=1), strict=True):
        assert mine.keys() == yours.keys() and all(torch.equal(mine[key], yours[key]) for key in mine)
    beside = Targets(url, "small", beside=("teacher",), storage_options=options)
    assert sum(len(batch["teacher"]["lengths"]) for batch in beside.batches(8)) == 33
    with pytest.raises(TargetsError, match="no local folder"):
        _ = there.files


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_workers_and_resume_on_a_store(remote: tuple[str, dict[str, Any]], workers: int) -> None:
    """Workers are forks of a process that has already read from the store."""
    url, options = remote
    targets = Targets(url, "small", storage_options=options)
    next(targets.documents())
    shares = [rows_of(TargetsDataset(targets, 4, seed=3, rank=rank, world_size=2), workers) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(33))
    dataset = TargetsDataset(targets, 4, seed=3)
    iterator = iter(dataset)
    next(iterator)
    state = dataset.state_dict()
    rest = [batch["doc_row"].tolist() for batch in iterator]
    fresh = TargetsDataset(Targets(url, "small", storage_options=options), 4, seed=3)
    fresh.load_state_dict(state)
    assert [batch["doc_row"].tolist() for batch in fresh] == rest


def test_no_damage_passes_in_silence(remote: tuple[str, dict[str, Any]]) -> None:
    url, options = remote
    fs, root = fsspec.url_to_fs(url, **options)
    name = Targets(url, "small", storage_options=options).urls[1].removeprefix(url)
    whole = fs.cat_file(root + name)

    def read(**more: Any) -> int:
        targets = Targets(url, "small", storage_options=options, **more)
        return sum(len(batch["lengths"]) for batch in targets.batches(4, seed=0))

    assert read() == 33
    for data, more, text in (
        (whole[:-100], {}, "sealed with"),
        (whole[:50] + bytes(len(whole) - 50), {}, "damaged or unreadable"),  # torn: right size, no footer
        (fs.cat_file(root + name.replace("00001-of", "00002-of")), {}, "sealed with|another run"),
        (whole[:5] + bytes([whole[5] ^ 1]) + whole[6:], {"verify": True}, "sha256"),
        (b"", {}, "0 bytes, sealed with"),
    ):
        fs.pipe_file(root + name, data)
        with pytest.raises(TargetsError, match=text):
            read(**more)
    fs.rm_file(root + name)
    with pytest.raises(TargetsError, match=f"{name}: missing, sealed with"):
        read()
    fs.pipe_file(root + name, whole)
    assert read() == 33
    fs.pipe_file(f"{root}/_engine/manifest.json", b'{"schema_name"')
    with pytest.raises(TargetsError, match=r"manifest.json: cannot be read"):
        read()
    fs.rm_file(f"{root}/_engine/manifest.json")
    with pytest.raises(TargetsError, match="no output of targetsmith"):
        read()


def test_a_foreign_file_of_the_right_size_is_refused(local: Path, tmp_path: Path) -> None:
    """The manifest's size and sha256 are made to fit, so that only the footer can tell."""
    fs = fsspec.filesystem("memory")
    fs.put(str(local), "/foreign/out", recursive=True)
    try:
        manifest = json.loads(fs.cat_file("/foreign/out/_engine/manifest.json"))
        first, second = (shard["files"]["student/small"] for shard in manifest["shards"][:2])
        fs.cp_file(f"/foreign/out/{second['name']}", f"/foreign/out/{first['name']}")
        first.update({key: second[key] for key in ("bytes", "sha256")})
        fs.pipe_file("/foreign/out/_engine/manifest.json", json.dumps(manifest).encode())
        with pytest.raises(TargetsError, match=r"'unit': '1'.*wanted.*'unit': '0'.*another run"):
            next(Targets("memory://foreign/out", "small").batches(4))
    finally:
        fs.rm("/foreign", recursive=True)


def test_an_unfinished_run_on_a_store(remote: tuple[str, dict[str, Any]]) -> None:
    url, options = remote
    fs, root = fsspec.url_to_fs(url, **options)
    manifest = json.loads(fs.cat_file(f"{root}/_engine/manifest.json"))
    head = {key: manifest[key] for key in ("schema_name", "schema_version", "fingerprint", "products")}
    fs.pipe_file(f"{root}/_engine/plan.json", json.dumps({**head, "units": [0, 1, 2]}).encode())
    for shard in manifest["shards"][:2]:
        seal = {**head, **shard}
        fs.pipe_file(f"{root}/_engine/shards/{shard['unit']:05d}.json", json.dumps(seal).encode())
    fs.rm_file(f"{root}/_engine/manifest.json")
    with pytest.raises(TargetsError, match=r"not finished \(2 of 3 units\)"):
        Targets(url, "small", storage_options=options)
    part = Targets(url, "small", storage_options=options, allow_partial=True)
    assert [document.doc_row for document in part.documents()] == list(range(22))


def test_what_cannot_be_reached_says_so(server: dict[str, Any]) -> None:
    with pytest.raises(TargetsError, match="no output of targetsmith"):
        Targets("memory://nothing/here")
    with pytest.raises(TargetsError, match=r"s3://nobody/out.*(no output|cannot be read)"):
        Targets("s3://nobody/out", storage_options=server)
    closed = {**server, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(TargetsError, match="check the address, the connection and storage_options"):
        Targets("s3://bucket/out", storage_options=closed)
    with pytest.raises(TargetsError, match="nostore://x/_engine: cannot be read"):
        Targets("nostore://x")


def test_a_file_url_is_the_local_folder(local: Path) -> None:
    assert Targets(f"file://{local}", "small").files == Targets(local, "small").files
