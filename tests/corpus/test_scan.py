"""The corpus on real files: which files, the names of documents, the cut into units, datasets."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus.cut import split_units
from engine.corpus.files import labels
from engine.corpus.scan import CorpusScan, scan_corpus
from engine.corpus.units import read_units
from schemas.errors import CorpusError
from schemas.plan_inputs import corpus_files_of
from tests.support.corpora import PACK, TEXTS, WRITE, corpus, jsonl, parquet, problems, read, refused, zst

# ==== files and names


def test_files_are_sorted_each_once_over_all_patterns(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl", "a/deep/y.txt", "c[1].jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([name]) if name.endswith("l") else name.encode())
    config = corpus(paths=["./b.jsonl", "c[1].jsonl", "**/*.*", str(tmp_path / "a" / "z.jsonl")])
    scan = scan_corpus(config, tmp_path)
    assert [file.label for file in scan.files] == ["a/deep/y.txt", "a/z.jsonl", "b.jsonl", "c[1].jsonl"]
    assert [document.text for document in read(config, tmp_path)] == [file.label for file in scan.files]


def test_files_elsewhere_have_the_shortest_label_that_tells_them_apart(tmp_path: Path) -> None:
    base = tmp_path / "runs"
    base.mkdir()
    paths = [base / "a.jsonl", tmp_path / "x/p/a.jsonl", tmp_path / "y/p/a.jsonl", tmp_path / "b.jsonl"]
    assert labels([str(path) for path in paths], base) == ["a.jsonl", "x/p/a.jsonl", "y/p/a.jsonl", "b.jsonl"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jsonl([str(path)]))
    documents = read(corpus(paths=["../**/*.jsonl"]), base)
    assert [document.doc_id for document in documents] == ["b.jsonl#0", "a.jsonl#0", "x/p/a.jsonl#0", "y/p/a.jsonl#0"]


names = st.lists(st.sampled_from(["a", "b", "base"]), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(st.sets(names.filter(lambda path: path != "/base"), min_size=1, max_size=8))
def test_labels_are_all_different_and_end_their_paths(paths: set[str]) -> None:
    found = labels(sorted(paths), Path("/base"))
    assert len(set(found)) == len(paths)
    assert all(("/" + path).endswith("/" + label) for path, label in zip(sorted(paths), found, strict=True))


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    with open(name, "wb") as stream:
        stream.write(jsonl(["x"]))
    assert "Rename the file" in refused(corpus(), tmp_path)


def test_limit_counts_over_the_whole_corpus(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl([name + str(row) for row in range(3)]))
    config = corpus(limit=4)
    assert [document.text for document in read(config, tmp_path)] == ["a0", "a1", "a2", "b0"]
    assert [file.n_rows for file in scan_corpus(config, tmp_path).files] == [3, 1]


# ==== units


@given(
    sizes=st.lists(st.integers(0, 30), max_size=60),
    unit_documents=st.integers(1, 8),
    unit_bytes=st.integers(1, 50),
)
def test_units_take_every_record_once_within_the_limits(sizes: list[int], unit_documents: int, unit_bytes: int) -> None:
    rows = list(split_units(sizes, unit_documents, unit_bytes))
    assert sum(rows) == len(sizes)
    first = 0
    for n_rows in rows:
        unit = sizes[first : first + n_rows]
        assert 1 <= n_rows <= unit_documents and (n_rows == 1 or sum(unit) <= unit_bytes)
        # Nor is a unit closed too early: one more record would break a limit.
        more = sizes[first : first + n_rows + 1]
        assert len(more) == n_rows or len(more) > unit_documents or sum(more) > unit_bytes
        first += n_rows


@settings(deadline=None)
@given(st.data())
def test_any_units_are_read_as_in_the_whole_corpus(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    kinds = data.draw(st.lists(st.sampled_from(["jsonl", "json", "parquet", "txt"]), min_size=1, max_size=3))
    expected = []
    for number, kind in enumerate(kinds):
        texts = [f"{number}.{row} " + "x" * row for row in range(data.draw(st.integers(1, 12)))]
        (folder / f"{number}.{kind}").write_bytes(WRITE[kind](texts))
        expected += texts
    unit_documents, unit_bytes = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60))
    config = corpus(delimiter="<|>", unit_documents=unit_documents, unit_bytes=unit_bytes)
    scan = scan_corpus(config, folder)
    semantic = json.loads(json.dumps({"corpus": scan.semantic()}))
    assert CorpusScan.of_plan(corpus_files_of(semantic), folder) == scan  # files here are labelled by their paths
    units = list(scan.units())
    assert [unit.index for unit in units] == list(range(scan.n_units)) and scan.n_rows == len(expected)
    wanted = data.draw(st.sets(st.sampled_from(range(scan.n_units))))
    for unit, documents in read_units(config, scan, wanted):
        wanted.remove(unit.index)
        assert unit == units[unit.index] and {document.source for document in documents} == {
            scan.files[unit.file_index].label
        }
        assert [document.text for document in documents] == expected[unit.doc_row : unit.doc_row + unit.n_rows]
        assert [document.doc_row for document in documents] == list(range(unit.doc_row, unit.doc_row + unit.n_rows))
    assert not wanted


def test_unwanted_units_are_passed_over_without_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([str(row) for row in range(20)]))
    config = corpus(unit_documents=2)
    scan = scan_corpus(config, tmp_path)
    parsed = []
    loads = json.loads
    monkeypatch.setattr("engine.corpus.json_files.json.loads", lambda text: parsed.append(text) or loads(text))
    assert [unit.index for unit, _ in read_units(config, scan, {1, 5})] == [1, 5]
    assert len(parsed) == 4


def test_unwanted_row_groups_and_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet([os.urandom(500).hex() for _ in range(6)], rows=2))
    (tmp_path / "b.jsonl").write_bytes(jsonl(["x"]))
    config = corpus(unit_documents=2)
    scan = scan_corpus(config, tmp_path)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0)
    start = at.dictionary_page_offset or at.data_page_offset
    data[start : start + 400] = bytes(400)  # its header, so that no reader could go on
    (tmp_path / "a.parquet").write_bytes(data)
    os.utime(tmp_path / "a.parquet", ns=(0, int(scan.stamps[0])))  # as damage of a disk
    assert [unit.index for unit, _ in read_units(config, scan, {0, 2, 3})] == [0, 2, 3]
    with pytest.raises(CorpusError, match="damaged"):
        list(read_units(config, scan, {1}))
    (tmp_path / "a.parquet").unlink()
    assert [unit.index for unit, _ in read_units(config, scan, {3})] == [3]


@pytest.mark.parametrize("packed", PACK)
def test_memory_is_a_unit_not_a_file(tmp_path: Path, packed: str) -> None:
    with open(tmp_path / f"a.jsonl{packed}", "wb") as stream:
        stream.write(PACK[packed](jsonl(["word " * 2000] * 3000)))  # 30 MB of text
    config = corpus(unit_bytes=100_000)
    tracemalloc.start()
    scan = scan_corpus(config, tmp_path)
    assert sum(len(documents) for _, documents in read_units(config, scan, range(10**9))) == 3000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(file.text_bytes for file in scan.files) == 30_000_000 and peak < 8_000_000


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl(["aaa", "bbb"]))
    config = corpus()
    scan = scan_corpus(config, tmp_path)
    file.write_bytes(jsonl(["aaa", "bbb", "c"]))
    with pytest.raises(CorpusError, match=r"a\.jsonl: changed .* got 46 bytes, wanted 32 bytes.*another output folder"):
        list(read_units(config, scan, {0}))
    file.write_bytes(jsonl(["a"]).ljust(32))  # as many bytes, fewer records
    with pytest.raises(CorpusError, match="changed .* got 32 bytes written since"):
        list(read_units(config, scan, {0}))
    os.utime(file, ns=(0, int(scan.stamps[0])))
    with pytest.raises(CorpusError, match="changed .* got 1 record, wanted 2"):
        list(read_units(config, scan, {0}))
    file.unlink()
    with pytest.raises(CorpusError, match="cannot be read any more"):
        list(read_units(config, scan, {0}))


def test_the_scan_does_not_depend_on_where_the_corpus_lies(tmp_path: Path) -> None:
    scans = []
    for folder in (tmp_path / "x" / "runs", tmp_path / "y" / "runs"):
        folder.mkdir(parents=True)
        (folder.parent / "a.jsonl").write_bytes(jsonl(TEXTS))
        scans.append(scan_corpus(corpus(paths=[str(folder.parent / "a.jsonl")]), folder))
    assert scans[0].semantic() == scans[1].semantic() and scans[0].files != scans[1].files


# ==== Hugging Face datasets


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what `datasets` writes out of the home folder, and its progress bars out of the log."""
    import datasets
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_dataset_in_a_local_folder(tmp_path: Path, cache: None, kind: str) -> None:
    for split, texts in (("train", TEXTS), ("test", ["t"])):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / f"0.{kind}").write_bytes(WRITE[kind](texts))
    documents = read(corpus(dataset="data", unit_documents=2), tmp_path)
    assert [document.text for document in documents] == TEXTS
    assert documents[3].doc_id == "data#3" and documents[3].place == "row 3"
    assert [document.text for document in read(corpus(dataset="data", split="test"), tmp_path)] == ["t"]
    config = corpus(dataset="./data", limit=5, unit_documents=2)
    scan = scan_corpus(config, tmp_path)
    ((unit, (document,)),) = read_units(config, scan, {2})
    assert unit.n_rows == 1 and document.text == TEXTS[4]


def test_the_digest_of_a_dataset_follows_its_content(tmp_path: Path, cache: None) -> None:
    digests = []
    for folder, texts in (("a", ["x", "yz"]), ("b", ["x", "yz"]), ("c", ["xy", "z"])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_bytes(jsonl(texts))
        digests.append(scan_corpus(corpus(dataset=folder), tmp_path).files[0].sha256)
    assert digests[0] == digests[1] != digests[2]


def test_bad_datasets(tmp_path: Path, cache: None) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(b'{"text": "x", "body": "y"}\n{"text": null, "body": "z"}\n')
    assert problems(read(corpus(dataset="data"), tmp_path)) == {"row 1": "not_text"}
    assert 'got the columns "text", "body"; wanted "nope"' in refused(corpus(dataset="data", text="nope"), tmp_path)
    assert "split 'no': cannot be loaded" in refused(corpus(dataset="data", split="no"), tmp_path)
    assert "got no folder" in refused(corpus(dataset="./none"), tmp_path)
    assert "got the file" in refused(corpus(dataset="data/train.jsonl"), tmp_path)
    (folder / "train.jsonl").write_bytes(b'{"text": "x"\n')
    assert "cannot be loaded" in refused(corpus(dataset="data"), tmp_path)


# ==== files that are not what they are called


@pytest.mark.parametrize("name", ["a.xlsx", "a.jsonl.lz4", "a.jsonl.br", "a.zip", "a"])
def test_an_unknown_suffix_is_refused_before_any_file_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_bytes(b"")  # the first in order; read, it would be called empty
    (tmp_path / name).write_bytes(b"x")
    said = refused(corpus(paths=["*"]), tmp_path)
    assert name in said and ".jsonl, .ndjson, .json, .csv" in said and ".gz, .zst, .xz, .bz2" in said


CONTENTS = {
    "gzip": gzip.compress(b'{"text": "a"}\n'),
    "Zstandard": zst(b'{"text": "a"}\n'),
    "xz": lzma.compress(b'{"text": "a"}\n'),
    "bzip2": bz2.compress(b'{"text": "a"}\n'),
    "zip": b"PK\x03\x04 and so on",
    "Parquet": parquet(["a"]),
    "Arrow IPC": b"ARROW1\x00\x00",
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", ["b.jsonl", "b.txt", "b.json", "b.parquet", "b.jsonl.gz", "b.txt.zst"])
def test_content_of_another_kind_than_the_name_says_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / name).write_bytes(CONTENTS[kind])
    right = {"Parquet": ".parquet", "gzip": ".gz", "Zstandard": ".zst"}.get(kind)
    said = refused(corpus(paths=["*"]), tmp_path)
    if right and name.endswith(right):
        assert "a.jsonl: got an empty file" in said
    else:
        assert name in said and f"those of {kind}" in said and "rename the file to what it is" in said


# ==== real text


SHARED = Path(os.environ.get("TARGETSMITH_SHARED", Path(__file__).resolve().parents[3] / "shared"))


@pytest.mark.skipif(not (SHARED / "text").is_dir(), reason="no shared data: set TARGETSMITH_SHARED")
def test_real_texts() -> None:
    documents = read(corpus(paths=["text/udhr.jsonl", "text/openlogic.tex", "text/tinyshakespeare.txt"]), SHARED)
    assert len(documents) > 3 and not problems(documents)
    texts = {document.source: document.text for document in documents}
    assert texts["text/openlogic.tex"].encode() == (SHARED / "text" / "openlogic.tex").read_bytes()
    config = corpus(paths=["text/gsm8k/test.jsonl"], template="{question}\n{answer}")
    raw = (SHARED / "text" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    expected = ["{question}\n{answer}".format(**json.loads(line)) for line in raw]
    assert [document.text for document in read(config, SHARED)] == expected
