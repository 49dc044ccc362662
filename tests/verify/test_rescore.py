"""targetsmith verify with the live teacher: what it says of honest outputs of every kind, and of forged ones that keep every
rule, seal and sum."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.dataset.layout import load_plan
from engine.dataset.parquet import flat, lengths_of, rounded
from engine.dataset.sidecars import LM_HEAD
from engine.reader.targets import Targets
from engine.scoring.scorer import Scorer
from engine.verify import rescore
from engine.verify.compare import NOISE
from engine.verify.output import verify
from schemas.runfile import load_run
from tests.jobs.test_cli import call
from tests.support.chats import chat_teacher
from tests.support.mutations import parquet_files, place_of, recount, reseal
from tests.support.mutations_rows import rewrite
from tests.support.mutations_sidecars import read_head, write_head
from tests.support.runs import ASSETS, retry_here, score_here, write_run, write_subset

TEXTS = ("3 + 4 = 7.", "Anna has 3 apples.", "one")
Columns = dict[str, np.ndarray]


@pytest.fixture(scope="module", autouse=True)
def one_scorer():
    """A scorer with the same settings is loaded once for this file: its rules stay learned."""
    made: dict[str, Scorer] = {}

    def load(run: Any, **given: Any) -> Scorer:
        return made.setdefault(run.model_dump_json(), Scorer(run, **given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rescore, "Scorer", load)
        yield


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every product and regime: beam, same tokenizer, subset, bytes, the teacher with statistics, hidden states."""
    folder = tmp_path_factory.mktemp("run")
    students = {"bl": ASSETS / "student_bl", "same": ASSETS / "teacher", "part": write_subset(folder / "part")}
    targets = "top_k = 16\nbytes = true\nhidden = true\nteacher_stats = true\nmax_nodes_per_token = 0"
    file = write_run(
        folder,
        texts=TEXTS,
        lines='{"id": "bad", "text": ""}\n',
        targets=f"{targets}\ncalibration_documents = 0",
        students=students,
    )
    score_here(file)
    return file


@pytest.fixture
def out(run_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_file.parent / "out", tmp_path / "copy"))


def compared(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(exit code, the report, (how, product) -> what was compared)"""
    capsys.readouterr()
    code = call("verify", *arguments, "--json")
    report = json.loads(capsys.readouterr().out)
    return code, report, {f"{one['how']} {one['product']}": one for one in report["compared"]}


def alter(out: Path, product: str, doc_row: int, position: int, change: Callable[[Columns, int], None]) -> str:
    """One position of one document through `change`: columns as arrays of shape [N] or [N, K], and its place in them. Seals
    and sums as if it had always been so. Returns the file's name."""
    for path in parquet_files(out):
        table = pq.read_table(path).replace_schema_metadata(None).combine_chunks()
        rows = table.column("doc_row").to_pylist()
        if place_of(out, path)[0] != product or doc_row not in rows:
            continue
        at = int(lengths_of(table)[: rows.index(doc_row)].sum()) + position
        count = len(flat(table, "token_ids"))
        lists = [field for field in table.schema if pa.types.is_list(field.type)]
        columns = {field.name: flat(table, field.name).copy() for field in lists}
        wide = ("topk_ids", "topk_logps", "hidden")
        shaped = {name: v.reshape(count, -1) if name in wide else v for name, v in columns.items()}
        change(shaped, at)
        for field in lists:
            new = shaped[field.name].reshape(-1)
            if new.dtype == np.float32:
                new = rounded(field.name, new)
            index = table.schema.get_field_index(field.name)
            offsets = table.column(index).combine_chunks().offsets
            table = table.set_column(index, field, pa.ListArray.from_arrays(offsets, pa.array(new), type=field.type))
        rewrite(path, table)
        reseal(out, path)
        recount(out)
        return path.relative_to(out).as_posix()
    raise AssertionError(f"{product} has no document {doc_row}")


def to_the_tail(columns: Columns, at: int) -> None:
    """A third of the likeliest token's probability goes to the tail."""
    first = columns["topk_logps"][at, 0]
    moved = np.log(np.exp(first) * 2 / 3)
    if columns["token_ids"][at] == columns["topk_ids"][at, 0]:
        columns["gold_logp"][at] = moved
    columns["tail_logp"][at] = np.log(np.exp(columns["tail_logp"][at]) + np.exp(first) / 3)
    columns["topk_logps"][at, 0] = moved
    order = np.argsort(-columns["topk_logps"][at], kind="stable")
    for name in ("topk_ids", "topk_logps"):
        columns[name][at] = columns[name][at][order]


def test_honest_and_forged(run_file: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All documents by the lossless setting and once more as they were; then four positions are forged."""
    both = ("--run", run_file, "--rescore", 9, "--oracle", 9)
    code, report, by_name = compared(capsys, out, *both)
    assert code == 0 and report["sound"], report["findings"]
    products = set(load_plan(out).products)
    assert set(by_name) == {f"rescored {p}" for p in products} | {f"oracle {p}" for p in products - {"hidden"}}
    for name, one in by_name.items():
        product = name.partition(" ")[2]
        assert one["documents"] == 3 and one["findings"] == 0
        assert one["positions"] == sum(
            int(flat(pq.read_table(path), "scored").sum())
            for path in parquet_files(out)
            if place_of(out, path)[0] == product
        )
    for product in products - {"hidden"}:
        measures = by_name[f"oracle {product}"]["measures"]
        assert measures["total variation / (width + rounding)"]["max"] <= 1
        if product != "student/bl":
            assert (
                measures["certified width"]["max"] == 0
                and measures["total variation to the lossless value"]["max"] < 0.002
            )
    assert by_name["oracle student/bl"]["measures"]["certified width"]["mean"] > 0.02

    row, position, far, width = widest(run_file, out)
    assert far > 50 * NOISE and width >= far
    forged: dict[str, tuple[str, int, str]] = {}

    def narrow(columns: Columns, at: int) -> None:
        columns["err"][at] = far / 8

    forged["student/bl"] = (alter(out, "student/bl", row, position, narrow), position, "err")
    for product, at in (("student/part", 2), ("student/same", 1), ("bytes", 3), ("teacher", 4)):
        forged[product] = (alter(out, product, 1, at, to_the_tail), at, "err")
    assert verify(out).sound, verify(out).findings
    code, report, by_name = compared(capsys, out, *both)
    assert code == 1
    for product, (file, at, column) in forged.items():
        assert by_name[f"oracle {product}"]["findings"] == 1, product
        told = [(f["file"], f["position"], f["column"]) for f in report["findings"] if f["file"] == file]
        assert (file, at, column) in told, product
        assert by_name[f"rescored {product}"]["findings"] >= 1, product
        assert ("err" if product == "student/bl" else "topk_logps") in {name for *_, name in told}
    assert {f["file"] for f in report["findings"]} == {file for file, *_ in forged.values()}
    assert call("verify", out, "--run", run_file, "--oracle", 1, "--seed", 3) in (0, 1)
    assert "oracle teacher: 1 document," in capsys.readouterr().out


def widest(run_file: Path, out: Path) -> tuple[int, int, float, float]:
    """(doc_row, position, deviation from the lossless value, width) of the position of student/bl that is furthest off."""
    rescorer = rescore.open_rescorer(out, load_run(run_file), seed=0)
    (one,) = [one for one in rescorer.oracle(9) if one.product == "student/bl"]
    far, width = (one.measures[name] for name in ("total variation to the lossless value", "certified width"))
    row = int(np.argmax([values.max() for values in far]))  # all are scored: the teacher has a begin token
    position = int(np.argmax(far[row]))
    return row, position, float(far[row][position]), float(width[row][position])


def test_conversations_draws_and_hidden_states_without_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The corpus is read again. A draw and a state that are not those of the teacher, and another lm_head, are found."""
    chat_teacher(tmp_path / "t", "chatml", ends=["<|im_end|>"])
    talk = [{"role": "user", "content": "9 × 9?"}, {"role": "assistant", "content": "81"}]
    lines = [{"id": "good", "chat": talk}, {"id": "bad", "chat": "a text"}, {"id": "more", "chat": [*talk, *talk]}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_file = tmp_path / "run.toml"
    run_file.write_text(
        """
output = "out"
[teacher]
model = "./t"
[corpus]
paths = ["chat.jsonl"]
messages = "chat"
id = "id"
unit_documents = 2
[[student]]
name = "same"
tokenizer = "./t"
[targets]
codec = "sample"
draws = 20
hidden = true
store_text = false
"""
    )
    out = score_here(run_file)
    code, report, by_name = compared(capsys, out, "--run", run_file, "--rescore", 5)
    assert code == 0, report["findings"]
    assert by_name.keys() == {"rescored teacher", "rescored student/same", "rescored hidden"}
    assert all(one["documents"] == 2 and one["positions"] > 4 for one in by_name.values())
    assert by_name["rescored student/same"]["measures"]["share of the draws that differ"]["max"] <= 0.05
    assert any("3 documents compared" in note for note in report["notes"])

    at = {p: int(np.flatnonzero(next(Targets(out, p).documents()).scored)[0]) for p in ("same", "hidden")}

    def draw(columns: Columns, at: int) -> None:
        first = int(columns["sample_sizes"][:at].sum())
        likeliest = columns["sample_ids"][first : first + columns["sample_sizes"][at]]
        likeliest[0] = min(set(range(3, 200)) - set(likeliest.tolist()))

    def state(columns: Columns, at: int) -> None:
        columns["hidden"][at, :64] = np.uint16(0x3F80)  # 1

    forged = {alter(out, "student/same", 0, at["same"], draw), alter(out, "hidden", 0, at["hidden"], state)}
    tensors, metadata = read_head(out)
    write_head(out, {**tensors, "lm_head": -tensors["lm_head"]}, metadata)
    assert verify(out).sound, verify(out).findings
    code, report, by_name = compared(capsys, out, "--run", run_file, "--rescore", 5)
    assert code == 1 and {finding["file"] for finding in report["findings"]} == {*forged, LM_HEAD}


def test_pruned_and_unfinished_without_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    students = {"part": write_subset(tmp_path / "part"), "bl": ASSETS / "student_bl"}
    targets = "eps = 0.02\nbytes = true\nstore_text = false\nmax_nodes_per_token = 0"
    run_file = write_run(tmp_path, texts=(*TEXTS, "8 × 8 = 64"), targets=targets, students=students)
    out = score_here(run_file)
    assert max(flat(pq.read_table(path), "pruned_mass").max() for path in parquet_files(out)) > 0
    for name in ("manifest.json", "shards/00001.json"):
        (out / "_engine" / name).unlink()
    code, report, by_name = compared(capsys, out, "--run", run_file, "--rescore", 9)
    assert code == 0 and not report["finished"], report["findings"]
    assert set(by_name) == {"rescored teacher", "rescored student/part", "rescored student/bl", "rescored bytes"}
    assert all(one["documents"] == 2 and one["measures"]["err"]["max"] < 0.02 for one in by_name.values())
    assert any("corpus: 1 file, 4 records, as in the plan; 2 documents" in note for note in report["notes"])
    (tmp_path / "corpus.jsonl").rename(tmp_path / "gone")
    assert call("verify", out, "--run", run_file) == 2
    assert "got no file" in capsys.readouterr().err
    (out / "data/more").write_bytes(b"")
    assert call("verify", out, "--run", run_file, "--rescore", 1) == 1  # what is found is told all the same
    said = capsys.readouterr().out
    assert "data/more: found a file that is in no seal" in said and "note: not compared with the teacher: " in said


def test_a_retry_with_draws_on_an_object_store(
    tmp_path: Path,
    bucket: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its documents are numbered anew, its draws are those of the corpus rows."""
    students, targets = {"bl": ASSETS / "student_bl"}, 'codec = "sample"\nregime = "fast"\ncalibration_documents = 1'
    run_file = write_run(tmp_path, texts=(*TEXTS, "8 × 8"), targets=targets, students=students)
    score_here(run_file, died={"t1", "t2"})
    again = retry_here(run_file)
    fsspec.filesystem("s3").put(str(again), f"{bucket}/run", recursive=True)
    code, report, by_name = compared(capsys, f"{bucket}/run", "--run", run_file, "--rescore", 9)
    assert code == 0 and report["out"] == f"{bucket}/run", report["findings"]
    assert by_name.keys() == {"rescored teacher", "rescored student/bl"}
    assert all(one["documents"] == 2 for one in by_name.values())
    assert by_name["rescored student/bl"]["measures"]["share of the draws that differ"]["max"] <= 0.05
    assert any("2 documents compared" in note for note in report["notes"])
