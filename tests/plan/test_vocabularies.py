"""Plan and actors ask for the same tokenizers, at the same commits. The Hub is its own cache on disk, asked offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from engine.bpe.vocabulary import load_vocabulary
from engine.corpus.scan import scan_corpus
from engine.plan.make_plan import make_plan
from engine.plan.pin import pin
from engine.plan.vocabularies import load_teacher_vocabulary, load_vocabularies
from engine.scoring.scorer import Scorer
from schemas.runfile import RunConfig, load_run
from tests.support.chats import CHATML
from tests.support.runs import ASSETS, write_run

MODEL, TOKENIZER, LATER, STUDENT = "a" * 40, "b" * 40, "c" * 40, "d" * 40


class Hub:
    """The cache of the Hub in a folder, as huggingface_hub lays it out; what is not in it cannot be had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def commit(self, name: str, commit: str, files: Path) -> Path:
        """A commit of a repository, to which `main` points from now on."""
        repository = self.folder / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return shutil.copytree(files, repository / "snapshots" / commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Hub(tmp_path / "hub")


def run_on_the_hub(folder: Path, teacher: str, student: str = str(ASSETS / "student_bl")) -> RunConfig:
    """A run whose [teacher] table is `teacher`."""
    run_file = write_run(folder, students={"s": Path(student)})
    text = run_file.read_text(encoding="utf-8")
    old = f"model = {json.dumps(str(ASSETS / 'teacher'))}"
    assert old in text
    run_file.write_text(text.replace(old, teacher), encoding="utf-8")
    return load_run(run_file)


def test_a_tokenizer_apart_has_its_own_commit(tmp_path: Path, hub: Hub) -> None:
    """Model and tokenizer are two repositories: neither has the other's commit. The tokenizer's branch moves on in between."""
    hub.commit("org/model", MODEL, ASSETS / "teacher")
    hub.commit("org/tokenizer", TOKENIZER, ASSETS / "teacher")
    run = run_on_the_hub(tmp_path, 'model = "org/model"\ntokenizer = "org/tokenizer"')
    plan = make_plan(run, scan_corpus(run.corpus, run.base_dir))
    pinned = pin(run)
    assert (pinned.teacher.model, pinned.teacher.revision) == ("org/model", MODEL)
    assert (pinned.teacher.tokenizer, pinned.teacher.tokenizer_revision) == ("org/tokenizer", TOKENIZER)
    hub.commit("org/tokenizer", LATER, ASSETS / "student_bl")
    made = Scorer(pinned)
    assert made.stages.vocabulary.content_hash == plan.products["teacher"].tokenizer_hash
    assert load_teacher_vocabulary(pinned).content_hash == plan.products["teacher"].tokenizer_hash
    assert load_teacher_vocabulary(run).content_hash == load_vocabulary(str(ASSETS / "student_bl")).content_hash


def test_a_tokenizer_apart_of_a_local_model(tmp_path: Path, hub: Hub) -> None:
    hub.commit("org/tokenizer", TOKENIZER, ASSETS / "teacher")
    hub.commit("org/tokenizer", LATER, ASSETS / "student_bl")
    model = json.dumps(str(ASSETS / "teacher"))
    run = run_on_the_hub(tmp_path, f'model = {model}\ntokenizer = "org/tokenizer"\ntokenizer_revision = "{TOKENIZER}"')
    known = load_vocabularies(run)
    assert known.teacher.content_hash == load_vocabulary(str(ASSETS / "teacher")).content_hash
    assert pin(run).teacher.tokenizer_revision == TOKENIZER


def test_a_tokenizer_beside_the_model_has_the_models_commit(tmp_path: Path, hub: Hub) -> None:
    hub.commit("org/model", MODEL, ASSETS / "teacher")
    hub.commit("org/student", STUDENT, ASSETS / "student_bl")
    run = run_on_the_hub(tmp_path, f'model = "org/model"\nrevision = "{MODEL}"')
    run = run.model_copy(update={"student": (run.student[0].model_copy(update={"tokenizer": "org/student"}),)})
    pinned = pin(run)
    hub.commit("org/model", LATER, ASSETS / "student_bl")
    hub.commit("org/student", "e" * 40, ASSETS / "student_sp")
    assert (pinned.teacher.tokenizer, pinned.teacher.tokenizer_revision) == (None, None)
    known = load_vocabularies(pinned)
    assert known.teacher.content_hash == load_vocabulary(str(ASSETS / "teacher")).content_hash
    assert known.students["student/s"].content_hash == load_vocabulary(str(ASSETS / "student_bl")).content_hash
    assert known.by_product == {"teacher": known.teacher, **known.students}


def test_the_chat_template_is_the_one_of_the_tokenizers_commit(tmp_path: Path, hub: Hub) -> None:
    hub.commit("org/model", MODEL, ASSETS / "teacher")
    folder = hub.commit("org/tokenizer", TOKENIZER, ASSETS / "teacher")
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    run = run_on_the_hub(tmp_path, 'model = "org/model"\ntokenizer = "org/tokenizer"')
    corpus = run.corpus.model_copy(update={"messages": "messages", "text": None})
    student = run.student[0].model_copy(update={"chat_template": CHATML})
    run = run.model_copy(update={"corpus": corpus, "student": (student,)})
    pinned = pin(run)
    hub.commit("org/tokenizer", LATER, ASSETS / "teacher")  # without a chat template
    known = load_vocabularies(pinned)
    assert known.chat["teacher"].template.text == CHATML
    assert known.hashes["teacher"] == load_vocabulary(str(ASSETS / "teacher")).content_hash


def test_added_texts_that_a_subset_student_lacks_are_told(tmp_path: Path) -> None:
    """Documents that hold one go to quarantine; the start, plan.json and the card say which they are."""
    folder, spec = tmp_path / "other", json.loads((ASSETS / "teacher" / "tokenizer.json").read_text(encoding="utf-8"))
    shutil.copytree(ASSETS / "teacher", folder)
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    size = max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]) + 1
    spec["added_tokens"].append({"id": size, "content": "<think>", **plain})
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    run_file = write_run(tmp_path, students={"s": ASSETS / "teacher"})
    text = run_file.read_text(encoding="utf-8").replace(
        "[teacher]", f"[teacher]\ntokenizer = {json.dumps(str(folder))}", 1
    )
    run_file.write_text(text, encoding="utf-8")
    run = load_run(run_file)
    facts = make_plan(run, scan_corpus(run.corpus, run.base_dir)).products["student/s"]
    assert facts.regime == "subset"
    assert "exact for texts without '<think>'" in facts.notes[-1] and 'regime = "beam"' in facts.notes[-1]
