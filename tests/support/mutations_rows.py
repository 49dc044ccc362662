"""Ways to damage an output that leave every file a valid one of ours: other rows, other values. The rest: mutations.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.dataset.parquet import _WRITER, encodings, flat, lengths_of, row_groups
from schemas.manifest import Plan
from tests.support.mutations import Rng, parquet_files, place_of, reseal, write_json

# ---- valid Parquet files with other rows


def rewrite(path: Path, table: pa.Table, **more: str) -> None:
    """The table under the file's own footer, rows and positions made true, as our writer writes it. more: footer keys."""
    footer = {k.decode(): v.decode() for k, v in (pq.read_metadata(path).metadata or {}).items()}
    footer = {key: value for key, value in footer.items() if key.startswith("targetsmith.")}
    footer["targetsmith.rows"] = str(table.num_rows)
    footer["targetsmith.positions"] = str(int(lengths_of(table).sum()))
    footer |= {f"targetsmith.{key}": value for key, value in more.items()}
    table = table.replace_schema_metadata(None).combine_chunks()
    sink = pa.BufferOutputStream()  # not table_to_parquet_bytes: that refuses NaN, which does not equal itself
    writer = pq.ParquetWriter(sink, table.schema, **_WRITER, **encodings(table.schema))
    for start, count in row_groups([table]):
        writer.write_table(table.slice(start, count), row_group_size=count)
    writer.add_key_value_metadata(footer)
    writer.close()
    path.write_bytes(sink.getvalue().to_pybytes())


def rows(out: Path, rng: Rng) -> str:
    """Documents removed, doubled or reordered, in one product or in all of a unit."""
    units = {place_of(out, path)[1] for path in parquet_files(out) if pq.read_metadata(path).num_rows > 1}
    unit = rng.choice(sorted(units or {place_of(out, path)[1] for path in parquet_files(out)}))
    files = [path for path in parquet_files(out) if place_of(out, path)[1] == unit]
    files = files if rng.random() < 0.5 else [rng.choice(files)]
    count = pq.read_metadata(files[0]).num_rows
    kept = list(range(count))
    how = rng.choice(["removed", "doubled", "reordered"]) if count > 1 else "doubled"
    if how == "removed":
        kept.pop(rng.randrange(count))
    elif how == "doubled":
        kept.insert(rng.randrange(count), rng.randrange(count))
    else:
        kept.reverse()
    for path in files:
        rewrite(path, pq.read_table(path).take(pa.array(kept)))
        reseal(out, path)
    return f"unit {unit}, {len(files)} products: a document {how}"


def regroup(out: Path, rng: Rng) -> str:
    """The same rows in other row groups: readers of two products beside each other rely on them."""
    path = rng.choice([path for path in parquet_files(out) if pq.read_metadata(path).num_row_groups > 1])
    rewrite(path, pq.read_table(path))
    reseal(out, path)
    return f"{path}: one row group"


def recast(out: Path, rng: Rng) -> str:
    """A column lost, added, renamed, of another type, or with nulls."""
    path = rng.choice(parquet_files(out))
    table = pq.read_table(path).replace_schema_metadata(None)
    at = rng.randrange(table.num_columns)
    column = table.schema.field(at)
    how = rng.choice(["lost", "added", "renamed", "type", "nullable", "null", "order"])
    if how == "lost":
        table = table.remove_column(at)
    elif how == "added":
        table = table.append_column("more", pa.array([1] * table.num_rows))
    elif how == "renamed":
        table = table.rename_columns([f"{n}x" if i == at else n for i, n in enumerate(table.column_names)])
    elif how == "order":
        table = table.select(table.column_names[::-1])
    elif how == "null":
        values = [None, *table.column(at).to_pylist()[1:]]
        table = table.set_column(at, pa.field(column.name, column.type), pa.array(values, column.type))
    elif how == "type" and not pa.types.is_list(column.type):
        values = table.column(at).to_pylist()
        new = pa.array(map(str, values)) if column.name == "doc_row" else pa.array([len(value) for value in values])
        table = table.set_column(at, column.name, new)
    elif how == "type" and pa.types.is_list(column.type):
        inner = pa.string() if pa.types.is_boolean(column.type.value_type) else pa.float64()
        table = table.set_column(at, column.name, table.column(at).cast(pa.list_(inner)))
    else:
        table = table.set_column(at, pa.field(column.name, column.type, nullable=True), table.column(at))
    footer = {k: v for k, v in (pq.read_metadata(path).metadata or {}).items() if k.startswith(b"targetsmith")}
    pq.write_table(table.replace_schema_metadata(footer), path, compression="zstd", write_page_checksum=True)
    reseal(out, path)
    return f"{path}: {column.name} {how}"


def resize(out: Path, rng: Rng) -> str:
    """Draws of one position given to the next: all lists fit as before."""
    path = rng.choice([path for path in parquet_files(out) if "sample_sizes" in pq.read_schema(path).names])
    table = pq.read_table(path).replace_schema_metadata(None).combine_chunks()
    sizes = flat(table, "sample_sizes").copy()
    inner = np.ones(len(sizes), bool)
    inner[np.cumsum(lengths_of(table)) - 1] = False  # the last of a document
    at = int(rng.choice(np.flatnonzero(inner & (sizes > 0)).tolist()))
    sizes[at] -= 1
    sizes[at + 1] += 1
    place = table.schema.get_field_index("sample_sizes")
    column = table.schema.field(place)
    offsets = table.column(place).combine_chunks().offsets
    new = pa.ListArray.from_arrays(offsets, pa.array(sizes), type=column.type)
    rewrite(path, table.set_column(place, column, new))
    reseal(out, path)
    return f"{path}: sample_sizes at {at}"


# ---- a plan that is another, with a true fingerprint everywhere


def forge_plan(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the plan, and write its new fingerprint into all seals, footers and the manifest."""
    engine = out / "_engine"
    plan = json.loads((engine / "plan.json").read_text())
    change(plan)
    plan["fingerprint"] = Plan.model_validate(plan).recompute()
    write_json(engine / "plan.json", plan)
    for file in [*engine.glob("shards/*.json"), engine / "manifest.json"]:
        write_json(file, {**json.loads(file.read_text()), "fingerprint": plan["fingerprint"]})
    for path in parquet_files(out):
        rewrite(path, pq.read_table(path), fingerprint=plan["fingerprint"])
        reseal(out, path)


def forge_retry(out: Path, rng: Rng) -> str:
    """Which documents of which run a retry has."""
    how = rng.choice(["short", "long", "twice", "order", "negative", "far", "text", "null", "gone", "of", "nothing"])

    def change(plan: dict[str, Any]) -> None:
        retry = plan["semantic"]["retry"]
        rows = retry["rows"]
        others = {
            "short": rows[:-1], "long": [*rows, rows[-1] + 1], "twice": [rows[0], *rows[:-1]], "order": rows[::-1],
            "negative": [-1, *rows[1:]], "far": [*rows[:-1], 10**6], "text": [*rows[:-1], str(rows[-1])], "null": None,
        }  # fmt: skip
        if how in others:
            retry["rows"] = others[how]
        elif how == "gone":
            del plan["semantic"]["retry"]
        elif how == "of":
            retry["of"] = rng.choice([None, "", "z", 3])
        else:
            plan["semantic"]["retry"] = rng.choice([None, [], {}, "x"])

    forge_plan(out, change)
    return f"{out}: retry {how}, resealed"


# ---- valid Parquet files with other values: each breaks a sentence of docs/format.md

NAN = float("nan")
_VALUES: dict[str, list[Any]] = {
    "token_ids": [-1, 2**31 - 1],
    "byte_end": [-1, 2**31 - 1],
    "scored": ["not"],
    "topk_ids": [-2, 2**31 - 1, "next"],
    "topk_logps": [NAN, 0.5, "ulp", "first"],
    "tail_logp": [NAN, 0.5, "ulp"],
    "gold_logp": [NAN, 0.5, "ulp"],
    "err": [NAN, -0.5, 1.5, "ulp"],
    "open_mass": [NAN, -0.5, 1.5, "ulp"],
    "excluded_mass": [NAN, -0.5, 1.5, "ulp"],
    "pruned_mass": [NAN, -0.5, 1.5, "ulp"],
    "noncanonical_mass": [NAN, -0.5, 1.5, "ulp"],
    "flags": [128, 3, 0, 4, 65],
    "sample_counts": [0, "more"],
    "sample_ids": [-1, 2**31 - 1, "next"],
    "hidden": [0x7FC0, 0x7F80],
    "logz": [NAN, float("inf")],
    "entropy": [NAN, -1.0, "ulp"],
    "logit_std": [NAN, 0.0, -1.0, float("inf")],
    "logz_scaled": [NAN, float("inf")],
    "space_logp": [NAN, 0.5, "ulp"],
    "end_logp": [NAN, 0.5, "ulp"],
    "roles": [4, 255],
    "doc_row": ["more"],
    "doc_id": ["same"],
    "text": ["longer"],
}


def value(out: Path, rng: Rng) -> str:
    """One value of one column, so that something no longer holds."""
    path = rng.choice(parquet_files(out))
    table = pq.read_table(path).replace_schema_metadata(None).combine_chunks()
    name = rng.choice([name for name in table.column_names if name in _VALUES])
    how, at = rng.choice(_VALUES[name]), table.schema.get_field_index(name)
    column = table.schema.field(at)
    if not pa.types.is_list(column.type):
        values = table.column(at).to_pylist()
        i = rng.randrange(len(values))
        values[i] = values[i] + 1 if how == "more" else f"{values[i]}!" if how == "longer" else values[i - 1]
        if how == "same":
            values[i] = f"{values[i]}?"
        new = pa.array(values, column.type)
    else:
        flat_values = flat(table, name).copy()
        where = _where(table, name, flat_values, how, rng)
        flat_values[where] = _new(flat_values, where, how)
        new = pa.ListArray.from_arrays(
            table.column(at).combine_chunks().offsets, pa.array(flat_values), type=column.type
        )
    rewrite(path, table.set_column(at, column, new))
    reseal(out, path)
    return f"{path}: {name} {how}"


def _where(table: pa.Table, name: str, values: np.ndarray, how: Any, rng: Rng) -> int:
    """A place where the change is one: scored, and of a size that rounding does not hide."""
    scored = np.repeat(flat(table, "scored"), len(values) // max(1, len(flat(table, "scored"))))
    good = scored if len(scored) == len(values) else np.ones(len(values), bool)
    if how in ("ulp", "first", "next"):
        with np.errstate(all="ignore"):
            good = good & np.isfinite(values.astype(np.float64)) & (values != 0)
    if how == "first":  # the likeliest, and likely enough to be missed in the sum
        width = len(values) // len(flat(table, "scored"))
        good = good & (np.arange(len(values)) % width == 0) & (values > -3)
    if how in ("next", "ulp") and not good.any():
        good = np.ones(len(values), bool)
    if name == "byte_end":
        good = np.ones(len(values), bool)
    return int(rng.choice(np.flatnonzero(good).tolist() or [0]))


def _new(values: np.ndarray, at: int, how: Any) -> Any:
    old = values[at]
    if how == "not":
        return not old
    if how == "ulp":
        return np.nextafter(old, values.dtype.type(-np.inf)) if old else values.dtype.type(1.1e-3)
    if how == "first":
        return old * values.dtype.type(1.25) - values.dtype.type(0.25)
    if how == "next":  # an id twice at a position, or out of order
        return values[at + 1] if at + 1 < len(values) else values[at - 1]
    if how == "more":
        return old + 1
    return how
