"""The output folder seen by a reader: where things lie, and the plan, seals, quarantine and manifest as typed values.

Writing is in engine/shards.py, atomic publication in engine/publish.py. Normative text: docs/format.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from engine.publish import output_errors, put_if_absent, read_published
from schemas.errors import OutputError
from schemas.manifest import Manifest, Plan, Seal
from schemas.target import SCHEMA_NAME, SCHEMA_VERSION

_Model = TypeVar("_Model", bound=BaseModel)


def shard_name(product: str, unit: int, units: int) -> str:
    """'data/student/small/train-00017-of-00512.parquet': path relative to the output folder."""
    width = max(5, len(str(units)))
    return f"data/{product}/train-{unit:0{width}d}-of-{units:0{width}d}.parquet"


def plan_path(out: Path) -> Path:
    return out / "_engine" / "plan.json"


def manifest_path(out: Path) -> Path:
    return out / "_engine" / "manifest.json"


def seal_path(out: Path, unit: int) -> Path:
    return out / "_engine" / "shards" / f"{unit:05d}.json"


def claim_path(out: Path, unit: int) -> Path:
    return out / "_engine" / "quarantine" / f"{unit:05d}.jsonl"


def put(out: Path, path: Path, data: bytes) -> bool:
    """Put-if-absent with the folder's own staging; see engine/publish.py."""
    return put_if_absent(path, data, staging=out / "_engine" / "tmp")


def load_plan(out: Path) -> Plan:
    """The plan of an output folder. OutputError when there is none, it is damaged, or of another schema version."""
    path = plan_path(out)
    if not path.is_file():
        raise OutputError(f"{out}: no _engine/plan.json, so not an output of targetsmith; name the `output` of a run")
    plan = load_json(path, Plan)
    if plan.recompute() != plan.fingerprint:
        raise OutputError(f"{path}: content and fingerprint disagree: edited or damaged; restore it or start anew")
    return plan


def load_manifest(out: Path) -> Manifest:
    """The manifest of a finished run. OutputError when the run is not finished, or the folder is no run."""
    if not manifest_path(out).is_file():
        units = len(load_plan(out).units)
        raise OutputError(
            f"{out}: the run is not finished: {len(sealed_units(out))} of {units} units are sealed and there is no "
            "_engine/manifest.json; run `targetsmith score` on the same run file to finish it"
        )
    return load_json(manifest_path(out), Manifest)


def sealed_units(out: Path) -> list[int]:
    """Units with a seal, ascending; one folder listing."""
    folder = out / "_engine" / "shards"
    with output_errors(folder):
        return sorted(int(path.stem) for path in folder.glob("*.json"))


def load_seals(out: Path) -> Iterator[Seal]:
    """Every seal, in unit order."""
    for unit in sealed_units(out):
        yield load_json(seal_path(out, unit), Seal)


def own_seal(out: Path, plan: Plan, unit: int) -> Seal:
    """The seal of a unit, checked to be of this run and this unit; else OutputError."""
    seal = load_json(seal_path(out, unit), Seal)
    if seal.fingerprint != plan.fingerprint or seal.unit != unit:
        raise OutputError(
            f"{seal_path(out, unit)}: seal of unit {seal.unit}, run {seal.fingerprint[:12]}; wanted unit {unit}, "
            f"run {plan.fingerprint[:12]}: the file was copied from elsewhere; move it away and run again"
        )
    return seal


def iter_shards(out: Path, product: str) -> Iterator[Path]:
    """The Parquet files of one product that are sealed, in unit order; of an unfinished run, those that are ready.

    Raises OutputError when the run has no such product (the message lists those it has) or a sealed file is missing.
    """
    known = load_plan(out).products
    if product not in known:
        raise OutputError(f"{out}: no product {product!r}; this run has {', '.join(sorted(known))}")
    for seal in load_seals(out):
        file = seal.files[product]
        if file is None:
            continue
        if not (out / file.name).is_file():
            raise OutputError(f"{out / file.name}: sealed but missing; restore it, or remove its seal and run again")
        yield out / file.name


def read_quarantine(out: Path, unit_index: int) -> list[dict[str, Any]]:
    """The quarantine records of a unit, by doc_row; [] when none."""
    path = claim_path(out, unit_index)
    return [json.loads(line) for line in read_published(path).splitlines()] if path.exists() else []


def load_json(path: Path, model: type[_Model]) -> _Model:
    """One of our JSON files as its model. OutputError when it is damaged or of another schema version."""
    data = read_published(path)
    try:
        content = json.loads(data)
        version = (content.get("schema_name"), content.get("schema_version")) if isinstance(content, dict) else None
        if version != (SCHEMA_NAME, SCHEMA_VERSION):
            raise OutputError(
                f"{path}: schema {version}, this program reads and writes {(SCHEMA_NAME, SCHEMA_VERSION)}; "
                "use the version of targetsmith that wrote it, or a new `output`"
            )
        return model.model_validate(content)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise OutputError(f"{path}: damaged: {error}; restore the file or start with a new `output`") from error
