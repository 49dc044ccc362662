"""Records of real files: every kind and compression, bad records, bad files."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.corpora import PACK, TEXTS, WRITE, corpus, jsonl, parquet, problems, read, refused, zst

# ==== every kind of file


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", WRITE)
def test_every_kind_gives_the_same_texts(tmp_path: Path, kind: str, packed: str) -> None:
    name = f"a.{kind}{packed}"
    (tmp_path / name).write_bytes(PACK[packed](WRITE[kind](TEXTS)))
    documents = read(corpus(delimiter="<|>"), tmp_path)
    assert [document.text for document in documents] == TEXTS
    assert [document.doc_id for document in documents] == [f"{name}#{row}" for row in range(len(TEXTS))]
    assert {document.source for document in documents} == {name} and problems(documents) == {}


def test_suffixes_in_capitals_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(jsonl(["x"])))
    assert [document.text for document in read(corpus(), tmp_path)] == ["x"]


def test_several_gzip_members_and_zstd_frames_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(["1"])) + gzip.compress(jsonl(["2"])))
    (tmp_path / "b.jsonl.zst").write_bytes(zst(jsonl(["3"])) + zst(jsonl(["4"])))
    assert [document.text for document in read(corpus(), tmp_path)] == ["1", "2", "3", "4"]


def test_json_in_an_object_of_one_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('\ufeff{"version": 1, "data": [{"text": "x"}, {"text": "y"}]}', encoding="utf-8")
    assert [document.text for document in read(corpus(), tmp_path)] == ["x", "y"]


def test_plain_text_without_delimiter_is_one_document_kept_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n")
    (document,) = read(corpus(), tmp_path)
    assert document.text == "\ufeffone\r\ntwo\r\n\r\n" and document.place == "line 1"


def test_plain_text_places_and_closing_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n--\ntwo\nlines\n--\n  \n--\nfour\n--\n \n")
    documents = read(corpus(delimiter="\n--\n"), tmp_path)
    assert [document.text for document in documents] == ["one", "two\nlines", "", "four"]
    assert [document.place for document in documents] == ["line 1", "line 3", "line 6", "line 8"]
    assert problems(documents) == {"line 6": "empty_text"}


def test_a_delimiter_across_two_reads_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.corpus.records.CHUNK_BYTES", 3)
    (tmp_path / "a.txt").write_text("abcd<eos>ef<eos><eos>g<eo<eos>")
    assert [document.text for document in read(corpus(delimiter="<eos>"), tmp_path)] == ["abcd", "ef", "", "g<eo"]


def test_arrow_texts_of_other_types(tmp_path: Path) -> None:
    kinds = [pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
    for number, kind in enumerate(kinds):
        column = pa.array(["é", None, ""], pa.string())
        column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
        (tmp_path / f"{number}.parquet").write_bytes(parquet(pa.table({"text": column})))
    documents = read(corpus(), tmp_path)
    assert [document.text for document in documents] == ["é", "", ""] * len(kinds)
    assert [document.problem and document.problem[0] for document in documents] == (
        [None, "not_text", "empty_text"] * len(kinds)
    )


# ==== bad records


BAD_LINES = [
    (b'{"text": "good"}', None),
    (b'{"text": "cut', "malformed_json"),
    (b"not json", "malformed_json"),
    (b'["text"]', "malformed_json"),
    (b'"text"', "malformed_json"),
    (b"[" * 100_000, "malformed_json"),
    (b'{"text": "x", "n": ' + b"1" * 5000 + b"}", "malformed_json"),
    (b'{"body": "x"}', "missing_column"),
    (b'{"text": null}', "not_text"),
    (b'{"text": 3}', "not_text"),
    (b'{"text": ["x"]}', "not_text"),
    (b'{"text": true}', "not_text"),
    (b'{"text": {"x": 1}}', "not_text"),
    (b'{"text": ""}', "empty_text"),
    (b'{"text": " \\n\\t\\u3000"}', "empty_text"),
    (b'{"text": "caf\xe9"}', "invalid_utf8"),
    (b'{"text": "\xed\xa0\x80"}', "invalid_utf8"),
    (b'{"text": "\\ud800"}', "invalid_utf8"),
    (b'{"text": "\\ude00\\ud83d"}', "invalid_utf8"),
    (b'{"text": "\\ud83d\\ude00"}', None),
    (b'{"text": "nul\\u0000"}', None),
    (b'{"\\udc00": 1}', "missing_column"),
]


def test_bad_lines_are_problems_with_true_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n  \r\n".join(line for line, _ in BAD_LINES))
    documents = read(corpus(), tmp_path)
    found = [(document.place, document.problem and document.problem[0]) for document in documents]
    assert found == [(f"line {1 + 2 * number}", reason) for number, (_, reason) in enumerate(BAD_LINES)]
    assert all(document.problem[1].isascii() and document.problem[1] for document in documents if document.problem)
    assert [document.text for document in documents if not document.problem] == ["good", "😀", "nul\x00"]


def test_the_detail_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "x", "n": 1}\n{"text": [1]}\n{"text" 1}\n{"text": "\xff"}\n')
    details = [document.problem[1] for document in read(corpus(), tmp_path) if document.problem]
    assert details == [
        'no column "text"; got "body", "n"',
        'column "text" is a list, wanted text',
        "Expecting ':' delimiter at character 9",
        "byte 0xff at offset 10: invalid start byte",
    ]


def test_bad_records_of_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"text": "ok"}, "x", {"text": 1}, {"text": "\xff"}, {"text": "\\ud800"}, {}]')
    assert problems(read(corpus(), tmp_path)) == {
        "row 1": "malformed_json", "row 2": "not_text", "row 3": "invalid_utf8", "row 4": "invalid_utf8",
        "row 5": "missing_column",
    }  # fmt: skip


def test_bytes_that_are_not_utf8_in_parquet_and_plain_text(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"\xff", b"fine"], pa.binary())
    damaged = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])  # Arrow does not check either
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"text": damaged})))
    (tmp_path / "b.txt").write_bytes(b"ok|\xff|fine")
    documents = read(corpus(delimiter="|"), tmp_path)
    assert [document.text for document in documents] == ["ok", "", "fine"] * 2
    assert [document.doc_id for document in documents if document.problem] == ["a.parquet#1", "b.txt#1"]
    assert {document.problem[0] for document in documents if document.problem} == {"invalid_utf8"}


def test_a_parquet_column_of_another_type_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"text": [[1], [2]]})))
    documents = read(corpus(), tmp_path)
    assert documents[1].problem == ("not_text", 'column "text" is of type list<element: int64>, wanted text')


def test_a_line_of_one_megabyte(tmp_path: Path) -> None:
    text = "wörd " * 200_000
    (tmp_path / "a.jsonl").write_bytes(jsonl(["before", text, "after"]))
    assert [document.text for document in read(corpus(), tmp_path)] == ["before", text, "after"]


# ==== id and template


def test_ids_of_a_column(tmp_path: Path) -> None:
    lines = ['{"id": "a", "text": "x"}', '{"id": 7, "text": "y"}', '{"id": null, "text": "z"}', '{"text": "z"}',
             '{"id": "", "text": "z"}', '{"id": "a", "text": "again"}', '{"id": "b", "text": ""}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents = read(corpus(id="id"), tmp_path)
    assert [document.doc_id for document in documents] == ["a", "7", *(f"a.jsonl#{row}" for row in range(2, 7))]
    assert problems(documents) == {
        "line 3": "not_text", "line 4": "missing_column", "line 5": "not_text", "line 6": "duplicate_id",
        "line 7": "empty_text",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_template_joins_columns(tmp_path: Path, kind: str) -> None:
    rows = [{"q": "1+1?", "a": 2}, {"q": "why?", "a": None}]
    data = "\n".join(map(json.dumps, rows)).encode() if kind == "jsonl" else parquet(pa.Table.from_pylist(rows))
    (tmp_path / f"a.{kind}").write_bytes(data)
    good, bad = read(corpus(template="Q: {q}\n{{A}}: {a}"), tmp_path)
    assert good.text == "Q: 1+1?\n{A}: 2"
    assert bad.problem == ("not_text", 'column "a" is null, wanted text')


# ==== bad files


def test_no_match_names_the_pattern_and_the_folder(tmp_path: Path) -> None:
    message = refused(corpus(paths=["data/*.jsonl"]), tmp_path)
    assert "'data/*.jsonl': got no file" in message and str(tmp_path) in message and "Correct the path" in message


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert 'Write for example "data/*.jsonl"' in refused(corpus(paths=["data/"]), tmp_path)
    assert "got no file" in refused(corpus(paths=["da*"]), tmp_path)


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.jsonl.lz4", "a.gz"])
def test_an_unknown_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(jsonl(["x"]))
    message = refused(corpus(paths=[name]), tmp_path)
    assert str(tmp_path / name) in message and "wanted one of .jsonl, .ndjson, .json" in message


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]))
    (tmp_path / "b.jsonl").touch()
    message = refused(corpus(), tmp_path)
    assert "b.jsonl: got an empty file" in message and "take it out" in message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b"\n \n"),
        ("a.json", b"[]"),
        ("a.json.gz", gzip.compress(b"", mtime=0)),
        ("a.txt", b"\n"),
        ("a.txt.zst", zst(b"")),
        ("a.parquet", parquet([])),
    ],
)
def test_a_corpus_without_records(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    if data != parquet([]):
        assert f"{name}: got no record at all" in refused(corpus(delimiter="|"), tmp_path)
    else:
        assert "got no record at all" in refused(corpus(), tmp_path)


def many() -> list[str]:
    return [os.urandom(2000).hex() for _ in range(300)]  # does not shrink, so that damage lies deep in the file


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "txt", "parquet"])
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, kind: str, packed: str) -> None:
    data = PACK[packed](WRITE[kind](many()))
    (tmp_path / f"a.{kind}{packed}").write_bytes(data[: len(data) * 2 // 3])
    message = refused(corpus(delimiter="<|>"), tmp_path)
    assert f"a.{kind}{packed}: damaged" in message and f"complete {packed} " in message
    if kind == "jsonl":
        assert "damaged after line" in message


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.parquet.gz"])
def test_a_file_that_is_not_what_its_suffix_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello\n" * 20)
    assert f"{name}: damaged before its first record" in refused(corpus(), tmp_path)


def test_a_damaged_page_of_parquet_names_the_row(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": many()})
    pq.write_table(
        table,
        sink,
        row_group_size=100,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    data = bytearray(sink.getvalue().to_pybytes())
    at = pq.read_metadata(pa.BufferReader(data)).row_group(1).column(0).data_page_offset
    data[at + 1000] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    assert "a.parquet: damaged after row 99" in refused(corpus(), tmp_path)


@pytest.mark.parametrize("data", [b'[{"text": "x"},\n}', b'{"text": "x"}\n["y"]\n'])
def test_json_that_is_not_json_names_the_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    message = refused(corpus(), tmp_path)
    assert "a.json, line 2, column 1: not valid JSON" in message and "rename the file to .jsonl" in message


@pytest.mark.parametrize("data", [b"3", b'{"text": "x"}', b'{"a": [], "b": []}'])
def test_json_without_one_list(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    assert "wanted a list of objects" in refused(corpus(), tmp_path)


def test_json_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[" * 100_000)
    assert "not readable as JSON" in refused(corpus(), tmp_path)


@pytest.mark.parametrize("settings", [{}, {"text": "body", "id": "key"}, {"template": "{body}{title}"}])
def test_parquet_without_the_column_names_those_it_has(tmp_path: Path, settings: dict[str, str]) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"body": ["x"], "n": [1]})))
    message = refused(corpus(**settings), tmp_path)
    assert 'a.parquet: got the columns "body", "n"; wanted "' in message and "Correct [corpus] text" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x"]))
    (tmp_path / "a.jsonl").chmod(0)
    assert "Permission denied" in refused(corpus(), tmp_path)
