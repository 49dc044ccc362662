"""targetsmith verify: what it says of sound, unfinished and damaged outputs, and what only the live teacher can find."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.dataset.parquet import flat
from engine.verify.output import verify
from schemas.manifest import canonical_json
from schemas.runfile import load_run
from tests.jobs.test_cli import call
from tests.support.mutations import parquet_files, reseal
from tests.support.mutations_rows import rewrite
from tests.support.runs import ASSETS, TEXTS, score_here, score_run, write_run


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = write_run(
        tmp_path_factory.mktemp("run"),
        texts=TEXTS[2:],
        lines='{"id": "bad", "text": ""}\n',
        targets="top_k = 16\nmax_nodes_per_token = 1",
        students={"sp": ASSETS / "student_sp"},
    )
    score_here(file)
    return file


@pytest.fixture
def out(run_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_file.parent / "out", tmp_path / "copy"))


def change(out: Path, product: str, name: str, at: int, value: float) -> str:
    """One value of the product's first file, everything sealed anew; returns the file's name."""
    path = next(path for path in parquet_files(out) if product in path.parts)
    table = pq.read_table(path).replace_schema_metadata(None).combine_chunks()
    values = flat(table, name).copy()
    values[at] = value
    index = table.schema.get_field_index(name)
    field = table.schema.field(index)
    new = pa.ListArray.from_arrays(table.column(index).combine_chunks().offsets, pa.array(values), type=field.type)
    rewrite(path, table.set_column(index, field, new))
    reseal(out, path)
    return path.relative_to(out).as_posix()


def test_a_sound_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", out) == 0
    said = capsys.readouterr().out
    assert "finished, 2 of 2 units sealed" in said and "sound: nothing found" in said
    assert call("verify", out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] and report["finished"] and (report["documents"], report["quarantined"]) == (3, 1)


def test_an_unfinished_run_is_said_to_be_so(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "_engine/manifest.json").unlink()
    (out / "_engine/shards/00001.json").unlink()
    assert call("verify", out) == 0
    said = capsys.readouterr().out
    assert "note: the run is not finished: 1 of 2 units sealed (first without: 1)" in said
    assert call("verify", out, "--complete") == 1
    assert "no manifest; 1 of 2 units sealed" in capsys.readouterr().out
    (out / "_engine/shards/00000.json").unlink()
    assert call("verify", out) == 0
    assert capsys.readouterr().out.endswith("\nsound, but nothing is published yet\n")


def test_a_finding_has_its_place(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = change(out, "teacher", "gold_logp", 3, 0.5)
    (out / "data/teacher/more.parquet").write_bytes(b"")
    assert call("verify", out) == 1
    said = capsys.readouterr().out
    assert f"{name}, document 't0', position 3, gold_logp: found gold log-probability 0.5; wanted <= 0" in said
    assert "a damaged file is copied again, or removed and made anew" in said.splitlines()[-1]
    assert "data/teacher/more.parquet: found a file that is in no seal" in said
    places = {(f.file, f.document, f.position, f.column) for f in verify(out).findings}
    assert (name, "t0", 3, "gold_logp") in places


def test_a_damaged_file_stops_nothing_else(out: Path) -> None:
    first, *_, last = parquet_files(out)
    first.write_bytes(first.read_bytes()[:100])
    (out / "_engine/plan.json").write_text("{")
    last.unlink()
    report = verify(out)
    assert {first.relative_to(out).as_posix(), last.relative_to(out).as_posix(), "_engine/plan.json"} == {
        finding.file for finding in report.findings
    }
    assert report.files == len(parquet_files(out)) and any("against the manifest" in note for note in report.notes)


def test_no_output_is_1_and_no_run_file_is_2(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert call("verify", tmp_path / "empty") == 1
    assert "not an output of targetsmith" in capsys.readouterr().err
    assert call("verify", out, "--rescore", 1) == 2
    assert "--run RUN.toml" in capsys.readouterr().err


def test_the_live_teacher_agrees_and_finds_a_forgery(
    run_file: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another id in place of the last of a top-k keeps every rule; the corpus file is not needed."""
    hidden = run_file.parent / "corpus.jsonl"
    hidden.rename(run_file.parent / "gone")
    try:
        assert call("verify", out, "--run", run_file, "--rescore", 9, "--json") == 0
        compared = {entry["product"]: entry for entry in json.loads(capsys.readouterr().out)["compared"]}
        for entry in compared.values():
            assert entry["documents"] == 3 and entry["positions"] > 20
            assert 0 < entry["measures"]["shared ids, nats"]["max"] <= 2.0**-7 + 1e-3
        path = next(path for path in parquet_files(out) if "teacher" in path.parts)
        ids, tokens = (flat(pq.read_table(path), name) for name in ("topk_ids", "token_ids"))
        at = 5
        unused = next(i for i in range(500) if i not in ids.reshape(-1, 16)[at] and i != tokens[at])
        assert tokens[at] != ids[at * 16 + 3]
        name = change(out, "teacher", "topk_ids", at * 16 + 3, unused)
        assert verify(out).sound
        assert call("verify", out, "--run", run_file, "--rescore", 9) == 1
        assert f"{name}, document 't0', position 5, topk_ids" in capsys.readouterr().out
    finally:
        (run_file.parent / "gone").rename(hidden)


def test_a_run_file_of_another_run_is_refused(run_file: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run_file.with_name("other.toml")
    other.write_text(run_file.read_text().replace("top_k = 16", "top_k = 17"))
    assert call("verify", out, "--run", other, "--rescore", 1) == 1
    assert "top_k: 16 -> 17" in capsys.readouterr().err


def test_the_corpus_beside_the_output(run_file: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files are those of the plan, and each record is where it belongs, under its name and with its text."""
    assert call("verify", out, "--run", run_file) == 0
    assert "corpus: 1 file, 4 records, as in the plan; 4 documents compared" in capsys.readouterr().out

    for path in parquet_files(out):  # another text of the same length, in all products
        table = pq.read_table(path).replace_schema_metadata(None)
        texts = ["two" if text == "one" else text for text in table.column("text").to_pylist()]
        rewrite(path, table.set_column(2, table.schema.field("text"), pa.array(texts)))
        reseal(out, path)
    claim = out / "_engine/quarantine/00001.jsonl"
    record = json.loads(claim.read_text())
    claim.write_text(canonical_json({**record, "place": "line 3", "text_sha256": "0" * 64}) + "\n")
    assert verify(out).sound
    assert call("verify", out, "--run", run_file) == 1
    said = capsys.readouterr().out
    assert "document 't2', text: found 'two' from character 0 on; wanted 'one' (corpus.jsonl, line 3)" in said
    assert "_engine/quarantine/00001.jsonl, document 'corpus.jsonl#3', place: found line 3; wanted line 4, as" in said
    assert "text_sha256: found 000" in said and "3 findings" in said

    corpus = run_file.with_name("corpus.jsonl")
    before = corpus.read_text()
    try:
        corpus.write_text(before.replace('"one"', '"1"'))
        run_file.with_name("more.jsonl").write_text(before)
        other = run_file.with_name("other.toml")
        other.write_text(run_file.read_text().replace('"corpus.jsonl"', '"*.jsonl"'))
        assert call("verify", out, "--run", other) == 1
        said = capsys.readouterr().out
        assert "corpus file 'more.jsonl': found a file that the run does not have; wanted 1 file of the plan" in said
        assert "corpus file 'corpus.jsonl': found n_rows 4, sha256 " in said and "no document was compared" in said
    finally:
        corpus.write_text(before)
        run_file.with_name("more.jsonl").unlink()


def test_names_that_are_no_text_can_be_printed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        os.fsdecode(b"_engine/shards/\xff\n\x1b[1m.json"),
        "data/teacher/größe.parquet",
        "_engine/shards/٣.json",
    ):
        (out / name).write_bytes(b"")
    assert call("verify", out) == 1
    said = capsys.readouterr().out
    assert r"_engine/shards/\udcff\n\x1b[1m.json: found a file that is no seal" in said
    assert (
        "data/teacher/größe.parquet: found" in said and "_engine/shards/٣.json: found" in said and "3 findings" in said
    )
    assert call("verify", out, "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 3


def test_what_the_manual_says_of_damaged_files_mends_them(run_file: Path, out: Path) -> None:
    damaged = parquet_files(out)[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert not verify(out).sound
    kept = {path: path.read_bytes() for path in parquet_files(out) if path != damaged}
    for path in (
        damaged,
        *(out / name for name in ("_engine/shards/00000.json", "_engine/manifest.json", "README.md")),
    ):
        path.unlink()
    score_run(load_run(run_file).model_copy(update={"output": out}))
    report = verify(out, complete=True)
    assert report.sound and report.documents == 3
    assert all(path.read_bytes() == data for path, data in kept.items())
