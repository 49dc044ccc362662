"""One stored document of a product, found by its name or its number; or the reason why it is not there."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.dataset.layout import REMAKE, load_seals, own_seal, read_quarantine, seal_name
from engine.dataset.store import Store
from schemas.errors import OutputError
from schemas.manifest import Plan, Seal


def find_document(store: Store, plan: Plan, product: str, doc: str | None) -> dict[str, Any]:
    """The row of a document. OutputError says why it is not there: quarantine, not scored yet, unknown."""
    seals = load_seals(store, plan)
    if doc is None:
        for seal in seals:
            if found := _read(store, plan, product, seal, None):
                return found
        raise OutputError(f"{store}: no document is ready yet (or all are in quarantine); run targetsmith score")
    if not doc.isdecimal():
        doc_id = doc.removeprefix("id:")
        for seal in seals:
            if found := _read(store, plan, product, seal, ("doc_id", "==", doc_id)):
                return found
        units = plan.units
        what = f"doc_id {doc_id!r}"
    else:
        number = int(doc)
        units = [unit for unit in plan.units if unit.doc_row <= number < unit.doc_row + unit.n_rows]
        if not units:
            last = plan.units[-1].doc_row + plan.units[-1].n_rows - 1
            raise OutputError(f"{store}: no document {number}; the corpus has documents 0 to {last}")
        seal = own_seal(store, plan, units[0].index) if store.exists(seal_name(units[0].index)) else None
        if seal is not None and (found := _read(store, plan, product, seal, ("doc_row", "==", number))):
            return found
        what = f"document {number}"
    for unit in units:
        for record in read_quarantine(store, unit.index):
            if doc in (str(record["doc_row"]), record.get("doc_id"), f"id:{record.get('doc_id')}"):
                raise OutputError(f"{store}: {what} is in quarantine: {record['reason']}, {record.get('detail')}")
    raise OutputError(
        f"{store}: {what} is not here; the unit may not be scored yet (run targetsmith score), or the name is wrong "
        f"(a doc_id made of digits is written id:{doc})"
    )


def _read(
    store: Store, plan: Plan, product: str, seal: Seal, wanted: tuple[str, str, Any] | None
) -> dict[str, Any] | None:
    """The row that is wanted (None: the first) of a unit's file; None: it is not there. OutputError for a damaged file."""
    record = seal.files[product]
    if record is None:
        return None
    place, size = store.place(record.name), store.size(record.name)
    if size != record.bytes:
        got = "missing" if size is None else f"{size:,} bytes"
        raise OutputError(f"{place}: {got}, sealed with {record.bytes:,} bytes; {REMAKE}")
    try:
        with store.open(record.name) as data:
            footer = pq.read_metadata(data).metadata or {}
            if footer.get(b"targetsmith.fingerprint", b"").decode() != plan.fingerprint:
                raise OutputError(f"{place}: a file of another run; {REMAKE}")
            data.seek(0)
            filters = None if wanted is None else [wanted]
            table = pq.read_table(data, filters=filters, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OutputError(f"{place}: damaged ({error}); {REMAKE}") from error
    return table.slice(0, 1).to_pylist()[0] if table.num_rows else None
