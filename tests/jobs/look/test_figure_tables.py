"""`stats` and `diff` in the terminal and as JSON, on good outputs and on bad ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.dataset.layout import MANIFEST, PLAN, seal_name
from engine.figures.compare import Comparison
from engine.figures.models import Figures
from tests.support.faults import BAD, Call
from tests.support.runs import score_here, write_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return score_here(write_run(tmp_path_factory.mktemp("run"), lines='{"id": "bad", "text": ""}\n'))


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "out"))


def test_stats_say_what_a_width_is(out: Path, call: Call) -> None:
    code, said, err = call("stats", out)
    assert code == 0 and err == ""
    for words in (
        "6 documents, 1 in quarantine",
        "Width is a guarantee for the worst case, not the error",
        "student/sp",
        "cost of the same text",
        "widest positions",
        "1 in quarantine  empty_text",
        "All that is published was read",
    ):
        assert words in said, said


def test_stats_as_json(out: Path, call: Call) -> None:
    figures = Figures.model_validate_json(call("stats", out, "--json")[1])
    assert figures.finished and set(figures.products) == {"student/sp", "student/bl", "teacher"}
    few = Figures.model_validate_json(call("stats", out, "--json", "--most-positions", 1, "--seed", 3)[1])
    assert few.sampled and few.read_units == 1 and few.seed == 3
    assert "of 1 of 3 units, by seed 3" in call("stats", out, "--most-positions", 1, "--seed", 3)[1]


def test_diff(out: Path, call: Call) -> None:
    code, said, _ = call("diff", out, out, "--student", "sp", "--to", "student/bl")
    assert code == 0 and "by the next byte" in said and "total variation, at least" in said and "Bits per byte" in said
    found = Comparison.model_validate(
        json.loads(call("diff", out, out, "--student", "sp", "--to", "teacher", "--json")[1])
    )
    assert (found.by, found.drawn, found.found) == ("first bytes", 5, 5)
    by_name = ("diff", out, out, "--student", "sp", "--to", "bl")  # as `--student` and `export --product` take it
    assert call(*by_name) == call("diff", out, out, "--student", "sp", "--to", "student/bl")


def test_diff_of_the_same_run(out: Path, copy: Path, call: Call) -> None:
    code, said, _ = call("diff", out, copy, "--student", "sp")
    assert code == 0 and "Every stored number of these positions is the same" in said
    assert "The likeliest is the same at 100.00%" in said and "Nowhere are they farther apart" in said


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--student", "sp"), 2, "compared with itself; name another product by --to"),
        (("--student", "no"), 2, "no student 'no' here; this run has"),
        (
            ("--student", "sp", "--to", "bytes"),
            2,
            "no product 'bytes' here, this run has student/bl, student/sp, teacher",
        ),
        ((), 2, "say which by --student NAME"),
    ],
)
def test_diff_says_what_is_wrong(out: Path, arguments: tuple[str, ...], code: int, says: str, call: Call) -> None:
    got, _, err = call("diff", out, out, *arguments)
    assert got == code and says in err and err.count("\n") == 1, err


def verbs(out: Path, tmp_path: Path) -> dict[str, tuple[object, ...]]:
    return {
        "stats": ("stats", out),
        "report": ("report", out, "-o", tmp_path / "report.html"),
        "diff": ("diff", out, out, "--student", "sp", "--to", "teacher"),
        "show": ("show", out),
        "cat": ("cat", out, "--student", "sp"),
        "verify": ("verify", out),
    }


@pytest.mark.parametrize("verb", ["stats", "report", "diff", "show", "cat", "verify"])
def test_what_is_no_output_is_said_in_a_line(verb: str, tmp_path: Path, call: Call) -> None:
    for place, why in ((tmp_path, "not an output of targetsmith"), (tmp_path / "nowhere", "no such folder")):
        code, said, err = call(*verbs(place, tmp_path)[verb])
        assert code == 1 and said == "" and err.count("\n") == 1, err
        assert f"{why}; name the `output` of a run" in err
    (tmp_path / "file").write_text("x")
    code, _, err = call(*verbs(tmp_path / "file", tmp_path)[verb])
    assert code == 1 and err.count("\n") == 1, err


@pytest.mark.parametrize("verb", ["stats", "report", "diff", "show", "cat"])
def test_nothing_is_ready_is_said_in_a_line(verb: str, copy: Path, tmp_path: Path, call: Call) -> None:
    for name in (MANIFEST, *(seal_name(unit) for unit in range(3))):
        (copy / name).unlink()
    code, said, err = call(*verbs(copy, tmp_path)[verb])
    assert code == 1 and said == "" and err.count("\n") == 1, err
    assert "no unit is ready yet; run `targetsmith score` with its run file" in err, err


@pytest.mark.parametrize("verb", ["stats", "report", "diff"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data/student/sp/train-00000-of-00003.parquet", "cut"),
        ("data/student/sp/train-00000-of-00003.parquet", "flipped"),
        ("data/student/sp/train-00000-of-00003.parquet", "gone"),
        (MANIFEST, "cut"),
        (MANIFEST, "key"),
        (PLAN, "cut"),
        (PLAN, "key"),
        ("_engine/vocabulary/student/sp.parquet", "cut"),
    ],
)
def test_a_damaged_file_is_named_in_a_line(
    verb: str, name: str, damage: str, copy: Path, tmp_path: Path, call: Call
) -> None:
    path = copy / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "key":
        path.write_bytes(data.replace(b'"products"', b'"product"', 1))
    else:
        data[200] ^= 1
        path.write_bytes(bytes(data))
    code, said, err = call(*verbs(copy, tmp_path)[verb])
    assert code == 1 and said == "" and err.count("\n") == 1, err
    assert name in err and ("score` with the same run file again" if damage == "gone" else "remove") in err.lower(), err
    assert not (tmp_path / "report.html").exists()


def test_all_in_quarantine(tmp_path: Path, call: Call) -> None:
    out = score_here(write_run(tmp_path, texts=(), lines=BAD))
    code, said, _ = call("stats", out)
    assert code == 0 and "3 documents, 3 in quarantine" in said and "empty_text" in said
    code, _, err = call("diff", out, out, "--student", "sp", "--to", "teacher")
    assert code == 1 and "no document is published; `targetsmith stats` tells why" in err
    code, said, _ = call("report", out, "-o", tmp_path / "report.html")
    assert code == 0 and "0 of 3 documents" in said


def test_of_an_unfinished_run_what_is_ready(copy: Path, tmp_path: Path, call: Call) -> None:
    for name in (MANIFEST, seal_name(0)):
        (copy / name).unlink()
    for verb in ("stats", "report", "diff"):
        code, said, err = call(*verbs(copy, tmp_path)[verb])
        assert code == 0, err
        assert verb != "stats" or "not finished, 2 of 3 units ready" in " ".join(said.split())
