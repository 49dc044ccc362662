"""A subset student that spells an added text of the teacher (`</think>`) is made in beam where the corpus holds that text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from engine.corpus.scan import scan_corpus
from engine.dataset.layout import load_manifest, load_plan
from engine.plan.make_plan import make_plan
from engine.plan.regimes import why_of
from engine.plan.vocabularies import load_vocabularies
from engine.verify.rescore import open_rescorer
from schemas.manifest import ProductFacts
from schemas.runfile import load_run
from schemas.settings_targets import TargetsConfig
from tests.support.chats import CHATML, chat_teacher
from tests.support.runs import ASSETS, TEXTS, score_here, write_run, write_subset

MARK = "</think>"
THOUGHT = f"6 + 6 is 12.{MARK}\nIt is 12."


def with_mark(folder: Path) -> Path:
    """The demo's teacher in `folder`, with one more token, which is text."""
    shutil.copytree(ASSETS / "teacher", folder)
    add_mark(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(folder)
    return folder


def add_mark(folder: Path) -> None:
    """One more token in a tokenizer.json, which is text."""
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    size = max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]) + 1
    spec["added_tokens"].append({"id": size, "content": MARK, **plain})
    file.write_text(json.dumps(spec), encoding="utf-8")


def run_with(folder: Path, texts: tuple[str, ...], targets: str = "top_k = 16", *, corpus: str = "") -> Path:
    """A run file: that teacher, and two subset students of which one has the mark as well."""
    teacher, lacks, has = with_mark(folder / "marked"), write_subset(folder / "lacks"), write_subset(folder / "has")
    add_mark(has)
    run_file = write_run(folder, texts=texts, targets=targets, students={"lacks": lacks, "has": has})
    text = run_file.read_text(encoding="utf-8").replace(json.dumps(str(ASSETS / "teacher")), json.dumps(str(teacher)))
    run_file.write_text(text.replace("[corpus]", f"[corpus]\n{corpus}"), encoding="utf-8")
    return run_file


def planned(run_file: Path) -> dict[str, ProductFacts]:
    run = load_run(run_file)
    return make_plan(run, scan_corpus(run.corpus, run.base_dir)).products


@pytest.mark.parametrize(
    ("texts", "targets", "regime", "told"),
    [
        ((*TEXTS, THOUGHT), "top_k = 16", "beam", f"hold '{MARK}'"),
        (TEXTS, "top_k = 16", "subset", f"exact for texts without '{MARK}'"),
        ((*TEXTS, THOUGHT), 'regime = "exact"', "subset", f"exact for texts without '{MARK}'"),
    ],
)
def test_the_corpus_decides_where_nobody_else_does(
    texts: tuple[str, ...], targets: str, regime: str, told: str, tmp_path: Path
) -> None:
    run_file = run_with(tmp_path, texts, targets)
    products, known = planned(run_file), load_vocabularies(load_run(run_file))
    why = why_of(TargetsConfig(), products["student/lacks"].regime, known.teacher, known.students["student/lacks"])
    assert ("the corpus holds added texts" in why) == (regime == "beam")
    assert products["student/has"].regime == "subset" and not any(MARK in n for n in products["student/has"].notes)
    assert products["student/lacks"].regime == regime
    assert told in products["student/lacks"].notes[-1]


def test_every_document_is_scored_and_compared_without_the_corpus(tmp_path: Path) -> None:
    """The actors and `verify` take the regime from the plan: the second has no corpus to look at."""
    run_file = run_with(tmp_path, (*TEXTS[:2], THOUGHT), "top_k = 16\ncalibration_documents = 0")
    out = score_here(run_file)
    assert load_manifest(out).quarantined == 0
    assert {name: facts.regime for name, facts in load_plan(out).products.items()} == {
        "teacher": "own", "student/lacks": "beam", "student/has": "subset",
    }  # fmt: skip
    (tmp_path / "corpus.jsonl").rename(tmp_path / "elsewhere")
    rescorer = open_rescorer(out, load_run(run_file), seed=0)
    for one in (*rescorer.rescore(3, 0.01), *rescorer.oracle(1)):
        assert not one.findings, one.findings


@pytest.mark.parametrize(("thinking", "regime"), [("score", "beam"), ("keep", "subset")])
def test_in_conversations_only_what_is_scored_counts(thinking: str, regime: str, tmp_path: Path) -> None:
    teacher = chat_teacher(tmp_path / "chat", "chatml")
    add_mark(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(teacher)
    student = tmp_path / "student"
    shutil.copytree(teacher, student, ignore=shutil.ignore_patterns("*.safetensors"))
    spec = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] != MARK]
    (student / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    talk = [{"role": "user", "content": "6+6?"}, {"role": "assistant", "content": f"<think>\n{THOUGHT}"}]
    run_file = write_run(
        tmp_path, texts=(), lines=json.dumps({"id": "a", "messages": talk}) + "\n", students={"s": student}
    )
    text = run_file.read_text(encoding="utf-8").replace(json.dumps(str(ASSETS / "teacher")), json.dumps(str(teacher)))
    text = text.replace("[corpus]", f'[corpus]\nmessages = "messages"\nthinking = "{thinking}"')
    run_file.write_text(text, encoding="utf-8")
    assert CHATML in json.loads((student / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert planned(run_file)["student/s"].regime == regime
