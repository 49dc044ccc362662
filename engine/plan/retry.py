"""The quarantined documents of a finished run as a run of their own, in an output beside it; nothing in the first one changes.

    out/            finished
    out-retry-1/    its quarantined documents as a run: plan, shards, quarantine and manifest of its own
    out-retry-2/    what out-retry-1 left in quarantine

A published claim says for good which documents a unit does not have, and a manifest which files a run has; a document that
came in later would change both. In a retry `doc_row` counts the retried documents; `Plan.retry` gives the
place of each in the corpus. doc_id, source and place are as before, and so are the draws of codec `sample`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from engine.corpus.document import Document, Unit
from engine.corpus.scan import CorpusScan
from engine.corpus.units import read_units
from engine.dataset.layout import MANIFEST, PLAN, load_manifest, load_plan, sealed_quarantine
from engine.dataset.store import Out, Store, open_store
from engine.dataset.unit_result import UnitResult
from schemas.counts import counted
from schemas.errors import OutputError
from schemas.manifest import Plan, PlanUnit
from schemas.plan_inputs import RETRY, Retry
from schemas.settings_corpus import CorpusConfig


def find_retry(out: Out) -> tuple[Store, list[int]]:
    """(output of the next retry, or of one that was begun and not finished; rows of the corpus that it scores, rising).

    No rows: nothing is in quarantine any more. Raises OutputError when the run in `out` is not finished, or a folder of that
    name holds something else.
    """
    load_manifest(out)
    base = load_plan(out)
    rows, number = _quarantined(out, base), 1
    while True:
        folder = open_store(f"{open_store(out)}-retry-{number}")
        if not rows or not folder.exists(PLAN):
            return folder, rows
        plan = load_plan(folder)
        if plan.retry != Retry(base.fingerprint, rows):
            raise OutputError(
                f"{folder}: holds another run than a retry of the {counted(len(rows), 'document')} that {out} and its "
                "retries left in "
                "quarantine; move it away and run again"
            )
        if not folder.exists(MANIFEST):
            return folder, rows
        rows, number = _quarantined(folder, plan), number + 1


def _quarantined(out: Out, plan: Plan) -> list[int]:
    """Rows of the corpus that are in quarantine in a finished output. OutputError: a list is not as it was sealed."""
    found = [int(record["doc_row"]) for shard in load_manifest(out).shards for record in sealed_quarantine(out, shard)]
    return sorted(found if plan.retry is None else [plan.retry.rows[number] for number in found])


def check_corpus(plan: Plan, base: Plan) -> None:
    """The corpus of the run that is retried must be that of the run file today: else rows would mean other documents.
    Raises OutputError. Everything else may differ (a mended setting, a newer engine)."""
    ours, theirs = ([(file.label, file.sha256, file.n_rows) for file in one.corpus_files] for one in (plan, base))
    if ours != theirs:
        changed = next((a or b for a, b in zip(ours, theirs, strict=False) if a != b), (ours + theirs)[-1])
        raise OutputError(
            f"the corpus is not the one whose documents are in quarantine (first difference: {changed[0]}); a mended corpus is a "
            "new run: score it into a new `output`"
        )


def retry_plan(plan: Plan, of: str, scan: CorpusScan, rows: list[int]) -> Plan:
    """The plan of a retry: that of the run file today (`plan`, of the whole corpus), for these documents only. of: the
    fingerprint of the run that is retried."""
    units: list[PlanUnit] = []
    done = 0
    for unit, mine in _units(scan, rows):
        at = PlanUnit(
            index=len(units), file_index=unit.file_index, first_row=unit.first_row, n_rows=len(mine), doc_row=done
        )
        units.append(at)
        done += len(mine)
    return Plan.make({**plan.semantic, RETRY: {"of": of, "rows": rows}}, units, plan.products)


def _units(scan: CorpusScan, rows: list[int]) -> Iterator[tuple[Unit, list[int]]]:
    """The units of the corpus that have any of these rows, each with its own."""
    at = 0
    for unit in scan.units():
        begin = at
        while at < len(rows) and rows[at] < unit.doc_row + unit.n_rows:
            at += 1
        if at > begin:
            yield unit, rows[begin:at]


def read_retried(
    config: CorpusConfig, scan: CorpusScan, rows: list[int], wanted: Container[int]
) -> Iterator[tuple[Unit, Sequence[Document]]]:
    """As `engine.corpus.scan.read_units`, for the units of a retry; the documents keep their rows of the corpus."""
    mine = {unit.index: (number, set(found)) for number, (unit, found) in enumerate(_units(scan, rows))}
    asked = {index for index, (number, _) in mine.items() if number in wanted}
    for unit, documents in read_units(config, scan, asked):
        number, found = mine[unit.index]
        kept = [document for document in documents if document.doc_row in found]
        yield replace(unit, index=number, n_rows=len(kept)), kept


def renumbered(result: UnitResult, plan: Plan) -> UnitResult:
    """The same with `doc_row` as a retry counts it; any other run's result as it is."""
    if plan.retry is None:
        return result
    number = {row: i for i, row in enumerate(plan.retry.rows)}
    products = {}
    for product, table in result.products.items():
        rows = pa.array([number[row] for row in table.column("doc_row").to_pylist()], pa.int64())
        place = table.schema.get_field_index("doc_row")
        products[product] = table.set_column(place, table.schema.field(place), rows)
    quarantine = [{**record, "doc_row": number[record["doc_row"]]} for record in result.quarantine]
    return replace(result, products=products, quarantine=quarantine)
