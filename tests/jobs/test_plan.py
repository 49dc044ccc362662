"""`targetsmith plan`: what it foretells beside what the run then gives, and everything that is asked of it in another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import engine.scoring.room as room
from engine.dataset.layout import load_manifest
from engine.plan.teacher_fit import Room
from jobs.cli import main
from schemas.manifest import Manifest
from tests.support.runs import ASSETS, TEXTS, score_here, write_run, write_subset

ONE = "[ray]\nactors = 1"
BAD = '{"id": "bad", "text": ""}\n'


def plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["plan", *(str(argument) for argument in arguments)])
    shown = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, shown.out, shown.err


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = plan(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.thorough
@pytest.mark.ray
def test_a_plan_of_all_documents_is_what_the_run_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens and positions exactly, bytes within what row groups of other sizes change; nothing is left behind."""
    run_file = write_run(
        tmp_path, texts=TEXTS * 3, lines=BAD, targets="top_k = 16\ncalibration_documents = 2", extra=ONE
    )
    found = told(capsys, run_file, "--sample", 99, "--price", 3)
    assert not (tmp_path / "out").exists(), "a plan writes nothing"
    manifest = load_manifest(score_here(run_file))
    estimate = found["estimate"]
    assert found["tried"] == estimate["documents"] == manifest.documents == 16
    assert estimate["teacher_tokens"] == manifest.stats["teacher_tokens"]
    assert estimate["quarantined"] == {"empty_text": 1} == dict.fromkeys(found["examples"], 1)
    for product, total in manifest.totals.items():
        mine = estimate["products"][product]
        assert mine["positions"] == total.positions
        assert mine["bytes"] == pytest.approx(total.bytes, rel=0.1), product
        assert mine["width"] == pytest.approx(
            manifest.stats[f"{product}.err_sum"] / manifest.stats[f"{product}.scored"]
        )
    assert estimate["hours"] > 0 and estimate["price"] == pytest.approx(3 * estimate["actors"] * estimate["hours"])
    assert sum(found["memory"].values()) > 1e8
    others, named = _others(tmp_path / "out"), estimate["other_bytes"]
    assert estimate["disk_bytes"] == sum(one["bytes"] for one in estimate["products"].values()) + sum(named.values())
    for kind in ("calibration sample", "vocabularies", "records of units"):
        assert named[kind] == pytest.approx(others[kind], rel=0.1), kind


def _others(out: Path) -> dict[str, int]:
    """Bytes of a finished output that are no product's, by the kinds of a plan: counted here in another way."""

    def size(*names: str) -> int:
        return sum(file.stat().st_size for name in names for file in out.glob(name) if file.is_file())

    return {
        "calibration sample": size("_engine/continuations.parquet"),
        "vocabularies": size("_engine/vocabulary/**/*"),
        "records of units": size("_engine/shards/*", "_engine/quarantine/*"),
        "manifest and card": size("_engine/*.json", "README.md", "croissant.json"),
    }


@pytest.mark.ray
@pytest.mark.thorough  # docs/tutorial.md runs the same
def test_a_plan_for_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two students named on the command line beside each other, on a cluster that is elsewhere."""
    write_subset(tmp_path / "subset")
    run_file = write_run(tmp_path, targets="top_k = 16\nbytes = true")
    asked = ("--student", tmp_path / "subset", "--student", ASSETS / "student_bl", "--gpus", 8, "--gpu", "H100")
    code, out, err = plan(capsys, run_file, "--sample", 4, *asked, "--price", 2)
    assert code == 0, err
    print(out)
    for wanted in (
        "from 3 documents scored here",
        "student/subset is subset: its merges are the beginning",
        "student/student_bl is beam: not exact: its merge list differs",
        "3 actors",
        "GPU-hours",
        "worked out, not measured",
        "price",
        "quarantine none expected",
    ):
        assert wanted in out, wanted
    assert "student/sp" not in out
    assert "trial: 3 documents" in err


def test_without_a_teacher_tokens_are_counted_and_sizes_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = write_run(tmp_path, texts=TEXTS * 6, lines=BAD)
    found = told(capsys, run_file, "--sample", 0)
    manifest = load_manifest(score_here(run_file))
    estimate = found["estimate"]
    assert (found["tried"], estimate["hours"], estimate["price"]) == (0, None, None)
    assert estimate["teacher_tokens"] == pytest.approx(manifest.stats["teacher_tokens"], rel=0.05)
    for product, total in manifest.totals.items():
        assert estimate["products"][product]["positions"] == pytest.approx(total.positions, rel=0.1)
    assert estimate["evaluations_per_token"] == pytest.approx(_evaluations(manifest), rel=0.5), "a beam of small ones"
    others, named = _others(tmp_path / "out"), estimate["other_bytes"]
    assert named["vocabularies"] == others["vocabularies"]
    for kind in ("calibration sample", "records of units", "manifest and card"):
        assert named[kind] == pytest.approx(others[kind], rel=0.35), kind
    given = told(capsys, run_file, "--sample", 0, "--tokens-per-s", 100, "--gpus", 2, "--price", 5)["estimate"]
    assert given["hours"] == pytest.approx(estimate["teacher_tokens"] / 200 / 3600)
    assert given["price"] == pytest.approx(10 * given["hours"]) and given["how"] == "as --tokens-per-s says"
    code, out, _ = plan(capsys, run_file, "--sample", 0)
    assert (
        code == 0
        and "by rule of thumb" in out
        and "calibration sample" in out
        and "time      not known: --sample N measures it here" in out
    )


def _evaluations(manifest: Manifest) -> float:
    return manifest.stats["teacher_evaluations"] / manifest.stats["teacher_tokens"]


def test_a_teacher_that_does_not_fit_here_is_planned_without_a_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_host", lambda teachers: Room("memory of a small machine", 1 << 20, "cpu", 1, teachers))
    code, out, err = plan(capsys, write_run(tmp_path), "--gpus", 1, "--gpu", "l4")
    assert code == 0, err
    assert "nothing was scored to measure: [teacher] model" in out and "does not fit" in out and "GPU-hours" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--gpu", "h1000"], 2, "want one of t4, v100"),
        (["--student", "no/such/folder"], 2, "no/such/folder"),
        (["--sample", "-1"], 2, "--sample"),
    ],
)
def test_what_is_asked_in_a_wrong_way(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = plan(capsys, write_run(tmp_path), *arguments)
    assert found == code and said in err


def test_a_corpus_without_a_good_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(capsys, write_run(tmp_path, texts=(), lines=BAD))
    assert code == 2 and "not one can be used" in err
