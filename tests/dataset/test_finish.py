"""A run is finished only when everything that was sealed is there, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.card.describe import describe
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from schemas.errors import OutputError
from tests.support.tables import publish_all, sealed_paths, small_plan


def test_finish_refuses_missing_changed_and_extra_files(tmp_path: Path) -> None:
    plan = small_plan(units=2)
    open_output(tmp_path, plan)
    with pytest.raises(OutputError, match="2 of 2 units not sealed"):
        finish(tmp_path, plan, engine_version="test", describe=describe)
    publish_all(tmp_path, plan)
    stray = tmp_path / "data" / "teacher" / "stray.parquet"
    stray.write_bytes(b"")
    with pytest.raises(OutputError, match=r"stray.parquet: not a file of this run"):
        finish(tmp_path, plan, engine_version="test", describe=describe)
    stray.unlink()
    victim = sealed_paths(tmp_path, "teacher")[0]
    data = victim.read_bytes()
    for change, says in ((lambda: victim.write_bytes(data[:-1]), "sealed with"), (victim.unlink, "missing")):
        change()
        with pytest.raises(OutputError, match=says):
            finish(tmp_path, plan, engine_version="test", describe=describe)
