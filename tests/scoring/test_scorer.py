"""The unit scorer on real models: every document accounted for, every stored row a distribution, bad input named."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine.corpus.document import Document
from engine.dataset.invariants import check_rows
from engine.dataset.parquet import flat, lengths_of, round_rows
from engine.dataset.unit_result import UnitResult
from engine.plan.vocabularies import Vocabularies
from engine.scoring.scorer import Scorer
from engine.scoring.stages import derive_stages
from schemas.errors import RunFileError, TeacherError
from schemas.runfile import parse_run
from schemas.target import FLAG_BOUNDED, FLAG_BUDGET, FLAG_END, FLAG_EXACT, FLAG_GIVEN, ROW_SCHEMA
from tests.support.runs import write_subset
from tests.support.tables import facts_of
from tests.support.vocabularies import SHARED, needs_shared

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "jobs" / "demo_assets"

HOSTILE = (
    "  two spaces,\n\n\ttabs and\u00a0more  \n",
    "naïve café — “quotes” ’tis 𝒳 漢字 🏳️‍🌈!",
    "it's we'll THEY'RE 12345 3.14 1,000",
    "<|bos|> <s> </s> <unk> <0x0A> are plain text here",
    "x",
)
PLAIN = (HOSTILE[0], *HOSTILE[2:])
"""Without characters of three and four bytes, behind whose first bytes each new scorer asks about all that begin so: seconds."""


def scorer(
    teacher: Path,
    students: dict[str, Path],
    /,
    *,
    top_k: int = 16,
    settings: dict[str, Any] | None = None,
    **targets: Any,
) -> Scorer:
    run = {
        "output": "out",
        "teacher": {"model": str(teacher), "device": "cpu", **(settings or {})},
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": name, "tokenizer": str(path)} for name, path in students.items()],
        "targets": {"top_k": top_k, **targets},
    }
    return Scorer(parse_run(run, base_dir=ROOT))


def documents(texts: Sequence[str]) -> list[Document]:
    return [Document(f"d{i}", i, text, "corpus.jsonl", f"line {i + 1}") for i, text in enumerate(texts)]


def demo(**settings: Any) -> Scorer:
    return scorer(ASSETS / "teacher", {"sp": ASSETS / "student_sp", "bl": ASSETS / "student_bl"}, settings=settings)


def demo_texts(count: int) -> list[str]:
    lines = (ASSETS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["text"] for line in lines]


def column(table: pa.Table, name: str, row: int, width: int = 1) -> np.ndarray:
    values = np.array(table.column(name)[row].as_py())
    return values.reshape(-1, width) if width > 1 else values


def check(unit: UnitResult, scorer: Scorer, docs: Sequence[Document], top_k: int = 16) -> None:
    """What must hold for every unit: schema, no NaN, mass 1, each document in all tables or in quarantine."""
    refused = {r["doc_id"] for r in unit.quarantine}
    assert len(refused) == len(unit.quarantine)
    assert set(unit.products) == {"teacher", *scorer.stages.students}
    for product, table in unit.products.items():
        assert table.schema.equals(ROW_SCHEMA)
        assert table.column("doc_id").to_pylist() == [d.doc_id for d in docs if d.doc_id not in refused]
        vocabulary = scorer.stages.vocabulary if product == "teacher" else scorer.stages.students[product]
        for name in ("topk_logps", "tail_logp", "gold_logp", "err", "open_mass", "excluded_mass", "pruned_mass"):
            assert not np.isnan(flat(table, name)).any(), (product, name)
        mass = np.exp(flat(table, "topk_logps").astype(np.float64)).reshape(-1, top_k).sum(1)
        mass += np.exp(flat(table, "tail_logp").astype(np.float64))
        np.testing.assert_allclose(mass, 1, rtol=0, atol=1e-6)
        check_rows(round_rows(table), facts_of(top_k, vocabulary.size), where=product)
        by_id = {d.doc_id: d for d in docs}
        ends = np.cumsum(lengths_of(table)) - 1
        assert (flat(table, "flags")[ends] & FLAG_END != 0).all()
        for row, doc_id in enumerate(table.column("doc_id").to_pylist()):
            ids = column(table, "token_ids", row)
            assert ids[-1] == vocabulary.eos_id
            pieces = b"".join(vocabulary.token_bytes[i] or b"" for i in ids[:-1])
            assert pieces == vocabulary.prefix_bytes + by_id[doc_id].text.encode()
            assert column(table, "byte_end", row)[-1] == len(by_id[doc_id].text.encode())
    assert unit.stats["documents"] == len(docs) and unit.stats["quarantined"] == len(refused)


def test_what_is_done_is_reported_behind_each_group() -> None:
    made, reports, steps = demo(batch_tokens=256), list[tuple[int, int]](), list[str]()
    docs = documents([*demo_texts(12), ""])
    whole = made.score_unit(docs, lambda done, tokens: reports.append((done, tokens)))
    assert len(reports) > 2 and reports == sorted(set(reports))
    assert reports[-1] == (len(docs), int(whole.stats["teacher_tokens"])) and 0 < reports[0][0] < 10
    Scorer(made.stages.run, progress=lambda done, total, what: steps.append(what))
    assert steps[:2] == ["loading the tokenizers", "loading the teacher"]


@pytest.fixture(scope="module")
def ready() -> Scorer:
    return demo()


def test_the_demo_assets(ready: Scorer):
    docs = documents([*demo_texts(5), *HOSTILE])
    unit = ready.score_unit(docs)
    check(unit, ready, docs)
    assert unit.quarantine == []
    for product, table in unit.products.items():
        assert flat(table, "scored").all(), product
        wanted = FLAG_EXACT if product == "teacher" else FLAG_EXACT | FLAG_BOUNDED
        assert (flat(table, "flags") & wanted != 0).all()
    assert (flat(unit.products["teacher"], "err") == 0).all()
    tolerance = ready.stages.run.targets.tolerance
    assert not ready.stages.run.targets.certified  # no run file names it: small vocabularies go by it all the same
    for name in ("sp", "bl"):
        err, flags = flat(unit.products[f"student/{name}"], "err"), flat(unit.products[f"student/{name}"], "flags")
        np.testing.assert_array_equal(flags & FLAG_BUDGET != 0, err > tolerance)
        assert (err > tolerance).any() and (err <= tolerance).any()
    for name in ("sp", "bl"):  # a trained teacher: the gold token is no surprise, in either vocabulary
        table = unit.products[f"student/{name}"].slice(0, 5)
        nats = -flat(table, "gold_logp").sum() / sum(len(d.text.encode()) for d in docs[:5])
        assert nats < 0.4, (name, nats)


def test_the_teachers_rows_are_the_models_own(ready: Scorer):
    """Against one plain pass of the model over BOS and the text."""
    text = demo_texts(1)[0]
    table = ready.score_unit(documents([text])).products["teacher"]
    ids = column(table, "token_ids", 0)
    with torch.inference_mode():
        logits = ready.stages.teacher.model(torch.tensor([[*ready.stages.bos, *ids[:-1]]])).logits[0].double()
    logp = logits[:, : ready.stages.vocabulary.size].log_softmax(-1)[len(ready.stages.bos) - 1 :].numpy()
    np.testing.assert_allclose(column(table, "gold_logp", 0), logp[np.arange(len(ids)), ids], atol=1e-4)
    top, got = -np.sort(-logp, axis=1)[:, :16], column(table, "topk_logps", 0, 16)
    np.testing.assert_allclose(got, top, atol=1e-4)


def test_chain_rule_against_the_teacher(ready: Scorer):
    """The student's gold log-probabilities add up to nearly the teacher's: both are log P(text) up to other segmentations."""
    docs = documents(demo_texts(8))
    unit = ready.score_unit(docs)
    own = flat(unit.products["teacher"], "gold_logp").sum()
    for name in ("sp", "bl"):
        total = flat(unit.products[f"student/{name}"], "gold_logp").sum()
        assert abs(total - own) < 0.1 * abs(own), (name, total, own)


@pytest.mark.parametrize("size", [1, 3])
def test_units_of_any_size_give_the_same_rows(ready: Scorer, size: int):
    docs = documents(demo_texts(4))
    whole = ready.score_unit(docs)
    for product, table in whole.products.items():
        parts = [ready.score_unit(docs[i : i + size]).products[product] for i in range(0, len(docs), size)]
        again = pa.concat_tables(parts)
        for name in ("token_ids", "byte_end", "scored", "flags"):
            np.testing.assert_array_equal(flat(table, name), flat(again, name))
        for name in ("gold_logp", "tail_logp"):
            np.testing.assert_allclose(np.exp(flat(table, name)), np.exp(flat(again, name)), atol=1e-5)


def test_without_bos_the_first_token_is_given():
    ready = demo(bos=False)
    docs = documents([*demo_texts(3), "x"])
    unit = ready.score_unit(docs)
    check(unit, ready, docs)
    assert [(r["doc_id"], r["reason"]) for r in unit.quarantine] == [("d3", "too_short")]
    assert unit.quarantine[0]["place"] == "line 4" and len(unit.quarantine[0]["text_sha256"]) == 64
    for product, table in unit.products.items():
        for row in range(3):
            given = column(unit.products["teacher"], "byte_end", row)[0]
            starts = np.concatenate([[0], column(table, "byte_end", row)[:-1]])
            scored, flags = column(table, "scored", row), column(table, "flags", row)
            np.testing.assert_array_equal(scored, starts >= given, err_msg=product)
            np.testing.assert_array_equal(flags & FLAG_GIVEN != 0, starts < given)
            assert not scored[0] and np.isneginf(column(table, "gold_logp", row)[0])


@pytest.mark.parametrize("settings", [{}, {"max_length": 40, "overlap": 10}])
def test_with_masked_semantics_all_exact_products_give_a_text_one_probability(settings: dict[str, Any], tmp_path: Path):
    """Lemma 13: conditionals of one distribution over texts, whatever they are cut into. Specials are excluded."""
    students = {"sub": write_subset(tmp_path / "sub")}
    ready = scorer(ASSETS / "teacher", students, settings=settings, bytes=True, semantics="canonical-masked")
    unit = ready.score_unit(documents([*demo_texts(1), *(PLAIN if settings else HOSTILE)]))
    assert ready.stages.regimes == {"student/sub": "subset"} and not unit.quarantine
    for row in range(unit.products["bytes"].num_rows):
        nats = {}
        for product, table in unit.products.items():
            gold, excluded = column(table, "gold_logp", row), column(table, "excluded_mass", row)
            assert column(table, "scored", row).all() and not column(table, "err", row).any()
            nats[product] = float(gold.sum() + np.log1p(-excluded).sum())
        assert nats["student/sub"] == pytest.approx(nats["bytes"], abs=1e-3), row
        assert nats["student/sub"] == pytest.approx(nats["teacher"], abs=1e-3), row


def test_a_document_longer_than_the_context(ready: Scorer):
    text = " ".join(demo_texts(3))
    docs = documents([text, demo_texts(1)[0]])
    short = demo(max_length=64, overlap=16)
    windowed, whole = short.score_unit(docs), ready.score_unit(docs)
    check(windowed, short, docs)
    assert windowed.quarantine == []
    for product, table in windowed.products.items():
        plain = whole.products[product]
        assert flat(table, "scored").all()
        np.testing.assert_array_equal(flat(table, "token_ids"), flat(plain, "token_ids"))
        gap = abs(np.exp(column(table, "gold_logp", 0)) - np.exp(column(plain, "gold_logp", 0)))
        assert gap[:40].max() < 1e-4, product  # inside the first window nothing changes
        assert gap.max() > 1e-3, product  # and later it does, or nothing was cut
        np.testing.assert_allclose(column(table, "gold_logp", 1)[:40], column(plain, "gold_logp", 1)[:40], atol=1e-3)
        both = column(table, "gold_logp", 0).mean(), column(plain, "gold_logp", 0).mean()
        assert abs(both[0] - both[1]) < 0.5, (product, both)
    with pytest.raises(TeacherError, match="overlap"):
        demo(max_length=32, overlap=31).score_unit(docs)


def test_bad_documents_leave_and_the_others_stay(ready: Scorer):
    good = demo_texts(4)
    docs = documents([good[0], "", good[1], "added " * 3, good[2], "unread", good[3]])
    docs[1] = Document("d1", 1, "", "corpus.jsonl", "line 2", problem=("malformed_json", "Expecting ',' at column 7"))
    docs[3] = Document(
        "d3", 3, "", "corpus.jsonl", "line 4", problem=("too_long", "longer than any pattern can be followed")
    )
    docs[5] = Document("d5", 5, "", "corpus.jsonl", "line 6", problem=("invalid_utf8", "byte 3"))
    unit = ready.score_unit(docs)
    check(unit, ready, docs)
    assert [(r["doc_row"], r["reason"]) for r in unit.quarantine] == [
        (1, "malformed_json"),
        (3, "too_long"),
        (5, "invalid_utf8"),
    ]
    assert unit.quarantine[0]["text_sha256"] is None and unit.quarantine[0]["detail"] == "Expecting ',' at column 7"
    alone = ready.score_unit([docs[i] for i in (0, 2, 4, 6)])
    for product, table in unit.products.items():
        np.testing.assert_allclose(flat(table, "gold_logp"), flat(alone.products[product], "gold_logp"), atol=1e-4)


def test_a_unit_of_bad_documents_only_gives_empty_tables(ready: Scorer):
    docs = [Document("d0", 0, "", "c.jsonl", "line 1", problem=("empty_text", "no text"))]
    unit = ready.score_unit(docs)
    check(unit, ready, docs)
    assert {t.num_rows for t in unit.products.values()} == {0}


def test_a_model_that_breaks_on_one_token():
    """NaN in one row of the input embeddings: the documents with that token are refused, with the place."""
    ready = demo()
    texts = ["Anna has 3 apples.", "She buys 4 more ☃ apples.", "9 × 9 = 81"]
    broken = ready.stages.vocabulary.encode("☃")[0][-1]
    assert broken not in {i for t in (texts[0], texts[2]) for i in ready.stages.vocabulary.encode(t)[0]}
    old = ready.stages.teacher.model.get_input_embeddings()
    weight = old.weight.detach().clone()
    weight[broken] = torch.nan
    ready.stages.teacher.model.set_input_embeddings(torch.nn.Embedding.from_pretrained(weight))
    docs = documents(texts)
    unit = ready.score_unit(docs)
    check(unit, ready, docs)
    assert [(r["doc_id"], r["reason"]) for r in unit.quarantine] == [("d1", "nonfinite_logprob")]
    # Which position comes first depends on the attention kernel: a weight of 0 times a NaN value is NaN, too.
    assert re.search(r"after byte \d+ of the text \(depth \d+\) is not finite", unit.quarantine[0]["detail"])


@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_a_model_that_breaks_on_one_token_breaks_one_document_of_every_product(eps: float):
    """The same with bytes and a student of the teacher's own merges: the reason is what the teacher gave, not a sum."""
    ready = scorer(ASSETS / "teacher", {"same": ASSETS / "teacher"}, bytes=True, eps=eps)
    texts = ["Anna has 3 apples.", "She buys 4 more ☃ apples.", "9 × 9 = 81"]
    broken = ready.stages.vocabulary.encode("☃")[0][-1]
    weight = ready.stages.teacher.model.get_input_embeddings().weight.detach().clone()
    weight[broken] = torch.nan
    ready.stages.teacher.model.set_input_embeddings(torch.nn.Embedding.from_pretrained(weight))
    unit = ready.score_unit(documents(texts))
    assert [(r["doc_id"], r["reason"]) for r in unit.quarantine] == [("d1", "nonfinite_logprob")]
    assert {t.num_rows for t in unit.products.values()} == {2}


def test_an_end_that_is_text_is_text():
    """Some generation configs stop at ordinary tokens; their mass is text's, and only the real end ends a text."""
    plain = scorer(ASSETS / "teacher", {"same": ASSETS / "teacher"}, bytes=True)
    stages = plain.stages
    newline = stages.vocabulary.encode("a\n")[0][-1]
    teacher = dataclasses.replace(stages.teacher, end_ids=(*stages.teacher.end_ids, newline))
    known = Vocabularies(stages.vocabulary, stages.students, {}, {})
    listed = Scorer(stages.run, derive_stages(stages.run, known, teacher, stages.regimes))
    docs = documents(["Anna has 3 apples.\nShe eats one."])
    ours, theirs = listed.score_unit(docs), plain.score_unit(docs)
    assert not ours.quarantine
    assert all(ours.products[p].equals(theirs.products[p]) for p in ours.products)


def test_products_do_not_change_each_other():
    """Bytes and the teacher's own view, alone and beside foreign students: equal to rounding of the teacher's passes."""
    docs = documents([*PLAIN, *demo_texts(1)])
    alone = scorer(ASSETS / "teacher", {"same": ASSETS / "teacher"}, bytes=True).score_unit(docs)
    foreign = {"sp": ASSETS / "student_sp", "same": ASSETS / "teacher", "bl": ASSETS / "student_bl"}
    beside = scorer(ASSETS / "teacher", foreign, bytes=True).score_unit(docs)
    assert alone.quarantine == beside.quarantine == []
    for product in ("teacher", "student/same", "bytes"):
        ours, theirs = alone.products[product], beside.products[product]
        for name in ("tail_logp", "gold_logp"):
            values = [np.exp(t[name].combine_chunks().flatten().to_numpy()) for t in (ours, theirs)]
            np.testing.assert_allclose(values[0], values[1], atol=2e-6)


def test_a_regime_that_is_not_there_is_refused():
    with pytest.raises(RunFileError, match="no subset of the teacher"):
        scorer(ASSETS / "teacher", {"sp": ASSETS / "student_sp"}, regime="exact")


@needs_shared
def test_stories260k_with_several_students():
    students = {
        "tok361": SHARED / "models" / "babyllama-tok361",
        "same": SHARED / "models" / "vachan-gpt2-280K",
        "gpt2": SHARED / "tokenizers" / "gpt2",
    }
    ready = scorer(SHARED / "models" / "stories260K", students)
    raw = (SHARED / "text" / "tinystories_sample_2MB.txt").read_text(encoding="utf-8")
    docs = documents([t.strip() for t in raw.split("<|endoftext|>")[:3]])
    unit = ready.score_unit(docs)
    check(unit, ready, docs)
    assert unit.quarantine == []
    own, same = unit.products["teacher"], unit.products["student/same"]
    for name in (
        "token_ids",
        "topk_ids",
        "topk_logps",
        "gold_logp",
        "err",
    ):  # the same tokenizer: the teacher's own rows
        np.testing.assert_array_equal(flat(own, name), flat(same, name))
    assert (flat(same, "flags") & FLAG_EXACT != 0).all()
    for name in ("tok361", "gpt2"):
        table = unit.products[f"student/{name}"]
        assert flat(table, "scored").all() and (flat(table, "err") < 1).any()
        nats = -flat(table, "gold_logp").sum() / sum(len(d.text) for d in docs)
        assert nats < 0.8, (name, nats)


@needs_shared
def test_texts_that_a_student_cannot_give_back():
    students = {"qwen": SHARED / "tokenizers" / "qwen2.5-subset-8000", "tok105": SHARED / "models" / "babyllama-tok105"}
    ready = scorer(SHARED / "models" / "stories260K", students)
    docs = documents(["Once upon a time.", "Cafe\u0301 time.", "One day \u6f22.", "The end."])
    unit = ready.score_unit(docs)
    check(unit, ready, docs)
    assert [(r["doc_id"], r["reason"]) for r in unit.quarantine] == [("d1", "not_reversible"), ("d2", "unknown_token")]
    assert "qwen2.5-subset-8000 changes the text at byte 3" in unit.quarantine[0]["detail"]
    assert "babyllama-tok105" in unit.quarantine[1]["detail"]
