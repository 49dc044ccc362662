"""croissant.json, read by Croissant's own library: it is valid, names every file with its hash, and gives the rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import mlcroissant
import pyarrow.parquet as pq
import pytest

from engine.card import croissant as module
from engine.dataset.layout import CROISSANT, load_manifest
from engine.dataset.store import open_store
from engine.verify.catalogue import croissant_findings
from schemas.runfile import RunConfig
from schemas.settings_card import CardConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of mlcroissant, to rdflib and pandas

RECOMMENDED = ("citeAs", "datePublished", "version")  # nothing that a run knows


def test_croissants_library_takes_it_and_reads_the_rows(finished: Path, hostile: RunConfig) -> None:
    dataset = mlcroissant.Dataset(finished / CROISSANT)
    metadata = dataset.metadata
    assert not metadata.ctx.issues.errors
    assert all(any(name in warning for name in RECOMMENDED) for warning in metadata.ctx.issues.warnings)
    assert metadata.name in (hostile.card.title, {"en": hostile.card.title})
    manifest = load_manifest(finished)
    for product, name in (("teacher", "teacher"), ("student/small", "student-small"), ("bytes", "bytes")):
        found = sorted(dataset.records(name), key=lambda record: record[f"{name}/doc_row"])
        files = sorted((finished / "data" / product).glob("*.parquet"))
        stored = [row for file in files for row in pq.read_table(file).to_pylist()]
        assert len(found) == len(stored) == manifest.totals[product].rows
        assert {key.removeprefix(f"{name}/") for key in found[0]} == stored[0].keys()
        for record, row in zip(found, stored, strict=True):
            assert record[f"{name}/doc_id"].decode() == row["doc_id"]
            assert [int(i) for i in record[f"{name}/token_ids"]] == row["token_ids"]
            assert [float(x) for x in record[f"{name}/topk_logps"]] == row["topk_logps"]


def test_every_file_is_named_with_its_size_and_hash(finished: Path) -> None:
    content = json.loads((finished / CROISSANT).read_bytes())
    files = [one for one in content["distribution"] if one["@type"] == "cr:FileObject"]
    assert {one["contentUrl"] for one in files} == {
        path.relative_to(finished).as_posix() for path in finished.rglob("*.parquet")
    }
    for one in files:
        data = (finished / one["contentUrl"]).read_bytes()
        assert (one["sha256"], one["contentSize"]) == (hashlib.sha256(data).hexdigest(), f"{len(data)} B")


def test_a_large_run_is_named_by_patterns(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 5)
    content = json.loads(module.croissant(load_manifest(finished), CardConfig(), "title"))
    assert [one["includes"] for one in content["distribution"]] == [
        f"data/{product}/*.parquet" for product in ("bytes", "student/small", "teacher")
    ]
    assert "license" not in content and "creator" not in content


def test_verify_names_a_catalogue_that_is_not_of_these_files(finished: Path, tmp_path: Path) -> None:
    store, manifest = open_store(shutil.copytree(finished, tmp_path / "out")), load_manifest(finished)
    place = tmp_path / "out" / CROISSANT
    text = place.read_text(encoding="utf-8")
    assert not [*croissant_findings(store, manifest)]
    file = next(file for file in manifest.shards[0].files.values() if file is not None)
    for other in (text.replace(file.sha256, "0" * 64), text.replace(f'"{file.bytes} B"', '"1 B"')):
        place.write_text(other, encoding="utf-8")
        assert file.name in next(croissant_findings(store, manifest)).found
    for other in ("", "[]", '{"distribution": [1]}', "[" * 100_000):
        place.write_text(other, encoding="utf-8")
        (finding,) = croissant_findings(store, manifest)
        assert finding.found.startswith("not readable") and "remove it" in finding.wanted
    place.unlink()
    assert not [*croissant_findings(store, manifest)]
