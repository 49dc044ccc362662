"""Damaged and lost files of an output: every command says so or gives the same as before, and one rule repairs them all:
remove the damaged file and run the same command again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.layout import MANIFEST, PLAN, claim_name, seal_name, sealed_units
from engine.reader.targets import Targets, TargetsError
from schemas.errors import OutputError
from tests.support.faults import BAD, Call, Said, contents
from tests.support.runs import ASSETS, TEXTS, score_here, write_run
from tests.support.tables import quarantine_record, small_plan, unit_tables


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run file, its corpus and its finished output: three units, the second with one document in quarantine,
    the last with all."""
    folder = tmp_path_factory.mktemp("calm")
    targets = "top_k = 8\nmax_nodes_per_token = 1\nhidden = true\ncalibration_documents = 2"
    score_here(write_run(folder, texts=TEXTS[2:], lines=BAD, targets=targets, students={"sp": ASSETS / "student_sp"}))
    return folder


@pytest.fixture
def run_file(calm: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(calm, tmp_path / "run")) / "run.toml"


def commands(run_file: Path) -> dict[str, tuple[object, ...]]:
    out = run_file.parent / "out"
    return {
        "score": ("score", run_file, "--address", "nobody:1"),
        "cat": ("cat", out, "--student", "sp"),
        "show": ("show", out, "--student", "sp", "--doc", "0"),
        "verify": ("verify", out),
    }


FILES = {
    "shard": "data/student/sp/train-00000-of-00003.parquet",
    "seal": seal_name(0),
    "manifest": MANIFEST,
    "plan": PLAN,
    "quarantine": claim_name(1),
    "head": "_engine/teacher_head.safetensors",
    "means": "_engine/continuations.parquet",
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit, of a data page where it is a shard, of a checksum where there is one."""
    data = bytearray(path.read_bytes())
    checksum = data.find(b'sha256":"') if path.suffix == ".json" else -1
    data[200 if path.suffix == ".parquet" else checksum + 9 if checksum >= 0 else len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


_UNDAMAGED: dict[tuple[object, ...], Said] = {}


def undamaged(call: Call, *command: object) -> Said:
    """What a command says of the output of `calm`, which nobody changes: asked once."""
    if command not in _UNDAMAGED:
        _UNDAMAGED[command] = call(*command)
    return _UNDAMAGED[command]


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_named_and_made_anew_once_removed(kind: str, run_file: Path, calm: Path, call: Call) -> None:
    out, name = run_file.parent / "out", FILES[kind]
    before = {verb: undamaged(call, *command) for verb, command in commands(calm / "run.toml").items()}
    whole = (out / name).read_bytes()
    for damage in (truncate, flip):
        damage(out / name)
        for verb, command in commands(run_file).items():
            code, said, err = call(*command)
            if code == 0:  # what it needs is undamaged: the answer is the same
                assert said.replace(str(run_file.parent), str(calm)) == before[verb][1]
                # `score` reads no shard; a letter of a quarantine record's detail has no checksum
                unseen = {"score": ("shard", "quarantine"), "verify": ("quarantine",)}
                assert verb in ("cat", "show") or (damage is flip and kind in unseen[verb])
            else:
                told = said if verb == "verify" else err
                assert code == 1 and name in told, f"{verb} after {damage.__name__}: {told}"
                assert verb == "verify" or "remove" in told, told
        (out / name).write_bytes(whole)
    (out / name).unlink()
    score_here(run_file)
    assert contents(out) == contents(calm / "out")
    assert call(*commands(run_file)["verify"])[0] == 0


def test_the_reader_refuses_damaged_shards(run_file: Path) -> None:
    out = run_file.parent / "out"
    path = out / FILES["shard"]
    whole = path.read_bytes()
    for damage in (truncate, empty, flip):
        damage(path)
        for partial in (False, True):
            with pytest.raises(TargetsError, match=f"(?s){path.name}.*remove it and run `targetsmith score` again"):
                list(Targets(out, "sp", allow_partial=partial).documents())
        path.write_bytes(whole)


def test_a_damaged_file_of_an_unfinished_run(run_file: Path, calm: Path, call: Call) -> None:
    """Sealed or not: the resume says so before anything is scored, and completes when the file is gone."""
    out = run_file.parent / "out"
    for name in (MANIFEST, "README.md", seal_name(2)):
        (out / name).unlink()
    unsealed = FILES["shard"].replace("00000-of", "00001-of")
    for name, damage, says in (
        (FILES["shard"], truncate, "sealed with"),
        (unsealed, truncate, "damaged"),
        (unsealed, flip, "damaged"),
        (claim_name(1), truncate, "damaged"),
    ):
        whole = (out / name).read_bytes()
        damage(out / name)
        (out / seal_name(1)).unlink(missing_ok=True)
        code, _, err = call(*commands(run_file)["score"])
        assert code == 1 and name in err and says in err and "remove" in err, err
        (out / name).write_bytes(whole)
    for name in (FILES["shard"], unsealed):
        (out / name).unlink()
    assert call("cat", out, "--student", "sp")[0] == 1
    score_here(run_file)
    assert contents(out) == contents(calm / "out")


@pytest.mark.parametrize("lost", [("manifest",), ("manifest", "card"), ("seals",), ("manifest", "seals", "plan")])
def test_records_are_rebuilt_from_the_shards(lost: tuple[str, ...], run_file: Path, calm: Path, call: Call) -> None:
    """Without the teacher, but for the seal of a unit that has no file to rebuild it from."""
    out = run_file.parent / "out"
    names = {"manifest": [MANIFEST], "card": ["README.md"], "plan": [PLAN], "seals": [seal_name(0), seal_name(1)]}
    for name in (name for kind in lost for name in names[kind]):
        (out / name).unlink()
    if "plan" in lost:
        code, _, err = call("cat", out)
        assert code == 1 and "plan.json: missing; run `targetsmith score`" in err
    assert call(*commands(run_file)["score"])[0] == 0
    assert contents(out) == contents(calm / "out")


def test_all_records_are_lost(run_file: Path, calm: Path) -> None:
    """Only data/ is left: what a unit had in quarantine must be found out again; no file is written anew."""
    out = run_file.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in (out / "data").rglob("*.parquet")}
    shutil.rmtree(out / "_engine")
    score_here(run_file)
    assert contents(out) == contents(calm / "out")
    assert {path: path.stat().st_mtime_ns for path in (out / "data").rglob("*.parquet")} == before


def test_a_lost_plan_is_put_back_for_its_own_run_only(run_file: Path, call: Call) -> None:
    out = run_file.parent / "out"
    text = run_file.read_text()
    (out / PLAN).unlink()
    before = contents(out)
    run_file.write_text(text.replace("top_k = 8", "top_k = 9"))
    code, _, err = call(*commands(run_file)["score"])
    assert code == 1 and "plan.json is missing, and cannot be put back" in err and contents(out) == before
    run_file.write_text(text)
    (out / "_engine" / "shards" / "00000.json").write_text("{")
    code, _, err = call(*commands(run_file)["score"])
    assert code == 1 and "shards/00000.json is damaged" in err
    (out / "_engine" / "shards" / "00000.json").unlink()
    assert call(*commands(run_file)["score"])[0] == 0


def test_a_file_scored_again_with_other_numbers_is_not_slipped_in(tmp_path: Path) -> None:
    """As on other hardware: the seal holds until a person removes it; then the unit is sealed anew."""
    plan, out = small_plan(units=2), tmp_path / "out"
    open_output(out, plan)
    for unit in (0, 1):
        publish_unit(out, plan, unit, unit_tables(plan, unit), [], {"documents": 4.0})
    finish(out, plan, engine_version="test", describe=describe)
    lost = out / "data/teacher/train-00001-of-00002.parquet"
    whole = lost.read_bytes()
    lost.unlink()
    assert open_output(out, plan) == [0]
    other = unit_tables(plan, 1, seed=5)
    with pytest.raises(
        OutputError, match=r"not what was sealed.*remove _engine/shards/00001.json, _engine/manifest.json"
    ):
        publish_unit(out, plan, 1, other, [], {"documents": 4.0})
    assert not lost.exists()
    with pytest.raises(OutputError, match=r"files of 1 sealed unit are missing \(first: \[1\]\)"):
        finish(out, plan, engine_version="test", describe=describe)
    for name in (seal_name(1), MANIFEST, "README.md"):
        (out / name).unlink()
    assert open_output(out, plan) == [0]
    publish_unit(out, plan, 1, other, [], {"documents": 4.0})
    finish(out, plan, engine_version="test", describe=describe)
    assert lost.read_bytes() != whole and len(list(Targets(out, "teacher", verify=True).documents())) == 8


def test_a_lost_claim_is_not_replaced_by_another(tmp_path: Path) -> None:
    plan, out = small_plan(units=1), tmp_path / "out"
    open_output(out, plan)
    one = (unit_tables(plan, 0, without=(2,)), [quarantine_record(2)])
    publish_unit(out, plan, 0, *one, {"documents": 4.0})
    before = contents(out)
    (out / claim_name(0)).unlink()
    assert open_output(out, plan) == []
    with pytest.raises(OutputError, match="00000.jsonl: missing, and scored again it is not what was sealed"):
        publish_unit(out, plan, 0, unit_tables(plan, 0), [], {"documents": 4.0})
    assert not (out / claim_name(0)).exists()
    publish_unit(out, plan, 0, *one, {"documents": 4.0})
    assert contents(out) == before


# ---- what does not belong there


def test_stray_files(run_file: Path, calm: Path, call: Call) -> None:
    out = run_file.parent / "out"
    whole, (score, *_) = contents(out), (commands(run_file)["score"],)
    harmless = {  # names that are not ours, and leftovers of kills
        "_engine/shards/notes.json": b"{",
        "_engine/shards/7.json": b"{",
        "_engine/shards/00001.json.bak": b"",
        "_engine/shards/99999.json": whole[seal_name(0)],
        "_engine/quarantine/99999.jsonl": b"{",
        "_engine/tmp/0123.part": b"torn",
        "_engine/tmp/probe-1": b"",
        "notes.txt": b"",
    }
    for name, data in harmless.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    assert sealed_units(out)[:3] == [0, 1, 2] and call(*score)[0] == 0
    for verb in ("cat", "show"):
        assert call(*commands(run_file)[verb]) == call(*commands(calm / "run.toml")[verb])
    for name in (MANIFEST, "README.md", seal_name(0)):
        (out / name).unlink()
    code, said, err = call(*score)
    assert code == 0, err
    assert "resuming: 3 of 3" in err and "3 units, 6 documents" in said
    for name in harmless:
        (out / name).unlink()
    assert contents(out) == whole


def test_what_readers_of_data_would_pick_up_is_refused(run_file: Path, call: Call, tmp_path: Path) -> None:
    out = run_file.parent / "out"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    strays: dict[str, Callable[[Path], object]] = {
        "data/teacher/copy.parquet": lambda path: path.write_bytes(b"x"),
        "data/.hidden": lambda path: path.write_bytes(b""),
        "data/link": lambda path: path.symlink_to(elsewhere),
        "data/teacher/broken.parquet": lambda path: path.symlink_to(elsewhere / "gone"),
        "data/teacher/alias.parquet": lambda path: path.symlink_to(out / FILES["shard"]),
    }
    for name, make in strays.items():
        make(out / name)
        code, _, err = call(*commands(run_file)["score"])
        assert code == 1 and f"{name}: not a file of this run" in err and "move it away" in err, err
        (out / name).unlink()
    assert call(*commands(run_file)["score"])[0] == 0


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("shard", "folder"),
        ("shard", "broken link"),
        ("seal", "folder"),
        ("seal", "broken link"),
        ("manifest", "folder"),
        ("plan", "broken link"),
        ("quarantine", "broken link"),
    ],
)
def test_something_else_under_the_name_of_a_file(kind: str, make: str, run_file: Path, calm: Path, call: Call) -> None:
    out, path = run_file.parent / "out", run_file.parent / "out" / FILES[kind]
    path.unlink()
    if make == "folder":
        path.mkdir()
    else:
        path.symlink_to(out / "gone")
    code, _, err = call(*commands(run_file)["score"])
    assert code == 1
    if path.name not in err:  # seen only when the unit is scored
        with pytest.raises(
            OutputError, match=f"{path.name}: a folder or broken link lies where a file is wanted; move it away"
        ):
            score_here(run_file)
    else:
        assert f"{FILES[kind]}: " in err and ("move it away" in err or "remove" in err)
    path.rmdir() if make == "folder" else path.unlink()
    if kind not in ("shard", "quarantine"):  # those are scored again, as in the tests above
        assert call(*commands(run_file)["score"])[0] == 0
        assert contents(out) == contents(calm / "out")


def test_files_of_another_run(run_file: Path, calm: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "other").mkdir()
    text = (calm / "run.toml").read_text().replace("top_k = 8", "top_k = 7")
    shutil.copy(calm / "corpus.jsonl", tmp_path / "other")
    (tmp_path / "other" / "run.toml").write_text(text)
    other, out = score_here(tmp_path / "other" / "run.toml"), run_file.parent / "out"
    for name in (FILES["shard"], seal_name(0), MANIFEST):
        whole = (out / name).read_bytes()
        shutil.copy(other / name, out / name)
        code, _, err = call(*commands(run_file)["score"])
        assert code == 1 and Path(name).name in err, err
        (out / name).write_bytes(whole)
    for name in (MANIFEST, "README.md", seal_name(0)):
        (out / name).unlink()
    shutil.copy(other / FILES["shard"], out / FILES["shard"])
    code, _, err = call(*commands(run_file)["score"])
    assert code == 1 and "not a file of this run: its footer says targetsmith.fingerprint" in err
    shutil.copy(calm / "out" / FILES["shard"], out / FILES["shard"])
    assert call(*commands(run_file)["score"])[0] == 0
    assert contents(out) == contents(calm / "out")
