"""The invariants of the rows: what is broken is refused with document and position; rounding breaks none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from engine.dataset.invariants import check_rows, mass_tolerance
from engine.dataset.parquet import round_rows
from schemas.errors import IdentityError
from schemas.target import PAD_ID, ROW_SCHEMA
from tests.support.tables import facts_of, targets_table


def altered(table: pa.Table, name: str, at: int, value: float) -> pa.Table:
    field = ROW_SCHEMA.field(name)
    column = table.column(name).combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).copy()
    values[at] = value
    changed = pa.ListArray.from_arrays(column.offsets, pa.array(values), type=field.type)
    return table.set_column(ROW_SCHEMA.get_field_index(name), field, changed)


@pytest.mark.parametrize(
    ("name", "at", "value", "says"),
    [
        ("token_ids", 3, 500, "token id 500"),
        ("topk_ids", 3 * 8, 700, "top-k ids"),
        ("topk_ids", 3 * 8 + 7, PAD_ID, "without mass"),
        ("topk_logps", 3 * 8 + 7, 0.0, "do not fall"),
        ("tail_logp", 3, -0.01, "stored mass"),
        ("tail_logp", 3, 0.5, "wanted <= 0"),
        ("open_mass", 3, -0.1, "open_mass"),
        ("byte_end", 3, 0, "byte_end"),
        ("scored", 3, False, "unscored"),
        ("flags", 3, 8, "given"),
        ("gold_logp", 3, 0.4, "gold"),
    ],
)
def test_broken_identities_are_refused_with_document_and_position(name: str, at: int, value: float, says: str) -> None:
    table = round_rows(targets_table(np.random.default_rng(5), [20], top_k=8, vocab_size=500))
    check_rows(table, facts_of(8, 500), where="unit 0, teacher")
    with pytest.raises(IdentityError, match=rf"unit 0, teacher: document 'corpus.jsonl#0', position 3.*{says}"):
        check_rows(altered(table, name, at, value), facts_of(8, 500), where="unit 0, teacher")


def test_mass_tolerance_is_met_by_rounding_and_is_tight() -> None:
    for top_k in (1, 8, 64, 1024):
        table = targets_table(np.random.default_rng(6), [200], top_k=top_k, vocab_size=50_000)
        check_rows(round_rows(table), facts_of(top_k, 50_000), where="rounded")
    assert mass_tolerance(64) < 2.2e-3
