"""An output explains itself: its tokens lie in it, wherever it is read; old ones are read as before."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from engine.bpe.vocabulary import load_vocabulary
from engine.dataset.layout import CROISSANT, MANIFEST, load_manifest, load_plan
from engine.dataset.store import open_store
from engine.dataset.token_tables import token_file
from engine.plan.token_files import publish_tokens
from engine.reader import Targets
from engine.verify import verify
from jobs.cli import main
from schemas.errors import OutputError
from schemas.runfile import load_run
from tests.support.runs import ASSETS, score_here, score_run, write_run


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished; its tokenizers lie in a folder that is gone afterwards."""
    folder = tmp_path_factory.mktemp("tokens")
    shutil.copytree(ASSETS / "student_sp", folder / "sp")
    targets = "top_k = 8\nmax_nodes_per_token = 1\ncalibration_documents = 2\nbytes = true\nteacher = true"
    file = write_run(folder, texts=("Anna has 3 apples.", "one two"), targets=targets, students={"sp": folder / "sp"})
    score_here(file)
    return file


@pytest.fixture
def out(run_file: Path, tmp_path: Path) -> Path:
    """The output in another folder."""
    return Path(shutil.copytree(run_file.parent / "out", tmp_path / "elsewhere"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return told.out if stop.value.code == 0 else f"{stop.value.code} {told.err}"


def test_every_product_has_its_tokens(out: Path) -> None:
    for product, folder in (("teacher", "teacher"), ("student/sp", "student_sp")):
        rows = pl.read_parquet(out / token_file(product))
        vocabulary = load_vocabulary(str(ASSETS / folder))
        assert rows.schema == {"id": pl.Int32, "bytes": pl.Binary, "text": pl.String, "role": pl.String}
        assert rows["bytes"].to_list() == vocabulary.token_bytes and rows["id"].to_list() == list(
            range(vocabulary.size)
        )
        assert set(rows.filter(pl.col("bytes").is_null())["role"]) <= {"begin", "end", "special", "none"}
        assert rows["role"][load_plan(out).products[product].eos_id or 0] == "end"
        record = (load_manifest(out).vocabularies or {})[product]
        assert record.bytes == (out / record.name).stat().st_size
    assert pl.read_parquet(out / token_file("bytes")).height == 257
    assert not verify(out).findings


def test_show_and_cat_need_no_tokenizer(
    out: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    hidden = (run_file.parent / "sp").rename(tmp_path / "hidden")
    try:
        shown = printed(capsys, "show", out, "--doc", 0, "--rows", "0:3")
        assert not re.search(r"#\d", shown) and "was not found" not in shown
        record = json.loads(printed(capsys, "cat", out, "--student", "sp", "--text", "--limit", 1))
        assert "".join(record["token_texts"]).lstrip().startswith("Anna has 3 apples")
        assert list(map(len, record["id_texts"])) == list(map(len, record["ids"]))
        bytes_of = json.loads(printed(capsys, "cat", out, "--view", "bytes", "--text", "--limit", 1))
        assert bytes_of["token_texts"][:4] == list("Anna") and bytes_of["token_texts"][-1] == "<end>"
        (out / token_file("student/sp")).unlink()  # an output from before there were any
        old = printed(capsys, "show", out, "--doc", 0, "--rows", "0:3")
        assert re.search(r"#\d", old) and "The tokenizer was not found" in old
        assert "was not found; run this in the folder" in printed(capsys, "cat", out, "--student", "sp", "--text")
    finally:
        hidden.rename(run_file.parent / "sp")


def test_damage_is_found_and_mended(out: Path, run_file: Path) -> None:
    run = load_run(run_file).model_copy(update={"output": out})
    name = token_file("student/sp")
    file, plan = out / name, load_plan(out)
    whole = file.read_bytes()
    file.write_bytes(whole[:40] + b"\x00\xff" + whole[42:])
    assert [finding.file for finding in verify(out).findings] == [name]
    with pytest.raises(OutputError, match=r"sp\.parquet: not the file that .*manifest\.json lists"):
        score_run(run)
    shutil.copy(out / token_file("teacher"), file)
    assert "with the hash" in str(verify(out).findings[0])
    file.unlink()
    assert [finding.found for finding in verify(out).findings] == ["missing"]
    publish_tokens(open_store(out), run, plan)
    assert file.read_bytes() == whole and not verify(out).findings
    assert score_run(run) == load_manifest(out)


def test_an_output_from_before_there_were_any(out: Path, run_file: Path) -> None:
    shutil.rmtree(out / "_engine" / "vocabulary")
    (out / CROISSANT).unlink()
    manifest = json.loads((out / MANIFEST).read_text())
    del manifest["vocabularies"]
    (out / MANIFEST).write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n")
    assert not verify(out).findings and load_manifest(out).vocabularies is None
    assert score_run(load_run(run_file).model_copy(update={"output": out})) == load_manifest(out)
    assert not (out / "_engine" / "vocabulary").exists()
    assert len(list(Targets(out, "sp").documents())) == 2
