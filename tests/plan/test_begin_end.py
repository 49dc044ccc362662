"""Begin and end tokens at the start of a run: what is refused, and what is said where files disagree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.card import markdown
from engine.corpus.scan import scan_corpus
from engine.plan.make_plan import make_plan
from schemas.errors import RunFileError
from schemas.manifest import Plan
from schemas.runfile import load_run
from tests.support.runs import ASSETS, score_here, write_run


def plan_of(run_file: Path) -> Plan:
    run = load_run(run_file)
    return make_plan(run, scan_corpus(run.corpus, run.base_dir))


def changed(folder: Path, to: Path, **config: object) -> Path:
    """A copy with these keys in tokenizer_config.json; None takes a key out."""
    shutil.copytree(folder, to)
    file = to / "tokenizer_config.json"
    content = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
    return to


def test_a_student_without_an_end_is_refused_where_ends_are_scored(tmp_path: Path) -> None:
    student = changed(ASSETS / "student_sp", tmp_path / "sp", eos_token=None)
    with pytest.raises(RunFileError, match=r"(?s)\[\[student\]\].*names no end token.*end = false"):
        plan_of(write_run(tmp_path, students={"sp": student}))
    facts = plan_of(write_run(tmp_path, students={"sp": student}, targets="end = false")).products["student/sp"]
    assert facts.eos_id is None


def test_files_that_agree_are_not_mentioned(tmp_path: Path) -> None:
    plan = plan_of(write_run(tmp_path))
    assert all(facts.notes == () for facts in plan.products.values())
    assert b'"notes"' not in plan.to_bytes()


def test_a_bos_that_only_the_configuration_names_is_said(tmp_path: Path) -> None:
    plain = plan_of(write_run(tmp_path))
    teacher = changed(ASSETS / "teacher", tmp_path / "teacher", add_bos_token=True)
    file = teacher / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    file.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    run_file = write_run(tmp_path)
    text = run_file.read_text().replace(json.dumps(str(ASSETS / "teacher")), json.dumps(str(teacher)))
    run_file.write_text(text)
    plan = plan_of(run_file)
    (note,) = plan.products["student/sp"].notes
    assert "without a BOS token" in note and "add_bos_token = true" in note and "[teacher] bos = true or false" in note
    assert Plan.model_validate_json(plan.to_bytes()) == plan
    assert plan.recompute() == plan.fingerprint and "notes" not in "".join(plan.difference(plain))
    out = score_here(run_file)
    assert markdown.plain(note) in (out / "README.md").read_text()
    run_file.write_text(text.replace("[corpus]", "bos = false\n[corpus]"))
    assert plan_of(run_file).products["student/sp"].notes == ()
