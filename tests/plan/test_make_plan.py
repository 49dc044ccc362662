"""The fingerprint changes with all that changes the answer and with nothing else; missing teacher files are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.corpus.scan import scan_corpus
from engine.plan.make_plan import make_plan
from engine.plan.pin import pin
from schemas.errors import RunFileError, TeacherError, TokenizerError
from schemas.manifest import Plan
from schemas.runfile import RunConfig, load_run
from tests.support.runs import ASSETS, TEXTS, write_run, write_subset


def plan_of(run_file: Path) -> Plan:
    run = load_run(run_file)
    return make_plan(run, scan_corpus(run.corpus, run.base_dir))


def edited(run_file: Path, old: str, new: str) -> Path:
    text = run_file.read_text(encoding="utf-8")
    assert old in text
    run_file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return run_file


def own_teacher(folder: Path) -> Path:
    """A run whose teacher is a private copy in `folder`/teacher."""
    shutil.copytree(ASSETS / "teacher", folder / "teacher")
    return edited(write_run(folder), json.dumps(str(ASSETS / "teacher")), '"teacher"')


def test_the_same_run_elsewhere_has_the_same_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = plan_of(write_run(tmp_path / "a")), plan_of(own_teacher(tmp_path / "b"))
    assert one.difference(two) == [] and one.fingerprint == two.fingerprint


@pytest.mark.parametrize(
    "extra", ["[ray]\nactors = 7\nnum_cpus = 2.0", '[ray]\naddress = "10.0.0.1:6379"\nmax_in_flight = 5']
)
def test_where_it_runs_is_no_part_of_the_fingerprint(extra: str, tmp_path: Path) -> None:
    plain = plan_of(write_run(tmp_path)).fingerprint
    edited(write_run(tmp_path, extra=extra), "[corpus]", 'device = "cpu"\nbatch_tokens = 77\n[corpus]')
    assert plan_of(tmp_path / "run.toml").fingerprint == plain


CHANGES: dict[str, Callable[[Path], None]] = {
    "settings.targets.top_k": lambda run: edited(run, "top_k = 16", "top_k = 17") and None,
    "settings.targets.end": lambda run: edited(run, "top_k = 16", "top_k = 16\nend = false") and None,
    "settings.teacher.max_length": lambda run: edited(run, "[corpus]", "max_length = 200\n[corpus]") and None,
    "settings.teacher.dtype": lambda run: edited(run, "[corpus]", 'dtype = "bfloat16"\n[corpus]') and None,
    "teacher_files.model.safetensors": lambda run: flip(run.parent / "teacher" / "model.safetensors"),
    "teacher_files.config.json": lambda run: edited(run.parent / "teacher" / "config.json", "{", "{ ") and None,
    "vocabularies.student/sp": lambda run: edited(run, "student_sp", "student_bl") and None,
    "settings.student": lambda run: edited(run, 'name = "sp"', 'name = "other"') and None,
    "units": lambda run: edited(run, "unit_documents = 2", "unit_documents = 3") and None,
    "corpus file corpus.jsonl: sha256": lambda run: edited(run.parent / "corpus.jsonl", "apples", "pears.") and None,
}


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("key", CHANGES)
def test_what_changes_the_answer_changes_the_fingerprint_and_is_named(key: str, tmp_path: Path) -> None:
    run_file = own_teacher(tmp_path)
    before = plan_of(run_file)
    CHANGES[key](run_file)
    after = plan_of(run_file)
    assert before.fingerprint != after.fingerprint
    assert any(key in line for line in before.difference(after)), before.difference(after)


def test_the_plan_covers_every_document_and_product(tmp_path: Path) -> None:
    plan = plan_of(write_run(tmp_path, lines="not json\n"))
    assert sum(unit.n_rows for unit in plan.units) == len(TEXTS) + 1
    assert set(plan.products) == {"teacher", "student/sp", "student/bl"}
    assert {facts.top_k for facts in plan.products.values()} == {16}


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_teacher_file_is_named(missing: str, tmp_path: Path) -> None:
    run_file = own_teacher(tmp_path)
    (tmp_path / "teacher" / missing).unlink()
    with pytest.raises(TeacherError, match=f"(?s){tmp_path}.*{missing.split('.')[0]}.*(Copy|Fetch)"):
        plan_of(run_file)


def test_a_missing_weight_shard_is_named(tmp_path: Path) -> None:
    run_file = own_teacher(tmp_path)
    folder = tmp_path / "teacher"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(TeacherError, match="model-00002-of-00002.safetensors is missing, one of 2 weight files"):
        plan_of(run_file)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("./nowhere", "there is no folder .*nowhere"),
        ("run.toml", "is a file"),
        ("no one/such model", "neither|no such folder, and the Hugging Face Hub"),
    ],
)
def test_a_teacher_that_is_not_there(model: str, wanted: str, tmp_path: Path) -> None:
    run_file = edited(write_run(tmp_path), json.dumps(str(ASSETS / "teacher")), json.dumps(model))
    with pytest.raises(TeacherError, match=wanted):
        plan_of(run_file)


@pytest.mark.parametrize("content", ['{"base_model_name_or_path": "who/base"}', "{"])
def test_an_adapter_is_told_apart_from_a_model(content: str, tmp_path: Path) -> None:
    run_file = own_teacher(tmp_path)
    (tmp_path / "teacher" / "config.json").unlink()
    (tmp_path / "teacher" / "adapter_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(
        TeacherError, match=r"is an adapter \(LoRA\) for (who/base|its base model).*want both: model = .*adapter = "
    ) as caught:
        plan_of(run_file)
    assert "Copy the missing file" not in str(caught.value)


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    run_file = own_teacher(tmp_path)
    (tmp_path / "teacher" / "config.json").write_text("{")
    with pytest.raises(TeacherError, match="config.json is not valid JSON.*fetch the file again"):
        plan_of(run_file)


def test_a_student_that_is_not_there(tmp_path: Path) -> None:
    run_file = edited(write_run(tmp_path), json.dumps(str(ASSETS / "student_sp")), '"./nowhere"')
    with pytest.raises(TokenizerError, match=r"\[\[student\]\] sp.*nowhere"):
        plan_of(run_file)


def test_actors_get_absolute_places(tmp_path: Path) -> None:
    run: RunConfig = pin(load_run(own_teacher(tmp_path)))
    assert run.teacher.model == str(tmp_path / "teacher")
    assert [student.tokenizer for student in run.student] == [str(ASSETS / "student_sp"), str(ASSETS / "student_bl")]


@pytest.mark.parametrize(
    ("regime", "wanted"),
    [
        ("exact", 'but student/sp is no subset of the teacher\'s tokenizer: the student is sentencepiece.*"auto"'),
    ],
)
def test_a_regime_that_is_not_to_be_had_is_refused_before_anything_is_written(
    regime: str, wanted: str, tmp_path: Path
) -> None:
    """The message names the product, what stands against it, and what to write instead."""
    run_file = write_run(tmp_path)
    text = run_file.read_text(encoding="utf-8")
    setting = f'regime = "{regime}"'
    text = (
        text.replace("[targets]", f"[targets]\n{setting}") if "[targets]" in text else f"{text}\n[targets]\n{setting}\n"
    )
    run_file.write_text(text, encoding="utf-8")
    with pytest.raises(RunFileError, match=rf'regime: got "{regime}", {wanted}'):
        plan_of(run_file)
    assert not Path(load_run(run_file).output).exists()


def test_exact_is_allowed_where_the_tokenizers_are_the_same(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    teacher = json.dumps(str(ASSETS / "teacher"))
    run_file.write_text(
        f'output = "out"\n[teacher]\nmodel = {teacher}\n[corpus]\npaths = [{json.dumps(str(ASSETS / "corpus.jsonl"))}]\n'
        f'[[student]]\nname = "same"\ntokenizer = {teacher}\n[targets]\nregime = "exact"\n',
        encoding="utf-8",
    )
    plan = plan_of(run_file)
    assert {name: facts.regime for name, facts in plan.products.items()} == {"teacher": "own", "student/same": "same"}


def test_every_product_knows_its_regime_and_semantics(tmp_path: Path) -> None:
    students = {"sub": write_subset(tmp_path / "sub"), "other": ASSETS / "student_bl"}
    targets = 'top_k = 16\nbytes = true\nbytes_top_k = 5\nsemantics = "canonical-masked"'
    plan = plan_of(write_run(tmp_path, students=students, targets=targets))
    found = {name: facts.regime for name, facts in plan.products.items()}
    assert found == {"teacher": "own", "student/sub": "subset", "student/other": "beam", "bytes": "bytes"}
    assert {facts.semantics for facts in plan.products.values()} == {"canonical-masked"}
    facts = plan.products["bytes"]
    assert (facts.vocab_size, facts.top_k, facts.bos_id, facts.eos_id) == (257, 5, None, 256)
    open_end = plan_of(write_run(tmp_path, students=students, targets=targets + "\nend = false"))
    assert open_end.products["bytes"].eos_id is None


@pytest.mark.parametrize(
    ("targets", "products"),
    [
        ("bytes = true", {"teacher", "bytes"}),
        ("bytes = true\nteacher = false", {"bytes"}),
        ("teacher = true", {"teacher"}),
    ],
)
def test_a_run_without_students(targets: str, products: set[str], tmp_path: Path) -> None:
    plan = plan_of(write_run(tmp_path, students={}, targets=targets))
    assert set(plan.products) == products


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("bytes = true", "bytes = false", "products.bytes"),
        ("eps = 0.0", "eps = 0.001", "settings.targets.eps"),
        ("canonical-context", "canonical-masked", "settings.targets.semantics"),
        ("bytes_top_k = 8", "bytes_top_k = 9", "products.bytes.top_k"),
    ],
)
def test_the_keys_of_exact_regimes_are_part_of_the_run(old: str, new: str, key: str, tmp_path: Path) -> None:
    targets = 'bytes = true\nbytes_top_k = 8\neps = 0.0\nsemantics = "canonical-context"'
    run_file = write_run(tmp_path, targets=targets)
    before = plan_of(run_file)
    after = plan_of(edited(run_file, old, new))
    assert any(key in line for line in before.difference(after)), before.difference(after)
