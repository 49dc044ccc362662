"""Damaged outputs: whatever is done to one, verify finds it or it is harmless, and neither verify nor the reader ever ends
in a foreign error or gives other data in silence.

MUTATIONS for each unit of TARGETSMITH_EFFORT (default 1); the long version: `make fuzz`.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.dataset import parquet as rows
from engine.reader.targets import Targets, TargetsError
from engine.verify.findings import Report
from engine.verify.output import verify
from schemas.errors import TargetsmithError
from tests.support import mutations as m
from tests.support import mutations_rows as mr
from tests.support import mutations_sidecars as ms
from tests.support.runs import ASSETS, TEXTS, retry_here, score_here, write_run
from tests.support.vocabularies import EFFORT

MUTATIONS = 112
PRODUCTS = ("teacher", "student/sp", "bytes", "hidden")
FORGED = (mr.value, mr.rows, mr.recast, mr.regroup, mr.resize)
"""Their files have new seals: the reader cannot know, verify must."""
Mutate = Callable[[Path, random.Random], str]
Snapshot = dict[str, str]
"""What the reader gives of a product: its facts, and a digest of each document."""


@dataclass(frozen=True)
class Base:
    """An output before it is damaged, what the reader and verify say of it, and what is done to it."""

    name: str
    out: Path
    mutates: list[Mutate]
    snapshots: dict[str, Snapshot | None]
    told: tuple[object, ...]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    """Finished runs, one document per row group: all products; draws, with a unit that is all in quarantine; the retry of
    what that has in quarantine. And the first one as it was before its end."""
    everything = (
        "top_k = 8\nbytes = true\nbytes_top_k = 4\nhidden = true\nteacher_stats = true\nmax_nodes_per_token = 0.5"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "MAX_GROUP_ROWS", 1)
        whole = score_here(_run_file(tmp_path_factory.mktemp("all"), TEXTS[:5], everything))
        texts = (*TEXTS[:5], "7 × 8 = 56", "8")
        run_file = _run_file(tmp_path_factory.mktemp("drawn"), texts, 'codec = "sample"\nregime = "fast"')
        drawn = score_here(run_file, died={"t0", "t1", "t3"})
        retried = retry_here(run_file)
    tensors, metadata = ms.read_head(whole)
    ms.write_head(whole, {**tensors, "bias": torch.zeros(len(tensors["lm_head"]))}, metadata)
    partial = Path(shutil.copytree(whole, whole.with_name("partial")))
    for name in ("manifest.json", "shards/00001.json"):
        (partial / "_engine" / name).unlink()
    (partial / "data/bytes/train-00001-of-00003.parquet").unlink()
    usual = [
        m.truncate, m.truncate_resealed, m.delete, m.duplicate, m.rename, m.swap, m.edit_quarantine, m.stray, m.stray,
        m.flip, m.flip_resealed, m.flip_footer_resealed, m.edit_json, m.edit_json, mr.value, mr.value, mr.rows, mr.recast,
        mr.regroup,
    ]  # fmt: skip
    means = [ms.means_file, ms.means_file]
    head, draws = [ms.manifest_side, ms.head_file, ms.head_file, *means], [mr.resize, ms.manifest_side, *means]
    old = [ms.head_file, ms.means_file]
    return [
        _base("all", whole, [*usual, *head, m.foreign(drawn)]),
        _base("drawn", drawn, [*usual, *draws, m.foreign(retried)]),
        _base("retry", retried, [*usual, *draws, *[mr.forge_retry] * 3, m.foreign(drawn)]),
        _base("unfinished", partial, [*(x for x in usual if x is not m.edit_quarantine), *old, m.foreign(drawn)]),
    ]


def _run_file(folder: Path, texts: tuple[str, ...], targets: str) -> Path:
    students = {"sp": ASSETS / "student_sp"}
    lines, settings = '{"id": "bad", "text": ""}\n', f"{targets}\ncalibration_documents = 2"
    return write_run(folder, texts=texts, lines=lines, targets=settings, students=students)


def _base(name: str, out: Path, mutates: list[Mutate]) -> Base:
    report = verify(out)
    assert report.sound, report.findings
    snapshots = read(out, check=False)
    assert snapshots["teacher"] and snapshots["student/sp"] and snapshots == read(out, check=True)
    return Base(name, out, mutates, snapshots, progress(report))


def progress(report: Report) -> tuple[object, ...]:
    return report.finished, report.sealed, report.documents, report.quarantined, report.fingerprint


def read(out: Path, *, check: bool) -> dict[str, Snapshot | None]:
    """All that the reader gives of each product; None where it refuses with its own error. Any other error is the test's."""
    return {product: _read(out, product, check) for product in PRODUCTS}


def _read(out: Path, product: str, check: bool) -> Snapshot | None:
    given: Snapshot = {}
    try:
        targets = Targets(out, product, allow_partial=True, verify=check)
        for document in targets.documents():
            digest = hashlib.sha256()
            for name in document.__dataclass_fields__:
                content = getattr(document, name)
                for key, values in (content if name == "extra" else {name: content}).items():
                    digest.update(f"{key} {getattr(values, 'dtype', '')} {np.shape(values)}".encode())
                    digest.update(values.tobytes() if isinstance(values, np.ndarray) else str(values).encode())
            row = f"document {document.doc_row}"
            given[row] = given.get(row, "") + digest.hexdigest()
        for batch in targets.batches(1):
            shapes = sorted((key, tuple(values.shape)) for key, values in batch.items())
            given[f"batch of {int(batch['doc_row'][0])}"] = str(shapes)
    except TargetsError:
        return None
    names = ("fingerprint", "codec", "top_k", "draws", "vocab_size", "regime", "semantics")
    return given | {name: str(getattr(targets, name)) for name in names}


def verdict(out: Path, before: Base) -> tuple[bool, str]:
    """(found: there is a finding, or the report says that less of the run is there, why)."""
    try:
        report = verify(out)
    except TargetsmithError as error:
        return True, f"refused: {error}"
    assert all(str(finding).isprintable() for finding in report.findings)
    return not (report.sound and progress(report) == before.told), str([*report.findings, *report.notes])


def kind_of(what: str, base: Base) -> str:
    """Which sort of file a harmless change was made to."""
    if place := re.search(r"/data/.*train-(\d+)|: unit (\d+)", what):
        unit = int(place[1] or place[2])
        sealed = (base.out / f"_engine/shards/{unit:05d}.json").exists()
        return "data" if sealed else "data without a seal"
    known = (
        "README.md",
        "croissant.json",
        "teacher_head",
        "continuations",
        "plan.json",
        "manifest.json",
        "_engine/shards",
        "_engine/quarantine",
        "_engine/tmp",
    )
    return next((name for name in known if name in what), "beside")


def damage(number: int, bases: list[Base], folder: Path) -> tuple[str, bool, str]:
    """One mutation of a copy: (its name, found, what it was made to)."""
    rng = random.Random(f"verify {number}")
    base = bases[number % len(bases)]
    mutate = base.mutates[number // len(bases) % len(base.mutates)]
    out = Path(shutil.copytree(base.out, folder / "out"))
    try:
        what = f"mutation {number} of {base.name}: {mutate(out, rng)}"
        found, why = verdict(out, base)
        after, checked = read(out, check=False), read(out, check=True)
        assert found or after == base.snapshots, f"{what}: not found, and the reader gives other data (or refuses)"
        if "resealed" not in what and mutate not in FORGED:
            for product, snapshot in checked.items():
                same = snapshot in (None, base.snapshots[product])
                if base.name == "unfinished" and snapshot is not None:  # without a seal a unit is not there yet
                    same = snapshot.items() <= (base.snapshots[product] or {}).items()
                assert same, f"{what}: {product} reads as other data in silence (verify: {why})"
        return getattr(mutate, "__name__", ""), found, kind_of(what, base)
    finally:
        shutil.rmtree(out)


def test_every_mutation_is_found_or_harmless(bases: list[Base], tmp_path: Path) -> None:
    told: dict[str, Counter[str]] = defaultdict(Counter)
    harmless: Counter[str] = Counter()
    for number in range(MUTATIONS * EFFORT):
        name, found, kind = damage(number, bases, tmp_path)
        told[name]["found" if found else "harmless"] += 1
        if not found:
            harmless[f"{name} {kind}"] += 1
    total = sum(told.values(), Counter())
    print(f"\n{total.total()} mutations: {dict(total)}")
    print("\n".join(f"{name}: {dict(counts)}" for name, counts in sorted(told.items())))
    print(f"harmless: {dict(harmless.most_common())}")
    assert total["found"] > 0.7 * total.total()
    for name in ("forge_retry", "resize", "value", "truncate_resealed", "head_file", "means_file"):
        assert told[name]["found"] == told[name].total() - harmless[f"{name} data without a seal"] > 0, name
