"""verify beside a run that goes on, behind a listing that is late, and on outputs that are old, odd or damaged early."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import engine.plan.make_plan
import tests.support.runs
from engine.dataset.commit import open_output
from engine.dataset.layout import MANIFEST, PLAN, claim_name, load_json, load_plan, read_quarantine, seal_name
from engine.dataset.sidecars import CALIBRATION, LM_HEAD
from engine.dataset.store import PosixStore
from engine.plan.retry import find_retry
from engine.reader.targets import Targets, TargetsError
from engine.verify.output import verify
from jobs.run.progress import Counts, Display
from schemas.errors import OutputError
from schemas.manifest import Manifest, Plan, Seal
from schemas.runfile import load_run
from tests.support.mutations import write_json
from tests.support.runs import TEXTS, retry_here, score_here, write_run

ROOT = Path(__file__).resolve().parents[2]
TARGETS = "top_k = 8\nhidden = true\nmax_nodes_per_token = 1\ncalibration_documents = 2"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = '{"id": "b1"}\n{"id": "b2", "text": ""}\n'
    return score_here(write_run(tmp_path_factory.mktemp("edges"), texts=TEXTS[:4], lines=lines, targets=TARGETS))


@pytest.fixture
def out(scored: Path, tmp_path: Path) -> Path:
    """A copy of the run, with its run file beside it."""
    for name in ("run.toml", "corpus.jsonl"):
        shutil.copy(scored.parent / name, tmp_path)
    return Path(shutil.copytree(scored, tmp_path / "out"))


def unfinish(out: Path) -> None:
    for name in (MANIFEST, "README.md"):
        (out / name).unlink()


def test_a_unit_that_is_sealed_meanwhile_is_no_finding(out: Path) -> None:
    unfinish(out)
    seal = out / seal_name(1)
    data = seal.read_bytes()
    seal.unlink()

    class Live(PosixStore):
        def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
            if folder == "data":
                seal.write_bytes(data)
            return super().files(folder)

    report = verify(Live(out))
    assert seal.exists() and report.sound and report.sealed == report.units - 1
    assert "not looked at: 4 files of units without a seal" in report.notes


def test_a_listing_that_lacks_a_seal_hides_nothing(out: Path) -> None:
    class Late(PosixStore):
        def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
            return (found for found in super().files(folder) if found[0] != seal_name(1))

    for finished in (True, False):
        if not finished:
            unfinish(out)
        report = verify(Late(out))
        assert report.sound and report.sealed == report.units and not any("looked at" in note for note in report.notes)


def test_an_output_from_before_the_file_of_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As 0.5.0 made it: no file, no key in manifest, seals and footers."""
    for module in (engine.plan.make_plan, tests.support.runs):
        monkeypatch.setattr(module, "ENGINE_VERSION", "0.5.0")
    out = score_here(write_run(tmp_path, texts=TEXTS[:2], targets=TARGETS.replace("documents = 2", "documents = 0")))
    content = json.loads((out / PLAN).read_text())
    content["semantic"]["settings"]["targets"]["calibration_documents"] = 2
    plan = Plan(**content)
    plan = plan.model_copy(update={"fingerprint": plan.recompute()})
    old = content["fingerprint"].encode()
    (out / PLAN).write_bytes(plan.to_bytes())
    for path in (out / "data").rglob("*.parquet"):
        again = path.read_bytes().replace(old, plan.fingerprint.encode())
        path.write_bytes(again)
    shutil.rmtree(out / "_engine/shards")
    unfinish(out)
    assert 0 not in open_output(out, plan)  # seals are made from the files
    report = verify(out)
    assert report.sound, report.findings
    assert any("made before 0.6.0" in note for note in report.notes)


def test_a_head_that_is_damaged_before_the_end_is_not_signed(out: Path) -> None:
    data = bytearray((out / LM_HEAD).read_bytes())
    data[len(data) // 2] ^= 4
    (out / LM_HEAD).write_bytes(bytes(data))
    unfinish(out)
    assert [finding.file for finding in verify(out).findings] == [LM_HEAD]
    with pytest.raises(OutputError, match=f"{LM_HEAD}: damaged: its numbers have the sha256.*remove this file"):
        score_here(out.parent / "run.toml")
    (out / LM_HEAD).unlink()
    score_here(out.parent / "run.toml")
    assert verify(out).sound


def test_a_lost_quarantine_list_is_not_an_empty_one(out: Path) -> None:
    assert find_retry(out)[1] == [4, 5]
    name = next(claim_name(unit.index) for unit in load_plan(out).units if read_quarantine(out, unit.index))
    (out / name).unlink()
    with pytest.raises(OutputError, match=f"{name}: 0 documents, sealed with 2; remove"):
        find_retry(out)


def test_an_unfinished_retry_with_other_settings_says_what_to_move(out: Path) -> None:
    run_file = out.parent / "run.toml"
    run = load_run(run_file)
    (out.parent / "out-retry-1").mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OutputError, match="stop"):
        patch.setattr(tests.support.runs, "UnitWorker", _stop)
        retry_here(run_file)
    run_file.write_text(run_file.read_text().replace("top_k = 8", "top_k = 9"))
    with pytest.raises(OutputError, match="(?s)out-retry-1.*Move this unfinished retry away"):
        retry_here(run_file)
    assert run.output == out


def _stop(*_: object) -> None:
    raise OutputError("stop")


def test_a_torn_plan_beside_the_means_alone(out: Path) -> None:
    """An actor has learned, no unit is done: the plan comes back, as the message says."""
    plan = load_plan(out)
    for name in ("data", "_engine/shards", "_engine/quarantine", LM_HEAD):
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    unfinish(out)
    (out / PLAN).unlink()
    assert (out / CALIBRATION).exists() and open_output(out, plan) == [] and load_plan(out) == plan


def test_a_name_of_thousands_of_letters(tmp_path: Path) -> None:
    """Arrow keeps no statistics of it."""
    lines = json.dumps({"id": "n" * 5000, "text": TEXTS[0]}) + "\n"
    assert verify(score_here(write_run(tmp_path, texts=TEXTS[:1], lines=lines, targets=TARGETS))).sound


@pytest.mark.parametrize("data", [b'{"a":' * 100_000, b'{"unit":' + b"9" * 5000 + b"}"])
def test_json_that_no_parser_takes(data: bytes, out: Path) -> None:
    for name, model in ((PLAN, Plan), (MANIFEST, Manifest), (seal_name(0), Seal)):
        (out / name).write_bytes(data)
        with pytest.raises(OutputError, match=f"{name}: damaged"):
            load_json(PosixStore(out), name, model)
    (out / claim_name(0)).write_bytes(data)
    with pytest.raises(OutputError, match="damaged"):
        read_quarantine(out, 0)


@pytest.mark.parametrize("how", ["null", "null inside", "large id", "twice"])
def test_means_that_are_none(how: str, out: Path) -> None:
    """Without a manifest and seals that have the checksum, by what the rows say."""
    table, metadata = pq.read_table(out / CALIBRATION), pq.read_metadata(out / CALIBRATION).metadata
    values = table.column("ids").to_pylist()
    values[1] = {"null": None, "null inside": [None, *values[1][1:]], "large id": [10**6, *values[1][1:]]}.get(
        how, [values[1][1], *values[1][1:]]
    )
    place = table.schema.get_field_index("ids")
    table = table.set_column(place, table.schema.field(place), pa.array(values, pa.list_(pa.int32())))
    kept = {key: value for key, value in (metadata or {}).items() if key != b"ARROW:schema"}
    pq.write_table(table.replace_schema_metadata(kept), out / CALIBRATION, write_page_checksum=True)
    unfinish(out)
    for path in (out / "_engine/shards").iterdir():
        content = json.loads(path.read_text())
        write_json(path, {key: value for key, value in content.items() if key != "continuations"})
    assert any(finding.file == CALIBRATION for finding in verify(out).findings)


def test_a_manifest_that_lacks_what_the_reader_needs(out: Path) -> None:
    whole = json.loads((out / MANIFEST).read_text())
    odd = {**whole["products"]["teacher"], "codec": []}
    for content in (
        {key: value for key, value in whole.items() if key != "fingerprint"},
        {**whole, "products": {**whole["products"], "teacher": odd}},
    ):
        write_json(out / MANIFEST, content)
        with pytest.raises(TargetsError, match="the records of the run are damaged"):
            Targets(out, "sp")


def test_a_reader_that_goes_away_does_not_make_a_damaged_output_sound(out: Path) -> None:
    for path in (out / "data").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-50])
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "verify", str(out)], cwd=ROOT, env=env, stdout=subprocess.PIPE
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.wait(120) == 1


def test_a_log_whose_reader_goes_away_does_not_end_a_run() -> None:
    there, here = os.pipe()
    display = Display(Counts(units_total=1, units_before=0), os.fdopen(here, "w", buffering=1))
    os.close(there)
    for _ in range(3):
        display.say("x" * 100_000)


@pytest.mark.parametrize(
    ("verb", "code"), [("verify", 1), ("show", None), pytest.param("cat", None, marks=pytest.mark.thorough)]
)
def test_a_terminal_without_the_letters(out: Path, verb: str, code: int | None) -> None:
    path = next((out / "data").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-50])
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "jobs.cli", verb, str(out)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=120)
    assert b"Traceback" not in done.stderr, done.stderr
    assert code is None or done.returncode == code
