"""Faults of what a run reads and of its machine: a corpus that changes, a corpus without a good document, a clock that jumps."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units
from engine.dataset.layout import load_manifest, sealed_units
from engine.reader.targets import Targets
from schemas.errors import CorpusError
from schemas.runfile import load_run
from tests.jobs.test_score import environment
from tests.support.faults import BAD, Call, contents
from tests.support.runs import ASSETS, TEXTS, score_here, write_run

ROOT = Path(__file__).resolve().parents[2]
ONE_STUDENT = {"sp": ASSETS / "student_sp"}
SHORT = "top_k = 8\nmax_nodes_per_token = 1\ncalibration_documents = 2"


def write_two_files(folder: Path) -> Path:
    """A run over a.jsonl and b.jsonl."""
    run_file = write_run(folder, texts=TEXTS[2:], targets=SHORT, students=ONE_STUDENT)
    run_file.write_text(run_file.read_text().replace('"corpus.jsonl"', '"?.jsonl"'))
    (folder / "corpus.jsonl").rename(folder / "a.jsonl")
    (folder / "b.jsonl").write_text('{"id": "b", "text": "5 + 6 = 11"}\n')
    return run_file


def edit(folder: Path) -> None:
    path = folder / "a.jsonl"
    path.write_text(path.read_text().replace("Question", "question"))  # the same size


def append(folder: Path) -> None:
    with (folder / "b.jsonl").open("a") as file:
        file.write('{"id": "c", "text": "1 + 1 = 2"}\n')


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "content": (edit, ["corpus file a.jsonl: sha256", "3 -> 3 records"]),
    "longer": (append, ["corpus file b.jsonl: sha256", "1 -> 2 records"]),
    "added": (lambda folder: shutil.copy(folder / "a.jsonl", folder / "c.jsonl"), ["corpus file c.jsonl: added"]),
    "removed": (lambda folder: (folder / "b.jsonl").unlink(), ["corpus file b.jsonl: removed"]),
    "order": (
        lambda folder: (folder / "a.jsonl").rename(folder / "z.jsonl"),
        ["corpus file a.jsonl: renamed, it is z.jsonl now"],
    ),
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose units are all done; only the manifest is missing."""
    folder = tmp_path_factory.mktemp("scored")
    out = score_here(write_two_files(folder))
    for name in ("_engine/manifest.json", "README.md"):
        (out / name).unlink()
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_an_input_changed_between_runs_is_refused_by_name(
    change: str, scored: Path, tmp_path: Path, call: Call
) -> None:
    """The refusal leaves what is done; with the files put back it counts."""
    folder = Path(shutil.copytree(scored, tmp_path / "run"))
    run_file, before = folder / "run.toml", contents(folder / "out")
    apply, says = CHANGES[change]
    apply(folder)
    code, _, err = call("score", run_file, "--address", "nobody:1")
    assert code == 1 and "begun with other inputs" in err and "undo the changes" in err
    assert all(text in err for text in says), err
    assert contents(folder / "out") == before
    for path in folder.glob("?.jsonl"):
        path.unlink()
    for path in scored.glob("?.jsonl"):
        shutil.copy(path, folder)
    assert call("score", run_file, "--address", "nobody:1")[0] == 0
    assert contents(folder / "out").items() > before.items()


@pytest.mark.parametrize("how", ["same size", "longer", "replaced", "gone"])
def test_an_input_changed_during_a_run_hands_out_no_document_of_it(how: str, tmp_path: Path) -> None:
    """Units that were read before the change are as the plan says; the next one stops the run."""
    run = load_run(write_two_files(tmp_path))
    scan = scan_corpus(run.corpus, run.base_dir)
    units = read_units(run.corpus, scan, range(scan.n_units))
    _, first = next(units)
    assert [document.text for document in first] == list(TEXTS[2:4])
    path = tmp_path / "a.jsonl"
    if how == "gone":
        path.unlink()
    elif how == "replaced":
        (tmp_path / "new").write_bytes(path.read_bytes().replace(b"one", b"two"))
        (tmp_path / "new").rename(path)
    else:
        with path.open("r+b") as file:
            file.seek(0 if how == "same size" else path.stat().st_size)
            file.write(b'{"id": "t9"')
    with pytest.raises(CorpusError, match="a.jsonl.*(changed since the corpus was scanned|cannot be read any more)"):
        next(units)


# ---- no good document


def test_a_run_without_a_good_document(tmp_path: Path, call: Call) -> None:
    run_file = write_run(tmp_path, texts=(), lines=BAD, targets=SHORT, students=ONE_STUDENT)
    out = score_here(run_file)
    manifest = load_manifest(out)
    assert (manifest.documents, manifest.quarantined) == (3, 3) and not list((out / "data").rglob("*.parquet"))
    assert {total.files for total in manifest.totals.values()} == {0}
    code, _, err = call("score", run_file, "--address", "nobody:1")  # the command does not even begin such a run
    assert code == 2 and "got 3 records, of which not one can be used" in err and "3  empty_text" in err
    assert call("verify", out)[0] == 0
    assert call("cat", out, "--student", "sp") == (0, "", "")
    code, _, err = call("show", out, "--student", "sp")
    assert code == 1 and "every document is in quarantine, each with its reason in" in err
    assert list(Targets(out, "sp").documents()) == [] and list(Targets(out, "sp").batches(2)) == []


def test_bad_units_at_the_beginning_and_the_end(tmp_path: Path, call: Call) -> None:
    run_file = write_run(tmp_path, texts=TEXTS[2:3], lines=BAD, targets=SHORT, students=ONE_STUDENT)
    corpus = run_file.with_name("corpus.jsonl")
    lines = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join([*lines[1:3], lines[0], lines[3], lines[3].replace("b2", "b3")]))
    out = score_here(run_file)
    assert [shard.files["teacher"] is None for shard in load_manifest(out).shards] == [True, False, True]
    assert sealed_units(out) == [0, 1, 2] and call("verify", out)[0] == 0
    assert [document.doc_row for document in Targets(out, "sp").documents()] == [2]


# ---- clocks

YEAR_S = 365.25 * 86400
CLOCK = """
import itertools, os, sys, time
shifts = itertools.cycle([float(years) * 365.25 * 86400 for years in os.environ["SHIFTED_YEARS"].split()])
now, local = time.time, time.localtime

def shifted():
    asks = sys._getframe(1).f_globals.get("__name__", "")
    return now() if asks.partition(".")[0] == "ray" else max(1.0, now() + next(shifts))  # Ray starts by the clock

time.time = shifted
time.time_ns = lambda: int(time.time() * 1e9)
time.localtime = lambda at=None: local(time.time() if at is None else at)
real_strftime = time.strftime
time.strftime = lambda form, at=None: real_strftime(form, time.localtime() if at is None else at)
"""


def shifted(folder: Path, years: str) -> dict[str, str]:
    """The environment of processes whose clock is off by so many years, another number at each look at it."""
    (folder / "clock").mkdir(exist_ok=True)
    (folder / "clock" / "sitecustomize.py").write_text(CLOCK)
    path = os.pathsep.join([str(folder / "clock"), str(ROOT)])
    return environment(PYTHONPATH=path, SHIFTED_YEARS=years)


def test_a_clock_that_jumps_changes_nothing(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that was begun today is completed under a clock that is ten years ahead and forty behind in turn."""
    folder = Path(shutil.copytree(scored, tmp_path / "run"))
    before = contents(folder / "out")
    for path in (folder / "out").rglob("*00001*"):
        if path.is_file() and "-of-00001" not in path.name:
            path.unlink()
    assert len(contents(folder / "out")) <= len(before) - 4
    now, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: now() + (10 if next(looks) % 2 else -40) * YEAR_S)
    assert abs(time.time() - time.time()) > 40 * YEAR_S
    score_here(folder / "run.toml")
    assert contents(folder / "out").items() > before.items()


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_the_command_under_a_clock_that_jumps(tmp_path: Path) -> None:
    """Driver and actors: the output is the undisturbed one, and progress shows no nonsense."""
    calm, jumpy = tmp_path / "calm", tmp_path / "jumpy"
    for folder in (calm, jumpy):
        folder.mkdir()
        write_run(folder, texts=TEXTS, targets=SHORT, students=ONE_STUDENT, extra="[ray]\nactors = 2")
    score_here(calm / "run.toml")
    command = [sys.executable, "-m", "jobs.score", str(jumpy / "run.toml")]
    env = shifted(tmp_path, "3 -3")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert contents(jumpy / "out") == contents(calm / "out")
    told = done.stderr + done.stdout
    assert "Traceback" not in told and "3/3 units" in told and "tokens/s" in told
    assert " -" not in "".join(line.partition("·")[2] for line in told.splitlines() if "units ·" in line)
