"""The names of all files of an output, and its plan, seals, quarantine and manifest read back as typed values.

An output is given as a path, a URL or an open store (dataset/store.py). Writing is in dataset/commit.py. Normative text:
docs/format.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel

from engine.dataset.store import Out, PosixStore, Store, open_store
from schemas.counts import counted
from schemas.errors import OutputError
from schemas.manifest import Manifest, Plan, Seal, ShardRecord
from schemas.reasons import REASONS
from schemas.target import SCHEMA_NAME, SCHEMA_VERSION

PLAN = "_engine/plan.json"
MANIFEST = "_engine/manifest.json"
CARD = "README.md"
CROISSANT = "croissant.json"
SEALS = "_engine/shards"
CLAIMS = "_engine/quarantine"

MAKE = "run `targetsmith score` with the same run file again (for an import, the same `targetsmith import`): it is made anew"
"""The advice for any missing file: it is made again, from the rest of the output or by scoring its unit."""
REMAKE = f"remove this file and {MAKE}"
"""That for any damaged file."""

_Model = TypeVar("_Model", bound=BaseModel)


def shard_name(product: str, unit: int, units: int) -> str:
    """'data/student/small/train-00017-of-00512.parquet': the name of a file in the output."""
    width = max(5, len(str(units)))
    return f"data/{product}/train-{unit:0{width}d}-of-{units:0{width}d}.parquet"


def seal_name(unit: int) -> str:
    return f"{SEALS}/{unit:05d}.json"


def claim_name(unit: int) -> str:
    return f"{CLAIMS}/{unit:05d}.jsonl"


def no_output(store: Store) -> OutputError:
    """What to say of a place without a plan and without anything else of a run."""
    absent = isinstance(store, PosixStore) and not store.root.exists()
    found = "no such folder" if absent else f"no {PLAN}, so not an output of targetsmith"
    return OutputError(f"{store}: {found}; name the `output` of a run")


def load_plan(out: Out) -> Plan:
    """The plan of an output. OutputError when there is none, it is damaged, or of another schema version."""
    store = open_store(out)
    if not store.exists(PLAN):
        if store.exists(MANIFEST) or any(store.files(SEALS)):
            raise OutputError(
                f"{store.place(PLAN)}: missing; run `targetsmith score` with the run file of this output (for an import, the "
                "same `targetsmith import`): it is put back"
            )
        raise no_output(store)
    plan = load_json(store, PLAN, Plan)
    if plan.recompute() != plan.fingerprint:
        raise OutputError(f"{store.place(PLAN)}: content and fingerprint disagree: edited or damaged; {REMAKE}")
    return plan


def load_manifest(out: Out) -> Manifest:
    """The manifest of a finished run. OutputError when the run is not finished, or this is no output."""
    store = open_store(out)
    if not store.exists(MANIFEST):
        plan = load_plan(store)
        raise OutputError(
            f"{store}: the run is not finished: {len(sealed_units(store))} of {counted(len(plan.units), 'unit')} sealed and no "
            f"{MANIFEST}; to finish it {plan.again}"
        )
    return load_json(store, MANIFEST, Manifest)


def nothing_ready(store: Store, plan: Plan) -> OutputError:
    """The error for an output that has a plan and no seal yet."""
    return OutputError(f"{store}: no unit is ready yet; {plan.again}")


def sealed_units(out: Out) -> list[int]:
    """Units with a seal, ascending; one listing."""
    return _numbered(open_store(out), seal_name)


def claimed_units(out: Out) -> list[int]:
    """Units with a claim, ascending; one listing."""
    return _numbered(open_store(out), claim_name)


def unsealed_units(out: Out, plan: Plan) -> list[int]:
    """Units without a seal, ascending. A listing may be behind, so each unit that it lacks is asked for by its name."""
    store = open_store(out)
    lacking = sorted({unit.index for unit in plan.units} - set(sealed_units(store)))
    found = store.map(lambda unit: store.exists(seal_name(unit)), lacking)
    return [unit for unit, sealed in zip(lacking, found, strict=True) if not sealed]


def load_seals(out: Out, plan: Plan | None = None) -> Iterator[Seal]:
    """Every seal of the run, in unit order. plan: that of the output, where it is known already. Raises OutputError."""
    store = open_store(out)
    plan = plan or load_plan(store)
    for unit in sealed_units(store):
        if unit < len(plan.units):
            yield own_seal(store, plan, unit)


def own_seal(out: Out, plan: Plan, unit: int) -> Seal:
    """The seal of a unit, checked to be of this run and this unit; else OutputError."""
    store = open_store(out)
    seal = load_json(store, seal_name(unit), Seal)
    if seal.fingerprint != plan.fingerprint or seal.unit != unit:
        raise OutputError(
            f"{store.place(seal_name(unit))}: seal of unit {seal.unit}, run {seal.fingerprint[:12]}; wanted unit {unit}, "
            f"run {plan.fingerprint[:12]}: the file was copied from elsewhere; move it away and run again"
        )
    wanted = {product: shard_name(product, unit, len(plan.units)) for product in plan.products}
    if seal.files.keys() != wanted.keys() or any(file and file.name != wanted[p] for p, file in seal.files.items()):
        raise OutputError(
            f"{store.place(seal_name(unit))}: damaged: other files than the plan gives this unit; {REMAKE}"
        )
    return seal


def read_quarantine(out: Out, unit_index: int) -> list[dict[str, Any]]:
    """The quarantine records of a unit, by doc_row; [] when none."""
    store, name = open_store(out), claim_name(unit_index)
    if not store.exists(name):
        return []
    try:
        records = [json.loads(line) for line in store.read(name).splitlines()]
        if all(type(record["doc_row"]) is int and record["reason"] in REASONS for record in records):
            return records
        problem = "a record without a number `doc_row` or a known `reason`"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise OutputError(f"{store.place(name)}: damaged ({problem}); {REMAKE}")


def sealed_quarantine(out: Out, shard: ShardRecord) -> list[dict[str, Any]]:
    """`read_quarantine` of a finished run's unit. OutputError when it has not the number of documents that was sealed."""
    store = open_store(out)
    records = read_quarantine(store, shard.unit)
    if len(records) != shard.quarantined:
        raise OutputError(
            f"{store.place(claim_name(shard.unit))}: {counted(len(records), 'document')}, sealed with "
            f"{shard.quarantined}; {REMAKE}"
        )
    return records


def load_json(store: Store, name: str, model: type[_Model]) -> _Model:
    """One of our JSON files as its model. OutputError when it is damaged or of another schema version."""
    data, place = store.read(name), store.place(name)
    try:
        content = json.loads(data)
        version = (content.get("schema_name"), content.get("schema_version")) if isinstance(content, dict) else None
        if version != (SCHEMA_NAME, SCHEMA_VERSION):
            raise OutputError(
                f"{place}: schema {version}, this program reads and writes {(SCHEMA_NAME, SCHEMA_VERSION)}; "
                "use the version of targetsmith that wrote it, or a new `output`"
            )
        return model.model_validate(content)
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{place}: damaged: {' '.join(str(error).split())}; {REMAKE}") from error


def _numbered(store: Store, name_of: Callable[[int], str]) -> list[int]:
    """The numbers of the files in a folder that have exactly the name of their number; others are not ours."""
    folder = name_of(0).rpartition("/")[0]
    found = ((name, re.search(r"/([0-9]{5,9})\.[a-z]+\Z", name)) for name, _ in store.files(folder))
    return sorted({int(match[1]) for name, match in found if match and name == name_of(int(match[1]))})
