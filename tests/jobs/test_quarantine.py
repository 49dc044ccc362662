"""Bad documents in whole runs: one that kills its process, a budget for all of them, and scoring them again."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.determinism import BOUND_NATS, gaps
from engine.bpe.vocabulary import load_vocabulary
from engine.card.describe import describe
from engine.corpus.document import Document, Unit
from engine.corpus.scan import scan_corpus
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.dataset.layout import load_plan, read_quarantine, sealed_units
from engine.dataset.store import Out
from engine.plan.make_plan import ENGINE_VERSION, make_plan
from engine.plan.pin import pin
from engine.plan.retry import check_corpus, find_retry, read_retried, retry_plan
from jobs.pool.unit_worker import UnitWorker
from jobs.run import job as verb
from jobs.run.budget import Budget
from schemas.errors import OutputError, QuarantineError
from schemas.manifest import Plan, PlanUnit
from schemas.plan_inputs import Retry
from schemas.runfile import RunConfig, load_run
from schemas.settings import QuarantineConfig
from tests.jobs.test_score import digests
from tests.support.runs import ASSETS, STUDENTS, TEXTS, demo_tokenizers_once, score_here, write_run

ROOT = Path(__file__).resolve().parents[2]
POISON = "this text kills"
ONE = "[ray]\nactors = 1"


class Killer(UnitWorker):
    """Ends its own process, as a fault of a driver or the kernel's memory killer does, when it meets the poison."""

    def calibrate(self, documents: Sequence[Document], last: bool, lost: Sequence[tuple[Document, str]] = ()) -> None:
        _look(documents)
        super().calibrate(documents, last, lost)

    def score(self, unit: Unit, documents: Sequence[Document]) -> dict[str, float]:
        _look(documents)
        return super().score(unit, documents)

    def score_alone(self, document: Document):
        _look([document])
        return super().score_alone(document)


def _look(documents: Sequence[Document]) -> None:
    if any(POISON in document.text for document in documents):
        os.kill(os.getpid(), signal.SIGKILL)


def quarantined(out: Out) -> list[dict]:
    return [record for unit in sealed_units(out) for record in read_quarantine(out, unit)]


def rows(out: Path, product: str, doc_ids: set[str]) -> pa.Table:
    table = pq.read_table(out / "data" / product, schema=load_plan(out).products[product].schema_of_rows)
    return table.filter(pa.array([d in doc_ids for d in table["doc_id"].to_pylist()])).sort_by("doc_id")


@pytest.mark.ray
@pytest.mark.chaos
def test_a_document_that_kills_is_quarantined_and_can_be_scored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (*TEXTS[:3], f"{POISON} 3 + 4 = 7", *TEXTS[3:])
    targets = 'codec = "sample"\ncalibration_documents = 2'  # draws hang on the row of the corpus
    for folder in ("run", "undisturbed"):
        (tmp_path / folder).mkdir()
    run = load_run(write_run(tmp_path / "run", texts=texts, targets=targets, extra=ONE))
    assert isinstance(run.output, Path)
    monkeypatch.setattr(verb, "UnitWorker", Killer)
    manifest = verb.score(run, "local").manifest
    (record,) = quarantined(run.output)
    assert (manifest.documents, manifest.quarantined) == (6, 1)
    assert (record["doc_id"], record["doc_row"], record["reason"]) == ("t3", 3, "worker_died")
    assert record["place"] == "line 4" and len(record["text_sha256"]) == 64 and POISON not in json.dumps(record)
    before = digests(run.output)

    monkeypatch.undo()  # the fault is mended
    outcome = verb.retry_quarantined(run, "local")
    assert outcome is not None
    again = Path(str(outcome.store))
    assert again == tmp_path / "run" / "out-retry-1"
    assert (outcome.manifest.documents, outcome.manifest.quarantined) == (1, 0)
    assert digests(run.output) == before
    plan = load_plan(again)
    assert plan.retry == Retry(load_plan(run.output).fingerprint, [3])
    whole = score_here(write_run(tmp_path / "undisturbed", texts=texts, targets=targets))
    for product in ("student/sp", "student/bl", "teacher"):
        mine, wanted = rows(again, product, {"t3"}), rows(whole, product, {"t3"})
        assert mine["doc_row"].to_pylist() == [0] and mine["text"].to_pylist() == [texts[3]]
        found = gaps(mine.drop_columns("doc_row"), wanted.drop_columns("doc_row"))
        # stored floats: one step of 10 mantissa bits where a value lies on a border of two
        assert all(gap.max(initial=0) <= 2**-8 for gap in found.values()), product
        if product != "teacher":
            assert mine["sample_ids"].to_pylist() == wanted["sample_ids"].to_pylist()
    assert verb.retry_quarantined(run, "local") is None


@pytest.mark.parametrize(("share", "documents", "most"), [(0.29, 100, 29), (0.57, 100, 57), (0.001, 29_999, 29)])
def test_a_share_is_that_of_its_decimal_digits(share: float, documents: int, most: int) -> None:
    unit = PlanUnit(index=0, file_index=0, first_row=0, n_rows=documents, doc_row=0)
    budget = Budget(Path("."), Plan.make({}, [unit], {}), QuarantineConfig(max_documents=0, max_share=share))
    budget.add(0, most)
    assert budget._most == most


def bad_lines(count: int) -> str:
    return "".join(f'{{"id": "bad{i}", "text": ""}}\n' for i in range(count)) + "no json\n"


@pytest.mark.ray
def test_too_many_bad_documents_stop_the_run_and_a_raised_budget_goes_on(tmp_path: Path) -> None:
    students, targets = {"bl": STUDENTS["bl"]}, "top_k = 16\ncalibration_documents = 2"
    run_file = write_run(tmp_path, lines=bad_lines(30), students=students, targets=targets, extra=ONE)
    with pytest.raises(QuarantineError) as stop:
        verb.score(load_run(run_file), "local")
    said = str(stop.value)
    assert stop.value.exit_code == 3
    assert "of 36 documents in quarantine; wanted at most 20" in said
    assert "empty_text: the text is empty" in said and "corpus.jsonl, line 7: 0 characters" in said
    assert "raise max_documents or max_share and run the same command again" in said
    out = tmp_path / "out"
    done = sealed_units(out)
    assert 10 <= len(done) < 18 and not (out / "_engine" / "manifest.json").exists()
    with pytest.raises(QuarantineError):  # before any actor is started
        verb.score(load_run(run_file), "no-such-address:1")
    before = digests(out)
    run_file.write_text(run_file.read_text() + "\n[quarantine]\nmax_share = 0.9\n")
    manifest = verb.score(load_run(run_file), "local").manifest
    assert (manifest.documents, manifest.quarantined) == (36, 31)
    assert digests(out).items() >= before.items()
    run_file.write_text(run_file.read_text().replace("max_share = 0.9", "max_documents = 1"))
    verb.score(load_run(run_file), "no-such-address:1")  # a finished run has nothing left to stop


# ---- the retry without Ray


def finished(folder: Path) -> RunConfig:
    """A run with three documents in quarantine in two of its units."""
    lines = '{"id": "a", "text": ""}\n{"id": "b", "text": "2 + 2 = 4"}\n{"id": "c"}\nno json\n'
    run_file = write_run(folder, lines=lines, students={"sp": STUDENTS["sp"]}, targets='top_k = 16\nregime = "fast"')
    score_here(run_file)
    return load_run(run_file)


def test_what_a_retry_scores(tmp_path: Path) -> None:
    run = finished(tmp_path)
    folder, found = find_retry(run.output)
    assert (str(folder), found) == (str(tmp_path / "out-retry-1"), [5, 7, 8])
    scan, base = scan_corpus(run.corpus, run.base_dir), load_plan(run.output)
    plan = retry_plan(base, base.fingerprint, scan, found)
    assert plan.fingerprint != base.fingerprint and plan.products == base.products
    assert [(unit.index, unit.n_rows, unit.doc_row) for unit in plan.units] == [(0, 1, 0), (1, 1, 1), (2, 1, 2)]
    read = list(read_retried(run.corpus, scan, found, {0, 2}))
    assert [(unit.index, [d.doc_row for d in documents]) for unit, documents in read] == [(0, [5]), (2, [8])]
    assert [d.problem[0] for _, documents in read for d in documents if d.problem] == ["empty_text", "malformed_json"]


def test_a_retry_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    run = finished(tmp_path)
    base = load_plan(run.output)
    with (tmp_path / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"id": "new", "text": "new"}\n')
    changed = scan_corpus(run.corpus, run.base_dir)
    with pytest.raises(OutputError, match=r"not the one whose documents are in quarantine.*corpus\.jsonl"):
        check_corpus(make_plan(run, changed), base)
    (tmp_path / "out" / "_engine" / "manifest.json").unlink()
    with pytest.raises(OutputError, match="the run is not finished"):
        find_retry(run.output)
    with pytest.raises(OutputError, match="no such folder; name the `output` of a run"):
        find_retry(tmp_path / "nothing")


def test_a_second_retry_takes_what_the_first_has_left(tmp_path: Path) -> None:
    """The documents are as bad as before; each retry has them all again, in quarantine, and is a finished run."""
    run = finished(tmp_path)
    base, scan = load_plan(run.output), scan_corpus(run.corpus, run.base_dir)
    for number in (1, 2):
        folder, found = find_retry(run.output)
        plan = retry_plan(base, base.fingerprint, scan, found)
        assert (str(folder), found) == (f"{run.output}-retry-{number}", [5, 7, 8]) and open_output(folder, plan) == []
        again, same = find_retry(run.output)
        assert (str(again), same) == (str(folder), found)  # begun and not finished: it goes on there
        with demo_tokenizers_once():
            worker = UnitWorker(pin(run.model_copy(update={"output": folder})), plan, [])
        for unit, documents in read_retried(run.corpus, scan, found, range(len(plan.units))):
            worker.score(unit, documents)
        manifest = finish(folder, plan, engine_version=ENGINE_VERSION, describe=describe)
        assert (manifest.documents, manifest.quarantined) == (3, 3)
        places = [(record["doc_row"], record["place"]) for record in quarantined(folder)]
        assert places == [(0, "line 6"), (1, "line 8"), (2, "line 9")]
    other = retry_plan(base, base.fingerprint, scan, [5])
    assert open_output(tmp_path / "out-retry-3", other) == []
    with pytest.raises(OutputError, match="out-retry-3: holds another run than a retry of the 3 documents"):
        find_retry(run.output)


# ---- a real model with poisoned weights, from its files


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_one_broken_token_names_the_place(tmp_path: Path, value: float) -> None:
    """The embedding of one token, in the weight file, is NaN or infinite: the documents with that token are set aside."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for file in (ASSETS / "teacher").iterdir():
        (teacher / file.name).write_bytes(file.read_bytes())
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(teacher / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    used = [set(load_vocabulary(str(teacher)).encode(text)[0]) for text in TEXTS]
    broken = max(used[1] - set().union(used[0], *used[2:]))  # the start-up check takes small ids
    weights["model.embed_tokens.weight"][broken] = torch.tensor(value)
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    targets = 'top_k = 16\nregime = "fast"\ncalibration_documents = 1'
    run_file = write_run(tmp_path, students={"sp": STUDENTS["sp"]}, targets=targets)
    run_file.write_text(run_file.read_text().replace(str(ASSETS / "teacher"), str(teacher)))
    out = score_here(run_file)
    (record,) = quarantined(out)
    assert (record["doc_id"], record["reason"]) == ("t1", "nonfinite_logprob")
    place = re.search(r"after byte (\d+) of the text \(depth (\d+)\) is not finite", record["detail"])
    assert place and 0 <= int(place[1]) <= len(TEXTS[1].encode()), record["detail"]
    for product in ("teacher", "student/sp"):
        assert rows(out, product, {"t0", "t1", "t2", "t3", "t4"})["doc_id"].to_pylist() == ["t0", "t2", "t3", "t4"]
        kept = rows(out, product, {"t0"})
        assert gaps(kept, kept)["gold_logp"].max() <= BOUND_NATS
