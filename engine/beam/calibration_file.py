"""The mean rows of the calibration sample as one file of the output, the same for all who work on it: written once, read by all.

Every actor scores the sample when it starts; the first that is through publishes its mean rows, and all take those, now and after
a resume. So no value depends on which actor made it, on what one of them had no memory for, or on which document killed one.

OUT/_engine/continuations.parquet: a row per token t behind which the sample has rows, t rising. `ids` and `probs`: the
heaviest next tokens, falling; `special`: mass on specials; `heads/<product>` [H]: mass by heads of that student
(engine/alignment/strings.py). All float64, as they are used. Its metadata name the run and the documents that were left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.beam.calibration import Calibration
from engine.beam.sketch import RowSketch
from engine.dataset.layout import REMAKE, load_seals
from engine.dataset.parquet import flat, lengths_of, open_shard, table_to_parquet_bytes
from engine.dataset.sidecars import CALIBRATION, calibrated_products
from engine.dataset.store import Out, open_store
from schemas.errors import OutputError
from schemas.manifest import Plan, canonical_json
from schemas.target import SCHEMA_NAME, SCHEMA_VERSION

LEFT_OUT = "targetsmith.left_out"
_GROUP_ROWS = 1024


def schema_of(products: Sequence[str]) -> pa.Schema:
    """Columns of the file. products: as `calibrated_products` gives them."""
    numbers = pa.list_(pa.float64())
    columns = [("token", pa.int32()), ("ids", pa.list_(pa.int32())), ("probs", numbers), ("special", pa.float64())]
    return pa.schema([*columns, *((f"heads/{product}", numbers) for product in products)])


def publish_calibration(
    out: Out, plan: Plan, mean_rows: Mapping[int, RowSketch], left_out: Sequence[Mapping[str, Any]]
) -> None:
    """Write the file unless it is there. left_out: records of documents of the sample that gave nothing, and why."""
    rows = [mean_rows[token] for token in sorted(mean_rows)]
    products = calibrated_products(plan)
    arrays = [pa.array(sorted(mean_rows), pa.int32()), _lists([row.ids for row in rows], pa.int32())]
    arrays += [_lists([row.prob for row in rows], pa.float64()), pa.array([row.special for row in rows], pa.float64())]
    arrays += [_lists([row.heads[product] for row in rows], pa.float64()) for product in products]
    metadata = {
        "targetsmith.schema": SCHEMA_NAME,
        "targetsmith.schema_version": str(SCHEMA_VERSION),
        "targetsmith.fingerprint": plan.fingerprint,
        LEFT_OUT: canonical_json(sorted(left_out, key=lambda record: record["doc_row"])),
    }
    table = pa.Table.from_arrays(arrays, schema=schema_of(products))
    groups = [(start, min(_GROUP_ROWS, len(rows) - start)) for start in range(0, len(rows), _GROUP_ROWS)]
    data, store = table_to_parquet_bytes(table, metadata, groups), open_store(out)
    sealed = next((seal for seal in load_seals(store, plan) if seal.continuations is not None), None)
    if sealed is not None and sealed.continuations != hashlib.sha256(data).hexdigest():
        raise OutputError(
            f"{store.place(CALIBRATION)}: lost, and made again it is not the one that unit {sealed.unit} was scored with (other "
            "hardware or libraries, or another document of the sample failed); restore it from a copy, or score into a new "
            "`output`. What is sealed stays good"
        )
    store.put_if_absent(CALIBRATION, data)


def read_calibration(out: Out, plan: Plan, heads: Mapping[str, int]) -> tuple[Calibration, str]:
    """(mean rows of an output, sha256 of their file). heads: product -> H of this program.

    Raises OutputError: missing, damaged, of another run."""
    store = open_store(out)
    data = store.read(CALIBRATION)
    table, _ = parse_calibration(data, plan, store.place(CALIBRATION))
    sizes = {product: set(lengths_of(table, f"heads/{product}").tolist()) for product in calibrated_products(plan)}
    if any(found - {heads.get(product)} for product, found in sizes.items()):
        raise OutputError(
            f"{store.place(CALIBRATION)}: heads {sizes}, wanted {dict(heads)}: of another program; {REMAKE}"
        )
    ends = np.cumsum(lengths_of(table, "ids"))[:-1]
    ids, probs = (np.split(flat(table, name), ends) for name in ("ids", "probs"))
    by_head = {
        product: flat(table, f"heads/{product}").reshape(table.num_rows, count) for product, count in heads.items()
    }
    special = table.column("special").to_pylist()
    mean_rows = {
        token: RowSketch(ids[i].astype(np.int64), probs[i], {p: h[i] for p, h in by_head.items()}, special[i], 1.0)
        for i, token in enumerate(table.column("token").to_pylist())
    }
    return Calibration(mean_rows), hashlib.sha256(data).hexdigest()


def parse_calibration(data: bytes, plan: Plan, place: str) -> tuple[pa.Table, list[dict[str, Any]]]:
    """(rows, records of the documents left out) of the file's bytes. Raises OutputError: damaged, or of another run."""
    with open_shard(data, place) as shard:
        table, metadata = shard.read(), shard.footer
    try:
        left_out = json.loads(metadata[LEFT_OUT])
        problem = None if table.schema.equals(schema_of(calibrated_products(plan))) else f"columns {table.schema.names}"
        if metadata["targetsmith.fingerprint"] != plan.fingerprint:
            problem = f"of run {metadata['targetsmith.fingerprint'][:12]}, wanted {plan.fingerprint[:12]}"
    except (ValueError, KeyError, RecursionError) as error:
        problem, left_out = f"damaged: {type(error).__name__}: {error}", []
    if problem is not None:
        raise OutputError(f"{place}: {problem}; {REMAKE}")
    return table, left_out


def _lists(parts: Sequence[np.ndarray], of: pa.DataType) -> pa.Array:
    ends = np.cumsum([0, *(len(part) for part in parts)])
    values = np.concatenate([np.empty(0), *parts])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values, of, safe=False))
