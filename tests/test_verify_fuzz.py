"""Damaged outputs: whatever is done to one, verify finds it or it is harmless, and neither verify nor the reader ever ends
in a foreign error or gives other data in silence.

140 mutations for each unit of TARGETSMITH_EFFORT (default 1); the long version: TARGETSMITH_EFFORT=8.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import rows
from engine.stream import Targets, TargetsError
from engine.verify import verify
from schemas.errors import TargetsmithError
from tests import mutations
from tests.runs import ASSETS, TEXTS, score_here, write_run
from tests.vocabularies import EFFORT

PRODUCTS = ("teacher", "student/sp", "bytes", "hidden")
Snapshot = dict[str, Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs of 3 units, one document per row group: all products, and drawn samples."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "MAX_GROUP_ROWS", 1)
        for name, targets in (
            (
                "all",
                "top_k = 8\nbytes = true\nbytes_top_k = 4\nhidden = true\nteacher_stats = true\nmax_nodes_per_token = 0.5",
            ),
            ("drawn", 'codec = "sample"\nregime = "fast"'),
        ):
            folder = tmp_path_factory.mktemp(name)
            lines = '{"id": "bad", "text": ""}\n'
            settings = f"{targets}\ncalibration_documents = 0"
            made.append(
                score_here(
                    write_run(
                        folder, texts=TEXTS[:5], lines=lines, targets=settings, students={"sp": ASSETS / "student_sp"}
                    )
                )
            )
    assert all(verify(out).sound for out in made)
    return made


def read(out: Path, *, check: bool) -> dict[str, Snapshot | None]:
    """All that the reader gives of each product; None where it refuses with its own error. Any other error is the test's."""
    return {product: _read(out, product, check) for product in PRODUCTS}


def _read(out: Path, product: str, check: bool) -> Snapshot | None:
    try:
        targets = Targets(out, product, allow_partial=True, verify=check)
        digest = hashlib.sha256()
        for document in targets.documents():
            for name in document.__dataclass_fields__:
                content = getattr(document, name)
                for key, values in (content if name == "extra" else {name: content}).items():
                    digest.update(f"{key} {getattr(values, 'dtype', '')} {np.shape(values)}".encode())
                    digest.update(values.tobytes() if isinstance(values, np.ndarray) else str(values).encode())
        for batch in targets.batches(3):
            digest.update(str(sorted((key, tuple(values.shape)) for key, values in batch.items())).encode())
    except TargetsError:
        return None
    names = ("fingerprint", "codec", "top_k", "draws", "vocab_size", "regime", "semantics", "rows", "positions")
    return {"documents": digest.hexdigest(), **{name: getattr(targets, name) for name in names}}


def found_by_verify(out: Path) -> bool:
    try:
        report = verify(out)
    except TargetsmithError:
        return True
    return not (report.sound and report.finished)


def of_all(other: Path) -> list[Callable[[Path, random.Random], str]]:
    m = mutations
    once = [
        m.truncate,
        m.truncate_resealed,
        m.delete,
        m.duplicate,
        m.rename,
        m.swap,
        m.foreign(other),
        m.edit_quarantine,
    ]
    often = [m.flip, m.flip_resealed, m.flip_footer_resealed, m.edit_json, m.value, m.rows, m.recast, m.regroup]
    return [*once, *often, *often, m.value, m.edit_json]


def test_every_mutation_is_found_or_harmless(
    runs: list[Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    before = [read(out, check=False) for out in runs]
    assert all(before[0].values()) and before[0] == read(runs[0], check=True)
    told: Counter[str] = Counter()
    for number in range(140 * EFFORT):
        rng = random.Random(f"verify {number}")
        which = rng.choice([0, 0, 1])
        change = of_all(runs[1 - which])
        mutate = change[number % len(change)]
        out = Path(shutil.copytree(runs[which], tmp_path / "out"))
        try:
            what = f"mutation {number}: {mutate(out, rng)}"
            found = found_by_verify(out)
            after, checked = read(out, check=False), read(out, check=True)
            changed = after != before[which]
            assert found or not changed, f"{what}: not found, and the reader gives other data (or refuses)"
            if "resealed" not in what and mutate not in (
                mutations.value,
                mutations.rows,
                mutations.recast,
                mutations.regroup,
            ):
                for product, snapshot in checked.items():
                    assert snapshot in (None, before[which][product]), (
                        f"{what}: {product} reads as other data in silence"
                    )
            told["found" if found else "harmless"] += 1
            if not found:
                told[f"harmless: {getattr(mutate, '__name__', '')}"] += 1
        finally:
            shutil.rmtree(out)
    record_property("mutations", dict(told))
    print(dict(told))
    assert told["found"] > 0.7 * sum(told[name] for name in ("found", "harmless"))
