"""Tables of a unit -> the bytes of its Parquet files, as publishing makes them, but into memory: rounded, checked, written,
read back and compared. What a disk or a bucket takes is not a matter of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from engine.dataset.invariants import check_rows
from engine.dataset.parquet import round_rows, rounding_error_nats, row_groups, table_to_parquet_bytes
from engine.scoring.scorer import Scorer
from schemas.manifest import ProductFacts
from schemas.products import BYTES, BYTES_END, TEACHER


def facts_of(scorer: Scorer) -> dict[str, ProductFacts]:
    """What the plan of a run would say of each product (top-k only; hashes are not looked at)."""
    stages, targets = scorer.stages, scorer.stages.run.targets
    facts = {}
    for product in stages.products:
        known = {TEACHER: stages.vocabulary, **stages.students}.get(product)
        facts[product] = ProductFacts(
            tokenizer=product,
            tokenizer_hash="",
            vocab_size=BYTES_END + 1 if known is None else known.size,
            top_k=targets.bytes_top_k if product == BYTES else targets.top_k,
            bos_id=None if known is None else known.bos_id,
            eos_id=stages.end_id(product),
            regime="bytes" if product == BYTES else "own" if product == TEACHER else stages.regimes[product],
            semantics=targets.semantics,
        )
    return facts


def encoded(tables: Mapping[str, pa.Table], facts: Mapping[str, ProductFacts]) -> dict[str, bytes]:
    """Product -> its Parquet file. Raises IdentityError for rows that break an invariant."""
    rounded = {}
    for product, table in tables.items():
        rounded[product] = round_rows(table)
        check_rows(rounded[product], facts[product], where=product)
        rounding_error_nats(table, rounded[product])
    groups = row_groups(list(rounded.values()))
    return {product: table_to_parquet_bytes(table, {}, groups) for product, table in rounded.items()}
