"""Outputs with every product of schema version 3, written by hand after docs/format.md: for the tests of the reader.

A unit's products hold the same documents in the same row groups. The topk student is in unit_tables' manner (random, not
the writer's); what counts here is that every value can be found again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.target import ROW_SCHEMA
from tests.support.tables import targets_table

DRAWS, HIDDEN, TOP_K = 50, 6, 4
STATISTICS = ("logz", "entropy", "logit_std", "logz_scaled", "space_logp", "end_logp")
FACTS: dict[str, dict[str, Any]] = {
    "student/small": {"top_k": TOP_K, "vocab_size": 900},
    "student/drawn": {"codec": "sample", "draws": DRAWS, "vocab_size": 900},
    "teacher": {"codec": "topk", "top_k": TOP_K, "vocab_size": 900},
    "hidden": {"codec": "hidden", "hidden_size": HIDDEN},
}


def lists(values: np.ndarray, sizes: np.ndarray) -> pa.ListArray:
    kind = pa.list_(pa.field("element", pa.from_numpy_dtype(values.dtype), nullable=False))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)


def product_table(product: str, rng: np.random.Generator, lengths: list[int], first_row: int) -> pa.Table:
    """Random documents of a product."""
    table = targets_table(rng, lengths, top_k=TOP_K, vocab_size=900, first_row=first_row)
    if product == "student/small":
        return table
    count, sizes = sum(lengths), np.array(lengths)
    new: dict[str, pa.Array] = {}
    gone: list[str] = ["topk_ids", "topk_logps", "tail_logp"]
    if product == "teacher":
        gone = []
        new = {name: lists(rng.normal(size=count).astype(np.float32), sizes) for name in STATISTICS}
        new["roles"] = lists(rng.integers(0, 4, count).astype(np.uint8), sizes)
    elif product == "hidden":
        gone = [name for name in ROW_SCHEMA.names if name not in
                ("doc_id", "doc_row", "text", "token_ids", "byte_end", "scored", "flags")]  # fmt: skip
        bits = (rng.normal(size=count * HIDDEN).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        new = {"hidden": lists(bits, sizes * HIDDEN)}
    else:
        scored = table["scored"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        draws = [sorted(np.unique(rng.zipf(1.5, DRAWS) % 900, return_counts=True)[1].tolist()) if s else []
                 for s in scored]  # fmt: skip
        unique = np.array([len(counts) for counts in draws], np.uint8)
        of_document = np.add.reduceat(unique.astype(np.int64), np.cumsum([0, *lengths[:-1]]))
        flat = np.array([n for counts in draws for n in reversed(counts)], np.uint8)
        new = {
            "sample_sizes": lists(unique, sizes),
            "sample_ids": lists(rng.integers(0, 900, len(flat)).astype(np.int32), of_document),
            "sample_counts": lists(flat, of_document),
        }
    table = table.drop_columns(gone)
    for name, array in new.items():
        table = table.append_column(pa.field(name, array.type, nullable=False), array)
    return table


def write_output(
    out: Path,
    *,
    units: int = 3,
    rows: int = 11,
    group_rows: int = 4,
    products: tuple[str, ...] = tuple(FACTS),
    version: int = 3,
    longest: int = 40,
    same_lengths: bool = False,
    context: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """A finished output (context: with flag 64 at random places); returns per product its documents, as dicts of Python lists."""
    shards, documents = [], {product: [] for product in products}
    for unit in range(units):
        files = {}
        for number, product in enumerate(products):
            alike = 0 if same_lengths or product == "hidden" else number
            lengths = [int(n) for n in np.random.default_rng([unit, alike]).integers(1, longest, rows)]
            table = product_table(product, np.random.default_rng([unit, number, 1]), lengths, unit * rows)
            if context:
                flags = np.random.default_rng(unit).choice([1, 64], sum(lengths)).astype(np.uint8)
                at = table.schema.get_field_index("flags")
                table = table.set_column(at, table.schema.field(at), lists(flags, np.array(lengths)))
            documents[product] += table.to_pylist()
            name = f"data/{product}/train-{unit:05d}-of-{units:05d}.parquet"
            files[product] = write_shard(out, name, table, product, unit, group_rows, version)
        shards.append({"unit": unit, "quarantined": 0, "files": files})
    none: dict[str, Any] = {"codec": "topk", "top_k": 0, "draws": 0, "hidden_size": 0, "vocab_size": 900}
    none |= {"bos_id": None, "eos_id": None, "tokenizer_hash": "h" * 64}
    none = none if version > 2 else {}
    kind = {"regime": "beam", "semantics": "canonical-context"}
    manifest = {
        "schema_name": "targetsmith.targets",
        "schema_version": version,
        "fingerprint": "f" * 64,
        "products": {product: {**none, **FACTS[product], **kind} for product in products},
        "shards": shards,
    }
    (out / "_engine").mkdir()
    (out / "_engine" / "manifest.json").write_text(json.dumps(manifest))
    return documents


def write_shard(
    out: Path,
    name: str,
    table: pa.Table,
    product: str,
    unit: int,
    group_rows: int,
    version: int = 3,
    encoding: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One Parquet file with its footer; returns its record. encoding: more arguments of `write_table`."""
    footer = {
        "schema": "targetsmith.targets",
        "schema_version": str(version),
        "fingerprint": "f" * 64,
        "product": product,
        "unit": str(unit),
        "rows": str(table.num_rows),
    }
    if "top_k" in FACTS[product]:
        footer["top_k"] = str(FACTS[product]["top_k"])
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    table = table.replace_schema_metadata({f"targetsmith.{key}": value for key, value in footer.items()})
    pq.write_table(
        table, out / name, row_group_size=group_rows, compression="zstd", write_page_checksum=True, **encoding or {}
    )
    data = (out / name).read_bytes()
    return {
        "name": name,
        "rows": table.num_rows,
        "positions": len(table["token_ids"].combine_chunks().flatten()),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
