"""Outputs of random rows over a real tokenizer, to be exported and read back."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.bpe.vocabulary import Vocabulary, load_vocabulary
from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.exchange.formats import export, form_of
from engine.exchange.incoming import import_all, open_incoming
from engine.exchange.outgoing import Tally, open_outgoing
from engine.plan.make_plan import ENGINE_VERSION
from schemas.manifest import Manifest, Plan, PlanUnit
from tests.support.runs import ASSETS
from tests.support.tables import facts_of, unit_tables

TOKENIZER = ASSETS / "student_sp"


@cache
def vocabulary(folder: Path = TOKENIZER) -> Vocabulary:
    return load_vocabulary(str(folder))


def random_output(
    out: Path,
    *,
    seed: int = 0,
    top_k: int = 5,
    units: tuple[int, ...] = (3, 2),
    begin: bool = True,
    tokenizer: Path = TOKENIZER,
    flags: dict[int, int] | None = None,
    regime: str = "same",
) -> Plan:
    """A finished output with the product student/sp: so many documents a unit. begin: whether the
    vocabulary has a begin token. flags: position of each document -> bits that are set there."""
    known = vocabulary(tokenizer)
    facts = facts_of(
        top_k,
        known.size,
        tokenizer=str(tokenizer),
        tokenizer_hash=known.content_hash,
        bos_id=known.bos_id if begin else None,
        eos_id=known.eos_id,
        regime=regime,
    )
    firsts = np.concatenate([[0], np.cumsum(units)])
    cut = [
        PlanUnit(index=i, file_index=0, first_row=int(first), n_rows=rows, doc_row=int(first))
        for i, (first, rows) in enumerate(zip(firsts, units, strict=False))
    ]
    plan = Plan.make({"random": seed}, cut, {"student/sp": facts})
    open_output(out, plan)
    for unit in plan.units:
        tables = unit_tables(plan, unit.index, seed=seed)
        if flags:
            tables = {name: _flagged(table, flags) for name, table in tables.items()}
        publish_unit(out, plan, unit.index, tables, [], {"documents": unit.n_rows})
    finish(out, plan, engine_version=ENGINE_VERSION, describe=describe)
    return plan


def _flagged(table: pa.Table, flags: dict[int, int]) -> pa.Table:
    rows = [list(values) for values in table.column("flags").to_pylist()]
    for values in rows:
        for position, bits in flags.items():
            if position < len(values):
                values[position] |= bits
    column = table.schema.field("flags")
    return table.set_column(table.schema.get_field_index("flags"), column, pa.array(rows, column.type))


def exported(out: Path, form: str, dest: Path, *, product: str | None = None, length: int | None = None) -> Tally:
    return export(open_outgoing(out, product), form, str(dest), length, ENGINE_VERSION)


def imported(form: str, src: Path, out: Path, *, tokenizer: Path = TOKENIZER, product: str | None = None) -> Manifest:
    source = form_of(form).open_source(str(src))
    return import_all(open_incoming(form, source, vocabulary(tokenizer), str(tokenizer), product), out)
