"""Begin or resume an output, and publish the tables of one unit in it, so that kills, races and repeats do no harm.

    open_output -> publish_unit (any process, any number of times, per unit) -> finish (engine/dataset/finish.py)

Commit protocol of a unit; each step is put-if-absent (engine/dataset/store.py), so repeats, races and zombies do no harm:

    1  _engine/quarantine/<unit>.jsonl   the claim: who wins this name decides which documents are quarantined
    2  data/<product>/train-...parquet   one per product; the loser of a name checks and takes over the winner's
    3  _engine/shards/<unit>.json        the seal: THE commit point

The claim is written even when it is empty. Without one name that decides, an attempt that ran out of memory on a
document and an attempt that did not could each win one product, and the document would be in one of them only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from engine.dataset.invariants import check_rows
from engine.dataset.layout import (
    PLAN,
    REMAKE,
    claim_name,
    claimed_units,
    load_plan,
    own_seal,
    read_quarantine,
    seal_name,
    sealed_units,
    shard_name,
)
from engine.dataset.parquet import (
    CALIBRATED_BY,
    footer_of,
    lengths_of,
    open_shard,
    round_rows,
    rounding_error_nats,
    row_groups,
    table_to_parquet_bytes,
)
from engine.dataset.repair import check_plan_lost, is_whole, lacking_units, other_than_sealed
from engine.dataset.sidecars import CALIBRATION, check_calibration, sidecars_of
from engine.dataset.store import STAGING, Out, Store, open_store
from schemas.errors import FingerprintMismatch, OutputError
from schemas.manifest import MAXIMUM, Plan, PlanUnit, Seal, ShardFile, canonical_json

# ---- begin or resume -------------------------------------------------------------------------------------------------


def open_output(out: Out, plan: Plan) -> list[int]:
    """Begin the run in `out`, or resume it: the units that are sealed already, ascending ([] for a new run).

    A new or empty output gets plan.json; one that has lost it gets it back when all else there is of this run. One with the
    same fingerprint goes on; units whose files were all published but whose seal was not are sealed from the files, and
    sealed units that have lost a file do not count. Raises FingerprintMismatch (listing what differs) when there is another
    run, OutputError when there is something else or damaged, it cannot be written, or the store overwrites.
    """
    store = open_store(out)
    store.check()
    foreign = None if store.exists(PLAN) else _first_file(store)
    if foreign is not None and not store.exists(PLAN):  # not the beginning of another command on this very run
        check_plan_lost(store, plan, foreign)
    if store.put_if_absent(PLAN, plan.to_bytes()) and foreign is None:
        return []
    found = load_plan(store)
    if found.is_import != plan.is_import:
        held, wanted = ("another run's output", "an import takes another OUT")
        if found.is_import:
            held, wanted = ("an import", "set `output` to a new folder")
        raise FingerprintMismatch(f"{store}: holds {held}; {wanted}, nothing was changed")
    if found.fingerprint != plan.fingerprint:
        listed = "\n  ".join(found.difference(plan))
        raise FingerprintMismatch(
            f"{store}: this folder was begun with other inputs or settings (folder -> this run):\n  {listed}\n"
            + _elsewhere(plan)
            + " for this run, or undo the changes to resume the old one; nothing was changed."
        )
    recover(store, plan)
    sealed = [unit for unit in sealed_units(store) if unit < len(plan.units)]
    seals = store.map(lambda unit: own_seal(store, plan, unit), sealed)
    lacking = lacking_units(store, seals)
    for name in sidecars_of(plan):
        if not store.exists(name):
            lacking.add(0)  # actors write it when they start, and they start only for a unit
        elif name == CALIBRATION:
            check_calibration(store, seals, hashlib.sha256(store.read(name)).hexdigest())
    return [unit for unit in sealed if unit not in lacking]


def _elsewhere(plan: Plan) -> str:
    if plan.is_import:
        return "Take another OUT"
    return "Move this unfinished retry away to begin anew" if plan.retry is not None else "Set `output` to a new folder"


# ---- publish ---------------------------------------------------------------------------------------------------------


def publish_unit(
    out: Out,
    plan: Plan,
    unit_index: int,
    products: Mapping[str, pa.Table],
    quarantine: Sequence[Mapping[str, Any]],
    stats: Mapping[str, float],
    *,
    calibration_sha256: str | None = None,
) -> Seal:
    """Round, check and publish one unit; returns its seal (the winner's, when another attempt was first). Idempotent.

    `products`: one table per product of the plan, with its columns, rows in corpus order. `quarantine`: records with at
    least doc_row and reason. `calibration_sha256`: of the calibration file that open mass was placed by.
    Each document of the unit must be in every table or in quarantine, else ValueError.
    Raises IdentityError when an invariant of the rows is broken, OutputError when the folder cannot be written or
    holds a file that does not belong there. A call that raises has published no seal and can be repeated.
    """
    store, unit = open_store(out), plan.units[unit_index]
    if products.keys() != plan.products.keys():
        raise ValueError(f"unit {unit_index}: got products {sorted(products)}, the plan has {sorted(plan.products)}")
    seal = own_seal(store, plan, unit_index) if store.exists(seal_name(unit_index)) else None
    if seal is not None and is_whole(store, seal):
        return seal
    own = {int(record["doc_row"]) for record in quarantine}
    tables, sums = {}, dict(stats)
    for product, table in products.items():
        if problem := _incomplete(unit, table, own):
            raise ValueError(f"unit {unit_index}, {product}: {problem}")
        tables[product] = round_rows(table)
        check_rows(tables[product], plan.products[product], where=f"unit {unit_index}, {product}")
        sums[f"{product}.rounding_nats{MAXIMUM}"] = rounding_error_nats(table, tables[product])

    if seal is not None and len(own) != seal.quarantined and not store.exists(claim_name(unit_index)):
        raise other_than_sealed(store, claim_name(unit_index), unit_index)
    lines = sorted(quarantine, key=lambda record: record["doc_row"])
    claim = b"".join(canonical_json(dict(line)).encode() + b"\n" for line in lines)
    store.put_if_absent(claim_name(unit_index), claim)
    claimed = _claimed_rows(store, unit_index)
    if own - claimed:
        raise OutputError(
            f"{store.place(claim_name(unit_index))}: an earlier attempt scored documents (rows {sorted(own - claimed)}) that "
            "this attempt had to put in quarantine. Run again (after want of memory: on the larger machine); or, when "
            f"no file of unit {unit_index} lies in data/, remove this file to let the next attempt decide"
        )
    files: dict[str, ShardFile | None] = {}
    kept = {product: _without(table, claimed) for product, table in tables.items()}
    groups = row_groups(list(kept.values()))
    for product, table in kept.items():
        files[product] = (
            _publish_product(store, plan, unit, product, table, groups, len(claimed), sums, calibration_sha256, seal)
            if groups
            else None
        )
    return seal or _seal(store, plan, unit_index, len(claimed), files, sums, calibration_sha256)


def recover(out: Out, plan: Plan) -> list[int]:
    """Seal the units whose files are all published but whose seal is missing (a kill in between); their indexes.

    Statistics come from the footer of the unit's first product. Units without a good row are simply scored again.
    """
    store = open_store(out)
    sealed, recovered = set(sealed_units(store)), []
    for index in claimed_units(store):
        names = {product: shard_name(product, index, len(plan.units)) for product in plan.products}
        if index in sealed or index >= len(plan.units) or not all(store.exists(name) for name in names.values()):
            continue
        claimed = _claimed_rows(store, index)
        files, stats, first = {}, {}, dict[str, str]()
        for product in names:
            files[product], footer = _adopt(store, plan, plan.units[index], product, claimed, first.get(CALIBRATED_BY))
            first = first or footer
            stats = stats or _stats_of(footer, store.place(names[product]))
        _seal(store, plan, index, len(claimed), files, stats, first.get(CALIBRATED_BY))
        recovered.append(index)
    return recovered


def _publish_product(
    store: Store,
    plan: Plan,
    unit: PlanUnit,
    product: str,
    table: pa.Table,
    groups: Sequence[tuple[int, int]],
    quarantined: int,
    stats: Mapping[str, float],
    calibration_sha256: str | None,
    seal: Seal | None,
) -> ShardFile:
    """seal: of a unit that has lost a file since; then the same bytes are put back, or none."""
    name = shard_name(product, unit.index, len(plan.units))
    counts = (table.num_rows, int(lengths_of(table).sum()), quarantined)
    footer = footer_of(plan, unit.index, product, *counts, stats, calibration_sha256)
    data = table_to_parquet_bytes(table, footer, groups)
    if store.most_bytes is not None and len(data) > store.most_bytes:
        raise OutputError(
            f"{store.place(name)}: {len(data):,} bytes, and a shard on an object store has at most {store.most_bytes:,}; "
            "set [corpus] unit_bytes (or unit_documents) so much smaller, with a new `output`"
        )
    made = _shard_file(name, footer, data)
    if seal is not None and seal.files[product] != made and not store.exists(name):
        raise other_than_sealed(store, name, unit.index)
    if store.put_if_absent(name, data):
        return made
    rows = set(table.column("doc_row").to_pylist())
    claimed = set(range(unit.doc_row, unit.doc_row + unit.n_rows)) - rows
    return _adopt(store, plan, unit, product, claimed, calibration_sha256)[0]


def _adopt(
    store: Store, plan: Plan, unit: PlanUnit, product: str, claimed: set[int], calibration_sha256: str | None
) -> tuple[ShardFile, dict[str, str]]:
    """The file that another attempt published under this name, after checking that it is ours, whole and undamaged; and its
    footer. calibration_sha256: of the file that its open mass must have been placed by, None where that is not known."""
    name = shard_name(product, unit.index, len(plan.units))
    data, place = store.read(name), store.place(name)
    with open_shard(data, place) as shard:
        table, footer = shard.read(), shard.footer
    _stats_of(footer, place)
    if not table.schema.equals(plan.products[product].schema_of_rows, check_metadata=False):
        raise OutputError(f"{place}: not a file of this run: other columns or types; move it away and run again")
    counts = (table.num_rows, int(lengths_of(table).sum()), len(claimed))
    wanted = footer_of(plan, unit.index, product, *counts, {}, calibration_sha256)
    free = {
        "targetsmith.stats",
        "targetsmith.tokenizer",
    }  # of an attempt; a name, which the run file may give otherwise
    for key in [key for key in wanted if key not in free]:
        if footer.get(key) != wanted[key]:
            raise OutputError(
                f"{place}: not a file of this run: its footer says {key} = {footer.get(key)!r}, wanted "
                f"{wanted[key]!r}; move it away and run again"
            )
    if problem := _incomplete(unit, table, claimed):
        raise OutputError(f"{place}: {problem}; move the file away and run again")
    return _shard_file(name, footer, data), footer


def _stats_of(footer: Mapping[str, str], place: str) -> dict[str, float]:
    """The statistics in a footer. OutputError where they are no numbers by name."""
    try:
        return {key: float(value) for key, value in json.loads(footer.get("targetsmith.stats", "")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise OutputError(f"{place}: damaged (targetsmith.stats of its footer: {error}); {REMAKE}") from error


def _seal(
    store: Store,
    plan: Plan,
    unit: int,
    quarantined: int,
    files: dict[str, ShardFile | None],
    stats: Mapping[str, float],
    calibration_sha256: str | None,
) -> Seal:
    sums = {key: float(value) for key, value in stats.items()}
    facts = {"fingerprint": plan.fingerprint, "unit": unit, "quarantined": quarantined, "files": files, "stats": sums}
    seal = Seal(**facts, continuations=calibration_sha256)
    return seal if store.put_if_absent(seal_name(unit), seal.to_bytes()) else own_seal(store, plan, unit)


def _incomplete(unit: PlanUnit, table: pa.Table, quarantined: set[int]) -> str | None:
    """Why rows and quarantine are not the documents of the unit, each exactly once and in order; None if they are."""
    rows = table.column("doc_row").to_pylist()
    wanted = [row for row in range(unit.doc_row, unit.doc_row + unit.n_rows) if row not in quarantined]
    if rows == wanted:
        return None
    lost, extra = sorted(set(wanted) - set(rows)), sorted(set(rows) - set(wanted))
    return (
        f"documents lost {lost[:10]}, not expected here {extra[:10]}, or out of order: each document of the unit (rows "
        f"{unit.doc_row} to {unit.doc_row + unit.n_rows - 1}) must be in the table, in order, or in quarantine"
    )


def _claimed_rows(store: Store, unit: int) -> set[int]:
    return {int(record["doc_row"]) for record in read_quarantine(store, unit)}


def _without(table: pa.Table, doc_rows: set[int]) -> pa.Table:
    if not doc_rows:
        return table
    return table.filter(pa.array([row not in doc_rows for row in table.column("doc_row").to_pylist()], pa.bool_()))


def _shard_file(name: str, footer: Mapping[str, str], data: bytes) -> ShardFile:
    rows, positions = int(footer["targetsmith.rows"]), int(footer["targetsmith.positions"])
    return ShardFile(
        name=name, rows=rows, positions=positions, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )


def _first_file(store: Store) -> str | None:
    """Any file that is not our own staging; None for a new or empty output."""
    return next((name for name, _ in store.files() if not name.startswith(f"{STAGING}/")), None)
