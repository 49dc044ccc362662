"""Mixtures: which records of each source are taken, the same on every machine; refusals; a whole run of one."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus.mixture import Share
from engine.corpus.scan import CorpusScan, scan_corpus
from engine.corpus.units import read_units
from engine.dataset.layout import load_manifest, load_plan
from engine.reader import Targets
from engine.verify.output import verify
from jobs.cli import main
from jobs.run.summary import documents_by_source
from schemas.errors import CorpusError, RunFileError
from schemas.runfile import CorpusConfig, RunConfig, load_run, parse_run
from tests.support.corpora import TEXTS, jsonl, parquet
from tests.support.runs import score_here, write_run

MINIMAL: dict[str, Any] = {"output": "out", "teacher": {"model": "m"}, "targets": {"bytes": True}}


def run_of(*tables: dict[str, Any], folder: Path = Path()) -> RunConfig:
    return parse_run({**MINIMAL, "corpus": list(tables)}, base_dir=folder)


def told(*tables: dict[str, Any]) -> str:
    with pytest.raises(RunFileError) as caught:
        run_of(*tables)
    return str(caught.value)


def documents(config: CorpusConfig, scan: CorpusScan, unread: bool = False) -> list[tuple[str, str, str]]:
    units = read_units(config, scan, range(scan.n_units), unread=unread)
    return [(one.part, one.doc_id, one.text) for _, found in units for one in found]


@settings(max_examples=50)
@given(st.integers(1, 200), st.data())
def test_what_is_taken_lies_evenly(total: int, data: st.DataObject) -> None:
    taken = data.draw(st.integers(1, total))
    cut = data.draw(st.integers(0, total))
    share, chosen = Share(taken, total), [row for row in range(total) if Share(taken, total).takes(row)]
    assert len(chosen) == taken
    assert all(abs(chosen[i] - (i + 1) * total / taken) <= 1.0 + 1e-9 for i in range(taken))
    second = share.of_file(cut)  # the same records, whichever file they lie in
    mine = [row - cut for row in chosen if row >= cut]
    assert [row for row in range(total - cut) if second.takes(row)] == mine
    if mine:
        first = data.draw(st.integers(0, len(mine) - 1))
        count = data.draw(st.integers(1, len(mine) - first))
        assert second.span(first, count) == (mine[first], mine[first + count - 1] + 1)


def test_weights_and_limits(tmp_path: Path) -> None:
    (tmp_path / "web0.jsonl").write_bytes(jsonl([f"w{i}" for i in range(60)]))
    (tmp_path / "web1.parquet").write_bytes(parquet([f"w{i}" for i in range(60, 100)], rows=7))
    (tmp_path / "code.txt").write_bytes(b"|".join(b"c%d" % i for i in range(30)))
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"body": f"m{i}"}) + "\n" for i in range(9)))
    web = {"source": "web", "paths": ["web*"], "weight": 7, "unit_documents": 8}
    code = {"source": "code", "paths": ["code.txt"], "delimiter": "|", "weight": 3, "limit": 15}
    more = {"paths": ["more.jsonl"], "text": "body", "limit": 4}
    config = run_of(web, code, more).corpus
    scan = scan_corpus(config, tmp_path)
    found = documents(config, scan)
    assert Counter(part for part, _, _ in found) == {"web": 35, "code": 15, "corpus3": 4}
    assert [text for _, _, text in found[:35]] == [f"w{i}" for i in range(100) if (i + 1) * 35 // 100 > i * 35 // 100]
    assert found[0][1] == "web/web0.jsonl#2" and found[-1] == ("corpus3", "corpus3/more.jsonl#3", "m3")
    assert [file.share for file in scan.files] == [(35, 100, 0), (35, 100, 60), (15, 15, 0), None]
    some = [3, 5]  # as a resume reads them
    again = {u.index: [d.text for d in docs] for u, docs in read_units(config, scan, some)}
    whole = {u.index: [d.text for d in docs] for u, docs in read_units(config, scan, range(scan.n_units))}
    assert again == {index: whole[index] for index in some}
    alone = scan_corpus(run_of({**web, "weight": 1}, {**code, "weight": 0.15}).corpus, tmp_path)
    assert [file.n_rows for file in alone.files] == [60, 40, 15]
    with pytest.raises(CorpusError, match=r"\[\[corpus\]\] code: its weight 0.0001 leaves none of its 15"):
        scan_corpus(run_of(web, {**code, "weight": 0.0001}).corpus, tmp_path)


def test_a_mixture_on_a_store_is_the_one_on_a_disk(tmp_path: Path) -> None:
    fs, files = fsspec.filesystem("memory"), {"a.jsonl": jsonl(TEXTS * 9), "b.parquet": parquet(TEXTS * 5, rows=4)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        fs.pipe_file(f"/mixed/{name}", data)
    weights = [{"paths": ["a.jsonl"], "weight": 1}, {"paths": ["b.parquet"], "weight": 0.4}]
    near = run_of(*({**table, "unit_documents": 3} for table in weights)).corpus
    far = run_of(*({**t, "unit_documents": 3, "paths": [f"memory://mixed/{t['paths'][0]}"]} for t in weights)).corpus
    scans = [scan_corpus(config, tmp_path) for config in (near, far)]
    assert scans[0].files[0].unit_rows == scans[1].files[0].unit_rows and scans[1].files[0].unit_marks
    wanted = documents(near, scans[0])
    assert documents(far, scans[1]) == documents(far, scans[1], unread=True) == wanted


def test_tables_that_do_not_go_together() -> None:
    one, chat = {"paths": ["a"]}, {"paths": ["b"], "messages": "messages"}
    assert "[[corpus]] number 2 messages" in told(one, chat) and "a run and an output of its own" in told(one, chat)
    assert "[[corpus]] number 2 source" in told({**one, "source": "x"}, {**one, "source": "X"})
    assert "[[corpus]] number 2 thinking" in told(chat, {**chat, "thinking": "drop"})
    assert "they are relative to each other" in told({**one, "weight": 2}, one)
    assert "[[corpus]] number 2 txt" in told(one, {**one, "txt": "a"}) and "did you mean text?" in told(
        one, {**one, "txt": "a"}
    )
    assert "a number above 0" in told({**one, "weight": 0}, {**one, "weight": 1})
    assert "at least one" in told() or "an empty list" in told()
    with pytest.raises(RunFileError, match=r"(?s)\[corpus\] weight.*only in a mixture"):
        parse_run({**MINIMAL, "corpus": {**one, "weight": 1}}, base_dir=Path())


def succeeds(*arguments: object) -> None:
    words = list(map(str, arguments))
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0


def test_a_run_of_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = write_run(tmp_path, texts=("A field is 15 m long.", "9 x 9 = 81", "one two three"), students={})
    (tmp_path / "b.jsonl").write_bytes(jsonl(["Anna has 3 apples.", "", "Fourteen."]))
    text = run_file.read_text().replace("[corpus]", '[[corpus]]\nsource = "a"')
    second = (
        '[[corpus]]\nsource = "b"\npaths = ["b.jsonl"]\nunit_documents = 2\n[targets]\nteacher = true\nbytes = true\n'
    )
    run_file.write_text(text.replace("[targets]", second))
    out = score_here(run_file)
    plan = load_plan(out)
    assert [plan.source_of(unit) for unit in plan.units] == ["a", "a", "b", "b"]
    for product in ("teacher", "bytes"):
        rows = pl.read_parquet(f"{out}/data/{product}/*.parquet", columns=["doc_row", "source"])
        assert rows.rows() == [(0, "a"), (1, "a"), (2, "a"), (3, "b"), (5, "b")]
    assert [document.source for document in Targets(out, "teacher").documents()] == list("aaabb")
    assert documents_by_source(plan, load_manifest(out)) == {"a": (3, 0), "b": (3, 1)}
    assert not verify(out).findings
    succeeds("show", out, "--doc", 3, "--view", "teacher")
    assert "document 3 of the corpus, of b" in capsys.readouterr().out
    succeeds("cat", out, "--view", "bytes", "--limit", 1)
    assert json.loads(io.StringIO(capsys.readouterr().out).readline())["source"] == "a"
    succeeds("verify", out, "--run", run_file)
    assert "sound" in capsys.readouterr().out
    assert load_run(run_file).semantic()["corpus"][1]["source"] == "b"
