"""Tables, archives, other encodings, objects over several lines, folders of `save_to_disk`: each read as people have them."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from engine.corpus.scan import scan_corpus
from tests.support.corpora import TEXTS, corpus, jsonl, problems, read, refused
from tests.support.vocabularies import SHARED

CASES = SHARED / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared data: set TARGETSMITH_SHARED")
@pytest.mark.parametrize(
    ("name", "settings", "texts"),
    [
        ("pretty_objects.jsonl", {}, ["First.", "Second."]),
        ("utf16.jsonl", {}, ["Déjà vu."]),
        ("utf16.jsonl", {"encoding": "utf-16"}, ["Déjà vu."]),
        ("latin1.jsonl", {"encoding": "latin-1"}, ["Déjà vu."]),
        ("table.csv", {"id": "id"}, ["Hello, you.", "A second line\nin one field."]),
    ],
)
def test_cases(name: str, settings: dict[str, str], texts: list[str]) -> None:
    assert [document.text for document in read(corpus(paths=[name], **settings), CASES)] == texts


def archive(members: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.mark.parametrize(("suffix", "packed"), [("", bytes), (".xz", lzma.compress), (".bz2", bz2.compress)])
def test_each_format_in_each_compression(suffix: str, packed: type, tmp_path: Path) -> None:
    table, sink = pa.table({"text": TEXTS}), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    files = {
        "a.jsonl": jsonl(TEXTS),
        "b.arrow": sink.getvalue(),
        "c.csv": b"text,n\n" + "".join('"' + t.replace('"', '""') + '",1\n' for t in TEXTS).encode(),
        "d.tar": archive({f"x/{i}.txt": text for i, text in enumerate(TEXTS)}),
    }
    for name, data in files.items():
        (tmp_path / (name + suffix)).write_bytes(packed(data))
        found = read(corpus(paths=[name + suffix]), tmp_path)
        assert [document.text for document in found] == TEXTS, name
        if suffix:
            (tmp_path / (name + suffix)).write_bytes(packed(data)[:-7])
            assert "damaged" in refused(corpus(paths=[name + suffix]), tmp_path), name


def test_arrow_files_and_units(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(700)]
    table = pa.table({"text": texts})
    with pa.ipc.new_file(str(tmp_path / "a.feather"), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    found = read(corpus(unit_documents=100), tmp_path)
    assert [document.text for document in found] == texts and found[699].doc_id == "a.feather#699"


def test_tables_with_odd_rows(tmp_path: Path) -> None:
    rows = b'\xef\xbb\xbfname\ttext\na\tone\n\nb\ttwo\tmore\nc\t"two\nlines"\nd\tcaf\xe9\n'
    (tmp_path / "a.tsv").write_bytes(rows)
    found = read(corpus(id="name"), tmp_path)
    assert [document.text for document in found] == ["one", "", "two\nlines", ""]
    assert list(problems(found).values()) == ["malformed_row", "invalid_utf8"]
    assert 'wanted "body" once' in refused(corpus(text="body"), tmp_path)


def test_archives_of_samples(tmp_path: Path) -> None:
    members = {
        "s/1.json": '{"caption": "A dog."}', "s/1.jpg": "no text", "s/2.json": '{"caption": "A cat."}', "s/3.jpg": "x",
        "s/4.json": "{", "s/5.seg.txt": "no column",
    }  # fmt: skip
    (tmp_path / "a.tar").write_bytes(archive(members))
    found = read(corpus(text="caption", id="__key__"), tmp_path)
    assert [document.text for document in found] == ["A dog.", "A cat.", ""]
    assert [document.doc_id for document in found] == ["s/1", "s/2", "a.tar#2"]
    assert list(problems(found).values()) == ["malformed_json"]


def test_objects_over_several_lines(tmp_path: Path) -> None:
    objects = [{"text": text, "inner": {"a": [1, {"b": 2}]}} for text in TEXTS]
    for name, indent in (("a.jsonl", 2), ("a.json", 4)):
        whole = "\n".join(json.dumps(item, indent=indent) for item in objects)
        (tmp_path / name).write_text(whole, encoding="utf-8")
        assert [d.text for d in read(corpus(paths=[name]), tmp_path)] == TEXTS
    broken = '{\n  "text": "one"\n}\n{\n  "text": \n{\n  "text": "three"\n}\n'
    (tmp_path / "b.jsonl").write_text(broken)
    found = read(corpus(paths=["b.jsonl"]), tmp_path)
    assert [document.text for document in found] == ["one", "", "three"] and found[2].place == "line 6"
    (tmp_path / "c.jsonl").write_bytes(b"{\n" + jsonl(["one", "two"]))  # a bad line of a file of lines
    found = read(corpus(paths=["c.jsonl"]), tmp_path)
    assert [document.text for document in found] == ["", "one", "two"]


def test_encodings(tmp_path: Path) -> None:
    for name in ("utf-16-le", "utf-32", "cp1252", "shift_jis"):
        text = "ÄÖ" if name == "cp1252" else "日本" if name == "shift_jis" else "é😀"
        (tmp_path / "a.txt").write_bytes(f"{text}<e>{text}".encode(name))
        found = read(corpus(encoding=name, delimiter="<e>"), tmp_path)
        assert [document.text for document in found] == [text, text]
    (tmp_path / "a.txt").write_bytes("ab".encode("utf-16") + b"\x00")
    assert "damaged" in refused(corpus(), tmp_path)
    for wrong in ("klingon", "base64"):
        with pytest.raises(ValueError, match=f"encoding: .{wrong}"):
            corpus(encoding=wrong)


def test_fields_in_columns_and_lists_of_texts(tmp_path: Path) -> None:
    items = [{"doc": {"text": ["a", "b"], "id": 7}}, {"doc": {"text": [], "id": 8}}, {"doc": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    datasets.Dataset.from_list(items).to_parquet(str(tmp_path / "b.parquet"))
    for name in ("a.jsonl", "b.parquet"):
        found = read(corpus(paths=[name], text="doc.text", id="doc.id", join="\n"), tmp_path)
        assert [document.text for document in found] == ["a\nb", "", ""] and found[0].doc_id == "7"
        told = refused_all(corpus(paths=[name], text="doc.text"), tmp_path)
        assert "not_text" in told
    assert 'wanted "none.text" once' in refused(corpus(paths=["b.parquet"], text="none.text"), tmp_path)


def refused_all(config: object, folder: Path) -> set[str]:
    return set(problems(read(config, folder)).values())  # pyright: ignore[reportArgumentType]


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": TEXTS})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "several")
    assert [d.text for d in read(corpus(dataset="one"), tmp_path)] == TEXTS
    assert [d.text for d in read(corpus(dataset="several"), tmp_path)] == TEXTS
    assert [d.text for d in read(corpus(dataset="several", split="test"), tmp_path)] == TEXTS[1:2]
    assert scan_corpus(corpus(dataset="one"), tmp_path).files[0].sha256 == (
        scan_corpus(corpus(dataset="several"), tmp_path).files[0].sha256
    )
    assert "got the splits train, test" in refused(corpus(dataset="several", split="dev"), tmp_path)
    assert "holds one table" in refused(corpus(dataset="one", split="test"), tmp_path)


def test_a_folder_of_save_to_disk_among_paths_is_answered_with_the_key(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"question": TEXTS, "answer": TEXTS})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "several")
    for name in ("one", "several"):
        assert f'write dataset = "{name}"' in refused(corpus(paths=[f"{name}/"]), tmp_path)
        told = refused(corpus(dataset=name), tmp_path)
        assert 'prompt = "question" and completion = "answer"' in told and r'template = "{question}\n{answer}"' in told
    (tmp_path / "plain").mkdir()
    assert 'for example "plain/*.jsonl"' in refused(corpus(paths=["plain"]), tmp_path)
