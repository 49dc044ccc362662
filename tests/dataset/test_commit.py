"""Publishing on a real disk: the commit protocol under kills, races and repeats."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.layout import load_manifest, load_plan, read_quarantine, sealed_units
from engine.dataset.posix import put_if_absent
from schemas.errors import FingerprintMismatch, OutputError
from schemas.manifest import COLUMNS, Plan, PlanUnit
from schemas.target import ROW_SCHEMA
from tests.support.tables import publish_all, quarantine_record, sealed_paths, small_plan, unit_tables


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


class Killed(BaseException):
    """Stands for SIGKILL: from the chosen system call on, the process does nothing more."""


@settings(max_examples=30, deadline=None)
@given(kills=st.lists(st.integers(0, 60), max_size=4))
def test_killed_at_any_system_call_then_repeated_gives_the_undisturbed_output(kills: list[int]) -> None:
    plan = small_plan(units=1, rows=3)
    tables, bad = unit_tables(plan, 0, without=(1,)), [quarantine_record(1)]
    with tempfile.TemporaryDirectory() as calm, tempfile.TemporaryDirectory() as folder:
        open_output(Path(calm), plan)
        publish_unit(Path(calm), plan, 0, tables, bad, {"documents": 3})
        for after in kills:
            with pytest.MonkeyPatch.context() as patch:
                count = 0

                def dies(call, after=after):
                    def wrapped(*args, **kwargs):
                        nonlocal count
                        count += 1
                        if count > after:
                            raise Killed
                        return call(*args, **kwargs)

                    return wrapped

                for name in ("open", "write", "fsync", "link", "unlink", "mkdir"):
                    patch.setattr(os, name, dies(getattr(os, name)))
                patch.setattr(Path, "unlink", dies(Path.unlink))
                try:
                    open_output(Path(folder), plan)
                    publish_unit(Path(folder), plan, 0, tables, bad, {"documents": 3})
                except Killed:
                    pass
            for path in Path(folder).glob("data/**/*.parquet"):
                assert path.read_bytes() == (Path(calm) / path.relative_to(folder)).read_bytes()
        open_output(Path(folder), plan)
        publish_unit(Path(folder), plan, 0, tables, bad, {"documents": 3})
        shutil.rmtree(Path(folder) / "_engine" / "tmp")
        assert contents(Path(folder)) == contents(Path(calm))


def _race(out: str, barrier, queue, quarantined: tuple[int, ...]) -> None:
    plan = load_plan(Path(out))
    tables = unit_tables(plan, 0, without=quarantined)
    barrier.wait()
    records = [quarantine_record(row) for row in quarantined]
    seal = publish_unit(Path(out), plan, 0, tables, records, {"documents": 4})
    queue.put(seal.model_dump())


def test_two_processes_publish_the_same_unit(tmp_path: Path) -> None:
    plan = small_plan(units=1)
    open_output(tmp_path, plan)
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_race, args=(str(tmp_path), barrier, queue, ())) for _ in range(2)]
    for worker in workers:
        worker.start()
    first, second = queue.get(timeout=60), queue.get(timeout=60)
    for worker in workers:
        worker.join(60)
    assert first == second
    manifest = finish(tmp_path, plan, engine_version="test", describe=describe)
    assert manifest.totals["teacher"].rows == 4 and len(list(tmp_path.rglob("*.parquet"))) == 2
    assert list((tmp_path / "_engine" / "tmp").iterdir()) == []


# ---- the unit --------------------------------------------------------------------------------------------------------


def test_run_from_begin_to_manifest(tmp_path: Path) -> None:
    plan = small_plan()
    assert open_output(tmp_path, plan) == []
    for unit in plan.units:
        without = (5,) if unit.index == 1 else ()
        tables = unit_tables(plan, unit.index, without=without)
        bad = [quarantine_record(row) for row in without]
        seal = publish_unit(tmp_path, plan, unit.index, tables, bad, {"documents": 4})
        assert seal == publish_unit(tmp_path, plan, unit.index, tables, bad, {"documents": 4})
        assert open_output(tmp_path, plan) == list(range(unit.index + 1))
    with pytest.raises(OutputError, match="3 of 3 units sealed"):
        load_manifest(tmp_path)
    manifest = finish(tmp_path, plan, engine_version="0.1.0", describe=describe)
    assert manifest == finish(tmp_path, plan, engine_version="0.1.0", describe=describe) == load_manifest(tmp_path)
    moved = {name: value for name, value in manifest.stats.items() if name.endswith(".rounding_nats_max")}
    assert (manifest.documents, manifest.quarantined) == (12, 1) and manifest.stats == {"documents": 12.0, **moved}
    assert set(moved) == {f"{product}.rounding_nats_max" for product in plan.products}
    assert all(0 < value <= 2.0**-7 for value in moved.values())
    assert manifest.totals["student/small"].rows == 11 and "pyarrow" in manifest.versions
    assert read_quarantine(tmp_path, 1) == [quarantine_record(5)] and read_quarantine(tmp_path, 0) == []
    paths = sealed_paths(tmp_path, "student/small")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"data/student/small/train-{i:05d}-of-00003.parquet" for i in range(3)
    ]
    found = [row for path in paths for row in pq.read_table(path)["doc_row"].to_pylist()]
    assert found == [row for row in range(12) if row != 5]
    footer = pq.read_metadata(paths[1]).metadata
    assert footer[b"targetsmith.fingerprint"].decode() == plan.fingerprint
    assert footer[b"targetsmith.regime"] == b"fast" and footer[b"targetsmith.semantics"] == b"canonical-context"
    assert footer[b"targetsmith.product"] == b"student/small" and footer[b"targetsmith.logp_unit"] == b"nats"
    told = json.loads(footer[b"targetsmith.columns"])
    assert set(told) == set(ROW_SCHEMA.names) and told["flags"] == COLUMNS["flags"]


def test_unit_without_a_good_row_has_no_file(tmp_path: Path) -> None:
    plan = small_plan(units=2, rows=2)
    open_output(tmp_path, plan)
    tables = unit_tables(plan, 0, without=(0, 1))
    assert tables["teacher"].num_rows == 0
    seal = publish_unit(tmp_path, plan, 0, tables, [quarantine_record(0), quarantine_record(1)], {})
    assert seal.files == {"teacher": None, "student/small": None} and seal.quarantined == 2
    publish_unit(tmp_path, plan, 1, unit_tables(plan, 1), [], {})
    assert finish(tmp_path, plan, engine_version="test", describe=describe).totals["teacher"].files == 1
    assert len(sealed_paths(tmp_path, "teacher")) == 1


def test_lost_documents_are_refused(tmp_path: Path) -> None:
    plan = small_plan(units=1)
    open_output(tmp_path, plan)
    with pytest.raises(ValueError, match=r"documents lost \[2\]"):
        publish_unit(tmp_path, plan, 0, unit_tables(plan, 0, without=(2,)), [], {})
    with pytest.raises(ValueError, match=r"got products \['teacher'\]"):
        publish_unit(tmp_path, plan, 0, {"teacher": unit_tables(plan, 0)["teacher"]}, [], {})
    assert sealed_units(tmp_path) == [] and not (tmp_path / "data").exists()


def test_the_claim_decides_between_attempts_that_quarantine_differently(tmp_path: Path) -> None:
    plan = small_plan(units=2)
    open_output(tmp_path, plan)
    claim = tmp_path / "_engine" / "quarantine" / "00000.jsonl"
    put_if_absent(claim, b'{"doc_row":2,"reason":"oom"}\n', staging=tmp_path / "_engine" / "tmp")
    seal = publish_unit(tmp_path, plan, 0, unit_tables(plan, 0), [], {})
    assert seal.quarantined == 1
    for path in sealed_paths(tmp_path, "teacher"):
        assert pq.read_table(path)["doc_row"].to_pylist() == [0, 1, 3]
    put_if_absent(claim.with_name("00001.jsonl"), b"", staging=tmp_path / "_engine" / "tmp")
    with pytest.raises(OutputError, match=r"rows \[6\].*remove this file"):
        publish_unit(tmp_path, plan, 1, unit_tables(plan, 1, without=(6,)), [quarantine_record(6)], {})
    assert sealed_units(tmp_path) == [0]


def test_resume_seals_what_was_published(tmp_path: Path) -> None:
    plan = small_plan(units=2)
    open_output(tmp_path, plan)
    publish_all(tmp_path, plan)
    before = contents(tmp_path)
    (tmp_path / "_engine" / "shards" / "00001.json").unlink()
    assert open_output(tmp_path, plan) == [0, 1]
    assert contents(tmp_path) == before


def test_loser_takes_over_the_winners_file_and_refuses_a_foreign_one(tmp_path: Path) -> None:
    plan, name = small_plan(units=1), "data/teacher/train-00000-of-00001.parquet"
    winner, loser, foreign = tmp_path / "winner", tmp_path / "loser", tmp_path / "foreign"
    open_output(winner, plan)
    publish_unit(winner, plan, 0, unit_tables(plan, 0, seed=1), [], {})
    open_output(loser, plan)
    (loser / name).parent.mkdir(parents=True)
    shutil.copy(winner / name, loser / name)
    seal = publish_unit(loser, plan, 0, unit_tables(plan, 0, seed=2), [], {})
    file = seal.files["teacher"]
    assert file is not None and file.bytes == (winner / name).stat().st_size
    assert (loser / name).read_bytes() == (winner / name).read_bytes()

    other = small_plan(units=1, note="another run")
    open_output(foreign, other)
    (foreign / name).parent.mkdir(parents=True)
    for content, says in (((winner / name).read_bytes(), "not a file of this run"), (b"PAR1 torn", "damaged")):
        (foreign / name).write_bytes(content)
        with pytest.raises(OutputError, match=says):
            publish_unit(foreign, other, 0, unit_tables(other, 0), [], {})
    assert sealed_units(foreign) == []


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_another_run_is_refused_with_the_differences(tmp_path: Path) -> None:
    open_output(tmp_path, small_plan(teacher={"files": [{"sha256": "ab" * 32}]}))
    with pytest.raises(FingerprintMismatch) as caught:
        other = small_plan(units=4, top_k=9, teacher={"files": [{"sha256": "cd" * 32}]}, extra=True)
        open_output(tmp_path, other)
    text = str(caught.value)
    assert 'semantic.teacher.files.0.sha256: "abababababab…" -> "cdcdcdcdcdcd…"' in text
    assert "semantic.targets.top_k: 8 -> 9" in text and "semantic.extra: (absent) -> true" in text
    assert "units: 3 -> 4" in text and "new folder" in text


def test_fingerprint_ignores_the_name_of_a_tokenizer_and_nothing_else() -> None:
    plan = small_plan()
    moved = {name: facts.model_copy(update={"tokenizer": "elsewhere"}) for name, facts in plan.products.items()}
    assert Plan.make(plan.semantic, plan.units, moved).fingerprint == plan.fingerprint
    assert Plan.model_validate_json(plan.to_bytes()) == plan and plan.recompute() == plan.fingerprint
    other = {name: facts.model_copy(update={"tokenizer_hash": "c" * 64}) for name, facts in plan.products.items()}
    assert Plan.make(plan.semantic, plan.units, other).fingerprint != plan.fingerprint
    cut = [PlanUnit(index=0, file_index=0, first_row=0, n_rows=12, doc_row=0)]
    assert Plan.make(plan.semantic, cut, plan.products).difference(plan) == ["units: 1 -> 3"]
    with pytest.raises(TypeError):
        Plan.make({"path": Path("x")}, plan.units, plan.products)
    with pytest.raises(ValueError, match="without holes"):
        Plan.make({}, plan.units[1:], plan.products)


def test_foreign_and_damaged_folders(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="thesis.tex"):
        open_output(tmp_path, small_plan())
    (tmp_path / "thesis.tex").unlink()
    open_output(tmp_path, small_plan())
    plan_file = tmp_path / "_engine" / "plan.json"
    text = plan_file.read_text()
    for broken, says in (
        (text.replace('"targets":{"regime":"fast"', '"targets":{"regime":"beam"'), "edited or damaged"),
        (text[: len(text) // 2], "damaged"),
        (text.replace('"schema_version":3', '"schema_version":99'), "99"),
    ):
        plan_file.write_text(broken)
        with pytest.raises(OutputError, match=says):
            open_output(tmp_path, small_plan())
    target = tmp_path / "file"
    target.write_text("")
    with pytest.raises(OutputError, match="/file: a file lies where a folder is wanted; name another"):
        open_output(target / "out", small_plan())
    with pytest.raises(OutputError, match="nowhere: no such folder; name the `output` of a run"):
        load_plan(tmp_path / "nowhere")
