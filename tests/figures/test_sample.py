"""Which units are read: all, or some by the seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.dataset.layout import seal_name
from engine.figures.sample import choose_shards, open_published
from schemas.errors import OutputError
from schemas.manifest import ShardFile, ShardRecord
from tests.support.runs import score_here, write_run


def record(unit: int, positions: int) -> ShardRecord:
    file = ShardFile(name=f"{unit}", rows=1, positions=positions, bytes=1, sha256="") if positions else None
    return ShardRecord(unit=unit, quarantined=0, files={"teacher": file, "bytes": file})


UNITS = [record(unit, positions) for unit, positions in enumerate([10, 0, 30, 20, 40, 10])]


def test_all_where_there_is_room() -> None:
    assert [shard.unit for shard in choose_shards(UNITS, 110, 0)] == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("most", [1, 10, 50, 109])
def test_some_by_the_seed_in_unit_order(most: int) -> None:
    seen = set()
    for seed in range(30):
        units = [shard.unit for shard in choose_shards(UNITS, most, seed)]
        assert (
            units == sorted(set(units))
            and 1 not in units
            and units == [s.unit for s in choose_shards(UNITS, most, seed)]
        )
        positions = sum(file.positions for unit in units if (file := UNITS[unit].files["bytes"]))
        assert positions <= most or len(units) == 1
        seen.add(tuple(units))
    assert len(seen) > 3


def test_no_unit_has_documents() -> None:
    assert choose_shards([record(0, 0)], 10, 0) == ()


def test_what_is_no_output_or_not_ready_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not an output of targetsmith; name the `output` of a run"):
        open_published(tmp_path)
    out = score_here(write_run(tmp_path, texts=("one",), students={}, targets="teacher = true"))
    for name in ("_engine/manifest.json", seal_name(0)):
        (out / name).unlink()
    with pytest.raises(OutputError, match="no unit is ready yet; run `targetsmith score`"):
        open_published(out)
