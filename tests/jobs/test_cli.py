"""The command line: what it prints, its exit codes, and that every command and option is documented."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from engine.reader.targets import Targets
from jobs.app import commands
from jobs.cli import VERBS, main
from tests.support.runs import TEXTS, score_here, write_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_file = write_run(
        tmp_path_factory.mktemp("run"),
        lines='{"id": "bad", "text": ""}\n',
        targets="top_k = 16\nbytes = true\nbytes_top_k = 6",
    )
    return score_here(run_file)


@pytest.fixture(scope="module")
def no_students(tmp_path_factory: pytest.TempPathFactory) -> Path:
    targets = 'bytes = true\neps = 1e-3\nend = false\nsemantics = "canonical-masked"'
    return score_here(write_run(tmp_path_factory.mktemp("bytes"), texts=TEXTS[:2], students={}, targets=targets))


def call(*arguments: object) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


# ---- usage and errors


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_module_too(verb: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"jobs.{verb}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"targetsmith {verb}" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_ends_with_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verb, "--help") == 0
    example = " ".join(capsys.readouterr().out.rpartition("Example: ")[2].split())
    words = shlex.split(example.partition("|")[0])
    assert words[:2] == ["targetsmith", verb]
    group = commands(VERBS)
    command = group.get_command(typer.Context(group), verb)
    assert command is not None
    command.make_context(verb, words[2:])  # raises where an option, or a value, is not one


def test_a_shell_completes_verbs_and_options() -> None:
    def completed(words: str) -> list[str]:
        said = {"_TARGETSMITH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [Path(sys.executable).parent / "targetsmith"]
        return subprocess.run(command, env={**os.environ, **said}, capture_output=True, text=True).stdout.split()

    assert completed("targetsmith st") == ["stats"]
    assert completed("targetsmith stats --most") == ["--most-positions"]


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize(
    "arguments", [["scroe"], ["score"], ["show"], ["cat", "x", "--view", "both"], ["score", "--no"]]
)
def test_a_wrong_command_line_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 2
    assert "Error" in capsys.readouterr().err


def test_a_misspelt_verb_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("scroe") == 2
    assert "score" in capsys.readouterr().err


def test_a_missing_run_file_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("score", tmp_path / "none.toml") == 2
    said = capsys.readouterr().err
    assert said.startswith("targetsmith: ") and "none.toml" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("top_k = 16", "top_k = 0", "top_k"),
        ('paths = ["corpus.jsonl"]', 'paths = ["nothing.jsonl"]', "nothing.jsonl"),
        ("[targets]", "[target]", "target"),
        ('model = "', 'model = "/no/such', "no folder /no/such"),
        ('tokenizer = "', 'tokenizer = "/no/such', "[[student]] sp"),
    ],
)
def test_a_wrong_run_file_is_2(
    old: str, new: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = write_run(tmp_path)
    text = run_file.read_text()
    assert old in text
    run_file.write_text(text.replace(old, new, 1))
    assert call("score", run_file) == 2
    said = capsys.readouterr().err
    assert wanted in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_an_output_inside_a_ray_working_copy_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    assert call("score", write_run(folder)) == 2
    assert "absolute path" in capsys.readouterr().err


def test_another_run_in_the_folder_is_1(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = write_run(tmp_path, targets="top_k = 17")
    run_file.write_text(run_file.read_text().replace('output = "out"', f"output = {json.dumps(str(out))}"))
    assert call("score", run_file) == 1
    said = capsys.readouterr().err
    assert "top_k: 16 -> 17" in said and "products.bytes" in said and "Traceback" not in said


def test_a_finished_run_is_0_without_any_work(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("score", out.parent / "run.toml", "--address", "127.0.0.1:1") == 0  # nobody is asked for work
    said = capsys.readouterr().out
    assert "nothing to do" in said and "6 documents, 1 in quarantine" in said
    assert re.search(r"1\s+empty_text", said)
    for product, regime in (("bytes", "bytes"), ("student/sp", "beam"), ("teacher", "own")):
        assert re.search(rf"^ {product} +{regime} +5 ", said, re.MULTILINE), said
    assert "non-canonical" in said and "beam: any other tokenizer" in said


def test_a_folder_that_is_no_output_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("show", "cat"):
        assert call(verb, tmp_path) == 1
        said = capsys.readouterr().err
        assert str(tmp_path) in said and "Traceback" not in said


def test_interruption_is_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("schemas.runfile.load_run", interrupted)
    assert call("score", tmp_path / "run.toml") == 130
    assert "resume by running again" in capsys.readouterr().err


# ---- cat


def documents(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    assert call("cat", *arguments) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("product", ["teacher", "sp", "bl", "bytes"])
def test_cat_gives_every_document_with_all_its_mass(
    out: Path, product: str, capsys: pytest.CaptureFixture[str]
) -> None:
    which = ["--view", product] if product in ("teacher", "bytes") else ["--student", product]
    found = documents(capsys, out, *which)
    assert [document["text"] for document in found] == list(TEXTS)
    for document in found:
        lists = {key: value for key, value in document.items() if isinstance(value, list)}
        assert {len(value) for value in lists.values()} == {len(document["token_ids"])}
        assert document["byte_end"][-1] == len(document["text"].encode())
        for scored, ids, logps, tail in zip(
            document["scored"], document["ids"], document["logps"], document["tail_logp"], strict=True
        ):
            assert len(ids) == len(logps) == len(set(ids)) and logps == sorted(logps, reverse=True)
            if scored:
                mass = sum(map(math.exp, logps)) + (0.0 if tail is None else math.exp(tail))
                assert abs(mass - 1) < 2e-3  # the stored precision
            else:
                assert ids == [] and tail == 0.0


def test_cat_prints_what_the_reader_reads(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = documents(capsys, out, "--student", "bl")
    for document, read in zip(printed, Targets(out, "bl").documents(), strict=True):
        assert document["doc_id"] == read.doc_id
        assert document["token_ids"] == read.token_ids.tolist()
        for i, ids in enumerate(document["ids"]):
            assert ids == read.ids[i, : len(ids)].tolist() and (read.ids[i, len(ids) :] == -1).all()
            assert np.array(document["logps"][i], np.float32).tolist() == read.logps[i, : len(ids)].tolist()
        gold = [-math.inf if value is None else value for value in document["gold_logp"]]
        assert np.array(gold, np.float32).tolist() == read.gold_logp.tolist()


def test_cat_bytes_are_the_bytes_of_the_text(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for document in documents(capsys, out, "--view", "bytes"):
        text = document["text"].encode()
        assert document["token_ids"] == [*text, 256]
        assert document["byte_end"] == [*range(1, len(text) + 1), len(text)]
        assert {len(ids) for ids in document["ids"]} <= set(range(7))
        assert set(document["flags"]) <= {1, 8, 17, 32} and not any(document["err"][-2:])


@pytest.mark.parametrize(
    ("verb", "arguments", "code", "wanted"),
    [
        ("cat", [], 2, "this run has bytes, teacher; say which by --view teacher, --view bytes or --view hidden"),
        ("cat", ["--view", "student"], 2, "this run has bytes, teacher"),
        ("cat", ["--student", "x"], 2, "no student 'x' here; this run has no student, but bytes, teacher"),
        ("show", ["--student", "x", "--view", "bytes"], 2, "leave out one of the two"),
    ],
)
def test_without_students_the_view_must_be_named(
    no_students: Path, verb: str, arguments: list[str], code: int, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(verb, no_students, *arguments) == code
    assert wanted in capsys.readouterr().err


def test_show_bytes_beside_the_teacher(no_students: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", no_students, "--doc", "t1", "--rows", "0:3") == 0
    by_default = capsys.readouterr().out
    assert call("show", no_students, "--doc", "t1", "--rows", "0:3", "--view", "bytes") == 0
    assert capsys.readouterr().out == by_default
    for word in (
        "bytes (canonical-masked)",
        "next byte's top-k",
        "teacher's top-k",
        "non-canonical",
        r"\xc5",
        "pruned",
    ):
        assert word in by_default
    assert call("show", no_students, "--view", "teacher", "--rows", "0:2") == 0
    assert "teacher (own, canonical-masked)" in capsys.readouterr().out


def test_cat_limit(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(documents(capsys, out, "--student", "sp", "--limit", 2)) == 2


@pytest.mark.parametrize("arguments", [["--student", "sp"], ["--view", "teacher"]])
def test_cat_max_width_prints_those_rows_only(
    out: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wholes, widths = documents(capsys, out, *arguments), [0.0, 1.0]
    widths += [w for d in wholes for w, s in zip(d["err"], d["scored"], strict=True) if s]
    limit = float(np.median(widths))
    assert call("cat", out, *arguments, "--max-width", limit) == 0
    printed, note = capsys.readouterr()
    kept = scored = 0
    for line, whole in zip(printed.splitlines(), wholes, strict=True):
        document = json.loads(line)
        rows = document.pop("rows")
        assert rows == [i for i, s in enumerate(whole["scored"]) if s and whole["err"][i] <= limit]
        assert document == {k: [v[i] for i in rows] if isinstance(v, list) else v for k, v in whole.items()}
        kept, scored = kept + len(rows), scored + sum(whole["scored"])
    assert note == f"targetsmith: {kept:,} of {scored:,} scored rows have a width of at most {limit}\n"
    assert 0 < kept and (kept < scored or arguments[1] == "teacher")


@pytest.mark.parametrize("limit", ["nan", "-0.01"])
def test_cat_refuses_a_width_that_is_none(out: Path, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("cat", out, "--student", "sp", "--max-width", limit) == 2
    assert "a width is a probability; give a number >= 0" in capsys.readouterr().err


def test_cat_wants_a_name_when_there_are_several(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("cat", out) == 2
    assert "student/bl, student/sp, teacher; say which by --student NAME" in capsys.readouterr().err


def test_cat_into_a_closed_pipe_is_quiet(out: Path) -> None:
    command = f"{sys.executable} -m jobs.cat {out} --student sp | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{", "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("stats OUT", 0), ("verify DAMAGED", 1), ("--help", 0)],
)
def test_every_verb_outlives_its_reader(out: Path, tmp_path: Path, arguments: str, code: int) -> None:
    """Its own exit code, and no word of the pipe."""
    damaged = shutil.copytree(out, tmp_path / "damaged")
    next((damaged / "data/teacher").glob("*")).write_bytes(b"")
    words = arguments.replace("OUT", str(out)).replace("DAMAGED", str(damaged))
    command = f"{sys.executable} -m jobs.cli {words} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert not done.stderr


@pytest.mark.parametrize("arguments", ["stats OUT", "--help"])
def test_a_full_disk_behind_standard_output_is_one_line(out: Path, arguments: str) -> None:
    command = f"{sys.executable} -m jobs.cli {arguments.replace('OUT', str(out))} > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "standard output: cannot be written (No space left on device); make room" in done.stderr


# ---- show


def test_show_by_number_and_by_name(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", out, "--doc", 1, "--rows", "0:5", "--top", 2) == 0
    by_number = capsys.readouterr().out
    assert call("show", out, "--doc", "t1", "--rows", "0:5", "--top", 2) == 0
    assert capsys.readouterr().out == by_number
    for word in ("t1", "teacher's top-k", "student's top-k", "Łuk", "gold p", "5 of"):
        assert word in by_number


def test_show_the_other_student_and_the_end(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", out, "--doc", "t4", "--rows", ":", "--student", "bl") == 0
    shown = capsys.readouterr().out
    assert "student bl" in shown and "end" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        (["--doc", "99"], 2, "documents 0 to 5"),
        (["--doc", "nobody"], 2, "no document is called 'nobody', and every unit is scored; .* such as 't0'"),
        (["--doc", "5"], 1, "in quarantine: empty_text"),
        (["--doc", "bad"], 2, "has only its place, such as 'corpus.jsonl#5'"),
        (["--student", "xl"], 2, "this run has sp, bl|this run has bl, sp"),
        (["--rows", "5"], 2, "wanted from:to"),
        (["--rows", "a:b"], 2, "wanted from:to"),
        (
            ["--doc", "t4", "--rows", "900:910"],
            2,
            "--rows '900:910': none of the rows of 't4'; it has [2-9], 0 to [1-8]\n",
        ),
    ],
)
def test_show_says_what_is_wrong(
    out: Path, arguments: list[str], code: int, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("show", out, *arguments) == code
    assert re.search(wanted, capsys.readouterr().err)
