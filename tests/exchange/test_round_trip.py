"""What goes out comes back: the same tokens, ids and log-probabilities, bit for bit, in every form; what a form loses is what
it says."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine.exchange.formats import FORMS
from engine.losses.sparse import forward_kl
from engine.reader import Targets
from engine.reader.targets import Document
from engine.verify import verify
from schemas.target import FLAG_ANEW, FLAG_BOUNDED, FLAG_BUDGET, FLAG_EXACT, FLAG_GIVEN
from tests.support.exchanged import exported, imported, random_output, vocabulary
from tests.support.faults import Call, contents
from tests.support.runs import ASSETS, score_here, write_run

CERTIFICATES = np.uint8(FLAG_EXACT | FLAG_BOUNDED | FLAG_BUDGET)


def documents(out: Path) -> list[Document]:
    return list(Targets(out).documents())


def same_rows(one: Document, other: Document, form: str, first: int = 0) -> None:
    """From position `first` on."""
    here = slice(first, None)
    assert one.doc_id == other.doc_id and np.array_equal(one.token_ids, other.token_ids)
    for name in ("scored", "ids", "logps"):
        assert np.array_equal(getattr(one, name)[here], getattr(other, name)[here]), name
    if form == "trl":
        assert np.array_equal(one.tail_logp, other.tail_logp) and np.array_equal(one.gold_logp, other.gold_logp)
        return
    rest = 1 - np.exp(one.logps[here].astype(np.float64)).sum(1)
    apart = np.abs(np.exp(other.tail_logp[here].astype(np.float64)) - rest)[one.scored[here]]
    assert (apart <= 1e-3).all()  # of a row that rounding has brought above 1 the tail is 0
    inside = (one.ids == one.token_ids[:, None]).any(1)
    inside[:first] = False
    assert np.array_equal(other.gold_logp[inside], one.gold_logp[inside])
    assert (other.gold_logp[~inside] == -np.inf).all()


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 10_000), top_k=st.sampled_from([1, 2, 7, 64]), begin=st.booleans())
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_rows_come_back_as_they_were(form: str, seed: int, top_k: int, begin: bool) -> None:
    with TemporaryDirectory() as folder:
        out, dest, back = (Path(folder) / name for name in ("out", "dest", "back"))
        random_output(out, seed=seed, top_k=top_k, begin=begin)
        tally = exported(out, form, dest)
        before = documents(out)
        assume(begin or all(document.token_ids[0] != vocabulary().bos_id for document in before))
        lost = 0 if begin or form == "trl" else sum(bool(document.scored[0]) for document in before)
        assert tally.first_rows == lost and tally.scored == sum(int(d.scored.sum()) for d in before) - lost
        assert imported(form, dest, back).quarantined == 0
        assert verify(back, complete=True).findings == []
        after = documents(back)
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert other.scored[0] == (one.scored[0] and not lost)
            same_rows(one, other, form, first=1 if lost else 0)
            if not lost and form != "distillkit":
                assert np.array_equal(one.flags & ~CERTIFICATES & ~np.uint8(16), other.flags & ~np.uint8(16))


@pytest.mark.parametrize("form", FORMS)
def test_each_part_of_a_conversation_is_a_sequence_of_its_own(form: str, tmp_path: Path) -> None:
    random_output(tmp_path / "out", flags={0: FLAG_ANEW, 2: FLAG_ANEW}, units=(3,))
    before = documents(tmp_path / "out")
    tally = exported(tmp_path / "out", form, tmp_path / "dest")
    parts = [(document, a, b) for document in before for a, b in ((0, 2), (2, len(document.token_ids))) if b > a]
    assert tally.readings == len(parts)
    imported(form, tmp_path / "dest", tmp_path / "back")
    after = documents(tmp_path / "back")
    assert len(after) == len(parts)
    for (document, a, b), other in zip(parts, after, strict=True):
        assert np.array_equal(document.token_ids[a:b], other.token_ids)
        assert np.array_equal(document.logps[a:b], other.logps) and np.array_equal(document.ids[a:b], other.ids)


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if form.fixed_length])
def test_what_is_longer_than_the_rows_is_counted(form: str, tmp_path: Path) -> None:
    random_output(tmp_path / "out", seed=3)
    before = documents(tmp_path / "out")
    length = 8
    kept = length if form == "megatron" else length - 1  # tokens behind the begin token
    tally = exported(tmp_path / "out", form, tmp_path / "dest", length=length)
    assert tally.cut == sum(len(d.token_ids) > kept for d in before) > 0
    assert tally.cut_positions == sum(int(d.scored[kept:].sum()) for d in before) > 0
    imported(form, tmp_path / "dest", tmp_path / "back")
    for one, other in zip(before, documents(tmp_path / "back"), strict=True):
        assert np.array_equal(one.token_ids[:kept], other.token_ids)
        assert np.array_equal(one.logps[:kept], other.logps)


def test_diff_finds_the_documents_of_a_round_trip(tmp_path: Path, call: Call) -> None:
    out = score_here(write_run(tmp_path, students={"sp": ASSETS / "student_sp"}))
    for form in FORMS:
        exported(out, form, tmp_path / f"as_{form}")
        imported(form, tmp_path / f"as_{form}", tmp_path / form)
        code, said, _ = call("diff", out, tmp_path / form, "--student", "sp")
        assert code == 0 and "5 documents of A, 5 of them in B" in " ".join(said.split()), form
        assert "0 only in A, 0 only in B" in " ".join(said.split()), form


@pytest.mark.parametrize("form", ["axolotl", "distillkit"])
def test_names_go_with_the_tokens_and_not_with_the_place(form: str, tmp_path: Path, call: Call) -> None:
    random_output(tmp_path / "out", seed=5)
    exported(tmp_path / "out", form, tmp_path / "dest")
    files = sorted((tmp_path / "dest").glob("*.parquet"))
    turned, said = pq.read_table(files[0]), pq.read_metadata(files[0]).metadata
    turned = turned.take(list(range(turned.num_rows))[::-1])
    pq.write_table(turned.replace_schema_metadata({k: v for k, v in said.items() if k != b"ARROW:schema"}), files[0])
    imported(form, tmp_path / "dest", tmp_path / "back")
    names = {tuple(document.token_ids): document.doc_id for document in documents(tmp_path / "out")}
    assert all(names[tuple(document.token_ids)] == document.doc_id for document in documents(tmp_path / "back"))
    for file in files:
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    imported(form, tmp_path / "dest", tmp_path / "nameless", product="student/sp")
    assert [document.doc_id for document in documents(tmp_path / "nameless")][:2] == [
        f"{files[0].name}#{n}" for n in (0, 1)
    ]
    code, _, said = call("diff", tmp_path / "out", tmp_path / "nameless")
    assert code == 1 and "calls them FILE#NUMBER (docs/exchange.md)" in said


def test_an_import_says_what_it_does_not_know(tmp_path: Path, call: Call) -> None:
    """No certificate: no flag of one, a width that is true of anything; shares that mean nothing; no text."""
    random_output(tmp_path / "out")
    exported(tmp_path / "out", "axolotl", tmp_path / "dest")
    manifest = imported("axolotl", tmp_path / "dest", tmp_path / "back")
    facts = manifest.products["student/sp"]
    assert facts.regime == "imported" and "no certificate" in facts.notes[0]
    assert "no certificate" in (tmp_path / "back" / "README.md").read_text()
    for document in documents(tmp_path / "back"):
        assert (document.err == document.scored).all() and not (document.flags & CERTIFICATES).any()
        assert document.text == "" and not document.open_mass.any() and not document.excluded_mass.any()
        assert (document.flags[~document.scored] & FLAG_GIVEN).all()
    assert next(Targets(tmp_path / "back", max_width=0.5).documents()).left_out > 0
    for verb, words in {
        "stats": "a width of 1 is no certificate",
        "show": "student sp (imported)",
        "cat": '"err": [1.0',
    }.items():
        code, said, _ = call(verb, tmp_path / "back")
        assert code == 0 and words in " ".join(said.split()), verb
    batch = next(Targets(tmp_path / "back").batches(2))
    ids, logps, tail = (batch[key][batch["mask"]] for key in ("ids", "logps", "tail_logp"))
    logits = torch.randn(len(ids), vocabulary().size, generator=torch.Generator().manual_seed(0))
    assert (forward_kl(logits, ids, logps, tail) > 0).all()


def test_certificates_in_an_import_are_findings(tmp_path: Path) -> None:
    """Rows as a run would have them, called imported: bit 2, a width below 1, shares."""
    random_output(tmp_path / "out", regime="imported")
    found = {finding.column: finding.wanted for finding in verify(tmp_path / "out").findings if finding.column}
    assert "no certificate" in found["flags"] and found["err"] == "1, which any distribution keeps"
    assert found["open_mass"] == "0 in the regime imported"


def test_an_import_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Some files of it lost, as by a kill before they were written: the same command makes the same bytes."""
    random_output(tmp_path / "out", units=(3, 2, 2))
    exported(tmp_path / "out", "trl", tmp_path / "dest")
    imported("trl", tmp_path / "dest", tmp_path / "back")
    whole = contents(tmp_path / "back")
    for name in ("_engine/manifest.json", "README.md", "_engine/shards/00001.json"):
        (tmp_path / "back" / name).unlink()
    shard = next((tmp_path / "back/data/student/sp").glob("train-00002-*"))
    shard.unlink()
    (tmp_path / "back" / "_engine/shards/00002.json").unlink()
    imported("trl", tmp_path / "dest", tmp_path / "back")
    assert contents(tmp_path / "back") == whole


def test_large_records_are_units_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut into units changes no row."""
    random_output(tmp_path / "out", units=(6,))
    exported(tmp_path / "out", "megatron", tmp_path / "dest")
    imported("megatron", tmp_path / "dest", tmp_path / "one")
    monkeypatch.setattr("engine.exchange.incoming.UNIT_VALUES", 250)
    assert len(imported("megatron", tmp_path / "dest", tmp_path / "many").shards) > 2
    for one, other in zip(documents(tmp_path / "one"), documents(tmp_path / "many"), strict=True):
        assert one.doc_id == other.doc_id
        same_rows(one, other, "megatron")
