"""Corpora on stores: a real server that speaks S3, web servers with and without ranges, fsspec's memory. What changes is noticed;
who scores a unit reads it; nothing secret is written."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import pytest

from engine.corpus import remote
from engine.corpus.document import Document
from engine.corpus.scan import CorpusScan, scan_corpus
from engine.corpus.units import UnreadUnit, read_units
from schemas.errors import CorpusError, RunFileError
from schemas.runfile import CorpusConfig, parse_run
from tests.support.corpora import PACK, TEXTS, WRITE, corpus, jsonl, parquet, read
from tests.support.objectstores import bucket, endpoint

__all__ = ["bucket", "endpoint"]

SECRET = "X-Amz-Signature=0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "WAITS_S", (0.0, 0.0))
    remote._system.cache_clear()
    yield
    remote._system.cache_clear()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain web server: whole files only, as `python -m http.server` gives them. Counts bytes."""

    sent: dict[str, int] = {}
    broken: list[str] = []  # paths whose next answers are an error

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send_head(self):  # type: ignore[no-untyped-def]
        if self.command == "GET" and self.path in self.broken:
            self.broken.remove(self.path)
            self.send_error(503)
            return None
        return super().send_head()


class _Ranges(_Quiet):
    """One that gives parts, and an ETag."""

    def send_head(self):  # type: ignore[no-untyped-def]
        if self.command == "GET" and (self.path in self.broken or self.path.endswith("/")):
            return super().send_head()
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return None
        data, first, asked = path.read_bytes(), 0, self.headers.get("Range")
        etag = f'"{path.stat().st_mtime_ns}-{len(data)}"'
        self.send_response(206 if asked else 200)
        if asked:
            begin, end = asked.removeprefix("bytes=").split("-")
            first, whole = int(begin), len(data)
            data = data[first : int(end) + 1 if end else whole]
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{whole}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", etag)
        self.end_headers()
        if self.command == "GET":
            self.sent[path.name] = self.sent.get(path.name, 0) + len(data)
            self.wfile.write(data)
        return None


@pytest.fixture(params=[_Quiet, _Ranges])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(URL, folder) of a web server."""
    request.param.sent.clear()
    request.param.broken.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path
        server.shutdown()


def write(url: str, data: bytes) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)


def texts(config: CorpusConfig, folder: Path) -> list[str]:
    return [document.text for document in read(config, folder)]


def travelled(config: CorpusConfig, scan: CorpusScan, wanted: range) -> list[Document]:
    """The documents of units as an actor gets and reads them."""
    found = [pickle.loads(pickle.dumps(documents)) for _, documents in read_units(config, scan, wanted, unread=True)]
    return [document for documents in found for document in documents]


def test_every_format_on_a_store_is_read_like_a_file(bucket: str, tmp_path: Path) -> None:
    for kind in ("jsonl", "json", "parquet", "txt"):
        for codec in ("", ".gz", ".zst") if kind in ("jsonl", "parquet") else ("",):
            name = f"{kind}.{kind}{codec}"
            data = PACK[codec](WRITE[kind](TEXTS))
            (tmp_path / name).write_bytes(data)
            write(f"{bucket}/in/{name}", data)
    settings = {"delimiter": "<|>", "unit_documents": 2}
    mine, theirs = corpus(**settings), corpus(paths=[f"{bucket}/in/*"], **settings)
    assert texts(theirs, tmp_path) == texts(mine, tmp_path)
    near, far = scan_corpus(mine, tmp_path), scan_corpus(theirs, tmp_path)
    assert [file.unit_rows for file in near.files] == [file.unit_rows for file in far.files]
    assert [file.label for file in near.files] == [file.label for file in far.files]
    assert [document.doc_id for document in travelled(theirs, far, range(far.n_units))] == [
        document.doc_id for document in read(mine, tmp_path)
    ]


def test_who_scores_a_unit_fetches_little_more_than_it(bucket: str, tmp_path: Path) -> None:
    lines = [f"text {i} " + "x" * 1000 for i in range(400)]
    write(f"{bucket}/a.jsonl", b"\n" + jsonl(lines))
    write(f"{bucket}/b.parquet", parquet(lines, rows=40))
    write(f"{bucket}/c.jsonl.gz", gzip.compress(jsonl(lines)))
    write(f"{bucket}/d.parquet", parquet(lines, rows=400))
    config = corpus(paths=[f"{bucket}/*"], unit_documents=20)
    scan = scan_corpus(config, tmp_path)
    units = list(read_units(config, scan, range(scan.n_units), unread=True))
    apart = {scan.files[unit.file_index].label: isinstance(docs, UnreadUnit) for unit, docs in units}
    assert apart == {"a.jsonl": True, "b.parquet": True, "c.jsonl.gz": False, "d.parquet": False}
    here = [documents for _, documents in read_units(config, scan, range(scan.n_units))]
    unread = units[13][1]
    assert isinstance(unread, UnreadUnit) and len(pickle.dumps(unread)) < 4000 and 20_000 < unread.characters < 21_000
    assert [list(documents) for _, documents in units] == here and unread[3].place == here[13][3].place == "line 265"
    assert scan.files[0].unit_marks[13] == (1 + len(jsonl(lines[:260])), 262)


def test_a_file_that_changes_is_noticed_by_who_reads_it(bucket: str, tmp_path: Path) -> None:
    write(f"{bucket}/a.jsonl", jsonl(["one", "two"]))
    write(f"{bucket}/b.jsonl.gz", gzip.compress(jsonl(["three"])))
    config = corpus(paths=[f"{bucket}/a.jsonl", f"{bucket}/b.jsonl.gz"])
    scan = scan_corpus(config, tmp_path)
    units = list(read_units(config, scan, [0], unread=True))
    write(f"{bucket}/a.jsonl", jsonl(["one", "TWO"]))
    with pytest.raises(CorpusError, match=r"a\.jsonl: changed since .* written since.*another output folder"):
        list(units[0][1])
    again = scan_corpus(config, tmp_path)
    assert again.files[0].sha256 != scan.files[0].sha256 and again.files[1] == scan.files[1]
    fsspec.filesystem("s3").rm(f"{bucket}/b.jsonl.gz")
    with pytest.raises(CorpusError, match=r"b\.jsonl\.gz: the file is gone"):
        list(read_units(config, again, [1], unread=True))


def test_what_the_store_says_is_the_same_is_not_read_again(bucket: str, tmp_path: Path) -> None:
    for name, data in {"a.jsonl": jsonl(TEXTS), "b.parquet": parquet(TEXTS)}.items():
        write(f"{bucket}/{name}", data)
    config = corpus(paths=[f"{bucket}/*"], unit_documents=2)
    scan = scan_corpus(config, tmp_path)
    planned = scan.planned()
    for file in scan.files:  # nothing but what is told of the files can be had
        assert file.label
    again = scan_corpus(config, tmp_path, planned)
    assert again == scan and again.stamps == scan.stamps and not again.problems
    assert travelled(config, again, range(2, 5)) == travelled(config, scan, range(2, 5))
    write(f"{bucket}/a.jsonl", jsonl(["other"]))
    assert scan_corpus(config, tmp_path, planned).files[0].unit_rows == (1,)
    limited = corpus(paths=[f"{bucket}/*"], limit=1)
    first = scan_corpus(limited, tmp_path)
    assert scan_corpus(limited, tmp_path, first.planned()) == first and len(first.files) == 1


def test_web_servers(served: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = served
    for name, data in {
        "a.jsonl": jsonl(TEXTS),
        "b.parquet": parquet(TEXTS),
        "c.jsonl.gz": gzip.compress(jsonl(TEXTS)),
    }.items():
        (folder / name).write_bytes(data)
    paths = [f"{url}/a.jsonl?{SECRET}", f"{url}/b.parquet", f"{url}/*.gz"]
    config = corpus(paths=paths, unit_documents=2)
    _Quiet.broken.append("/b.parquet")  # once: it is asked again
    scan = scan_corpus(config, tmp_path / "elsewhere")
    assert [file.label for file in scan.files] == ["a.jsonl", "b.parquet", "c.jsonl.gz"]
    near = scan_corpus(corpus(paths=["a.jsonl"]), tmp_path)
    assert scan.files[0].sha256 == near.files[0].sha256  # the content's own: it does not matter who serves it
    assert SECRET not in json.dumps(scan.semantic())
    assert [document.text for document in travelled(config, scan, range(scan.n_units))] == TEXTS * 3
    os.utime(folder / "a.jsonl", (1, 1))
    with pytest.raises(CorpusError, match=r"/a\.jsonl: changed since") as caught:
        travelled(config, scan, range(1))
    assert SECRET not in str(caught.value)
    (folder / "a.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"/a\.jsonl: the file is gone") as caught:
        scan_corpus(config, tmp_path)
    assert SECRET not in str(caught.value)
    with pytest.raises(CorpusError, match="got no file"):
        scan_corpus(corpus(paths=[f"{url}/*.tsv"]), tmp_path)


def test_a_store_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"check the address, the credentials and the connection"):
        scan_corpus(corpus(paths=["http://127.0.0.1:9/a.jsonl"]), tmp_path)


def test_memory_and_files_by_url(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/corp/a.jsonl", jsonl(TEXTS))
    (tmp_path / "b.jsonl").write_bytes(jsonl(["near"]))
    config = corpus(paths=["memory://corp/*.jsonl", f"file://{tmp_path}/b.jsonl"])
    assert texts(config, tmp_path) == ["near", *TEXTS]
    with pytest.raises(CorpusError, match="got a folder; wanted files"):
        scan_corpus(corpus(paths=["memory://corp"]), tmp_path)
    fs.pipe_file("/corp/empty.jsonl", b"")
    with pytest.raises(CorpusError, match="empty file"):
        scan_corpus(corpus(paths=["memory://corp/empty.jsonl"]), tmp_path)
    fs.pipe_file("/corp/c.jsonl", gzip.compress(jsonl(TEXTS)))
    with pytest.raises(CorpusError, match="first bytes are those of gzip"):
        scan_corpus(corpus(paths=["memory://corp/c.jsonl"]), tmp_path)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("ftp://host/a.jsonl", "a path, or one URL of s3://"),
        ("zip://a.jsonl::s3://bucket/a.zip", "a path, or one URL"),
        ("https://user:password@host/a.jsonl", "without user and password"),
        ("s3://key:secret@bucket/a.jsonl", "without user and password"),
    ],
)
def test_urls_that_are_refused(path: str, told: str) -> None:
    table = {"output": "out", "teacher": {"model": "m"}, "corpus": {"paths": [path]}, "targets": {"bytes": True}}
    with pytest.raises(RunFileError, match=told) as caught:
        parse_run(table, base_dir=Path())
    assert "password@" not in str(caught.value) and "secret@" not in str(caught.value)
