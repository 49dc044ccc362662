"""One stored document of a product, found by its name or its number; or the reason why it is not there."""

from __future__ import annotations

from typing import Any

from engine.dataset.layout import load_seals, nothing_ready, own_seal, read_quarantine, seal_name, unsealed_units
from engine.dataset.parquet import Shard
from engine.dataset.sealed import open_sealed
from engine.dataset.store import Store
from schemas.errors import OutputError, RunFileError
from schemas.manifest import Plan, Seal


def find_document(store: Store, plan: Plan, product: str, doc: str | None) -> dict[str, Any]:
    """The row of a document. doc: its doc_id, its number in the corpus, or None for the first that is ready.

    OutputError says why it is not there: quarantine, not scored yet. RunFileError: there is none of that name.
    """
    seals = load_seals(store, plan)
    if doc is None:
        ready = 0
        for seal in seals:
            ready += 1
            if found := _read(store, plan, product, seal, None):
                return found
        if ready == len(plan.units):
            raise OutputError(
                f"{store}: every document is in quarantine, each with its reason in {store.place('_engine/quarantine')}/*.jsonl"
            )
        raise nothing_ready(store, plan)
    name = doc.removeprefix("id:")
    if not doc.isdecimal():
        for seal in seals:
            if found := _read(store, plan, product, seal, ("doc_id", name)):
                return found
        units = plan.units
        what = f"doc_id {name!r}"
    else:
        number = int(doc)
        units = [unit for unit in plan.units if unit.doc_row <= number < unit.doc_row + unit.n_rows]
        if not units:
            last = plan.units[-1].doc_row + plan.units[-1].n_rows - 1
            raise RunFileError(
                f"{store}: no document {number}; the corpus has documents 0 to {last} (a doc_id of digits: id:{doc})"
            )
        seal = own_seal(store, plan, units[0].index) if store.exists(seal_name(units[0].index)) else None
        if seal is not None and (found := _read(store, plan, product, seal, ("doc_row", number))):
            return found
        what = f"document {number}"
    refused = None
    for unit in units:
        for record in read_quarantine(store, unit.index):
            if doc in (str(record["doc_row"]), record.get("doc_id"), f"id:{record.get('doc_id')}"):
                raise OutputError(f"{store}: {what} is in quarantine: {record['reason']}, {record.get('detail')}")
            refused = refused or record.get("doc_id")
    shown = next(
        (found["doc_id"] for seal in load_seals(store, plan) if (found := _read(store, plan, product, seal, None))),
        None,
    )
    like = f", such as {shown!r}" if shown is not None else ""
    like += "; [corpus] id names a column of other names" if like and not plan.is_import else ""
    wanted = f"a number, the place in the corpus, or a doc_id{like} (one made of digits is written id:NUMBER)"
    if doc.isdecimal() or unsealed_units(store, plan):
        raise OutputError(
            f"{store}: {what} is not here; the unit may not be ready yet ({plan.again}), or the name is wrong: "
            f"want {wanted}"
        )
    unread = f"; a record that was refused as it was read has only its place, such as {refused!r}" if refused else ""
    raise RunFileError(
        f"{store}: no document is called {name!r}, and every unit is scored; --doc wants {wanted}{unread}"
    )


def _read(store: Store, plan: Plan, product: str, seal: Seal, wanted: tuple[str, Any] | None) -> dict[str, Any] | None:
    """The row that is wanted (None: the first) of a unit's file; None: it is not there. OutputError for a damaged file."""
    record = seal.files[product]
    if record is None:
        return None
    with open_sealed(store, plan, record) as shard:
        return _first_row(shard, wanted)


def _first_row(shard: Shard, wanted: tuple[str, Any] | None) -> dict[str, Any] | None:
    """The first row, or the first whose column has that value. Row groups that cannot have it are not read."""
    for group in range(shard.file.num_row_groups):
        at = 0
        if wanted is not None:
            column, value = wanted
            known = shard.statistics(group, column)
            if known is not None and not known[0] <= value <= known[1]:
                continue
            values = shard.file.read_row_group(group, [column]).column(column).to_pylist()
            if value not in values:
                continue
            at = values.index(value)
        if found := shard.file.read_row_group(group).slice(at, 1).to_pylist():
            return found[0]
    return None
