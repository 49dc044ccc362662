"""Ways to damage an output, for tests of verify and the reader. Each changes a folder in place and says what it did.

`reseal` makes the damage look intended: size, sha256, rows and positions of a file are written anew into its seal and into
the manifest, so that only what looks deeper can find it.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.rows import _WRITER, encodings, flat, lengths_of, row_groups
from schemas.manifest import canonical_json

Rng = random.Random


def parquet_files(out: Path) -> list[Path]:
    return sorted((out / "data").rglob("*.parquet"))


def json_files(out: Path) -> list[Path]:
    engine = out / "_engine"
    return sorted([*engine.glob("*.json"), *engine.glob("shards/*.json")])


def all_files(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.is_file())


def place_of(out: Path, path: Path) -> tuple[str, int]:
    """(product, unit) of a Parquet file."""
    return path.parent.relative_to(out / "data").as_posix(), int(path.name.split("-")[1])


def reseal(out: Path, path: Path) -> None:
    """Write the record of a file anew; what cannot be read of it stays as it was."""
    product, unit = place_of(out, path)
    data = path.read_bytes()
    new: dict[str, Any] = {"bytes": max(1, len(data)), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            new["rows"] = max(1, file.metadata.num_rows)
            new["positions"] = max(1, len(flat(file.read(columns=["token_ids"]), "token_ids")))
    except Exception:  # a broken file: whatever Arrow says of it
        pass
    seal = out / "_engine" / "shards" / f"{unit:05d}.json"
    content = json.loads(seal.read_text())
    content["files"][product].update(new)
    seal.write_text(canonical_json(content) + "\n")
    manifest = out / "_engine" / "manifest.json"
    content = json.loads(manifest.read_text())
    next(shard for shard in content["shards"] if shard["unit"] == unit)["files"][product].update(new)
    records = [shard["files"][product] for shard in content["shards"] if shard["files"][product]]
    content["totals"][product] = {
        "files": len(records),
        **{k: sum(r[k] for r in records) for k in ("rows", "positions", "bytes")},
    }
    manifest.write_text(canonical_json(content) + "\n")


# ---- bytes


def flip(out: Path, rng: Rng) -> str:
    path = rng.choice(all_files(out))
    return _flip(path, rng)


def flip_resealed(out: Path, rng: Rng) -> str:
    path = rng.choice(parquet_files(out))
    told = _flip(path, rng)
    reseal(out, path)
    return f"{told}, resealed"


def flip_footer_resealed(out: Path, rng: Rng) -> str:
    """In the last part of the file: footer, page index, statistics; no checksum covers them."""
    path = rng.choice(parquet_files(out))
    told = _flip(path, rng, footer=True)
    reseal(out, path)
    return f"{told}, resealed"


def _flip(path: Path, rng: Rng, footer: bool = False) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        path.write_bytes(b"x")
        return f"{path.name}: a byte in an empty file"
    begin = max(0, len(data) - 8 - int.from_bytes(data[-8:-4], "little") - 400) if footer else 0
    at, bit = rng.randrange(begin, len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))
    return f"{path}: bit {bit} of byte {at}"


def truncate(out: Path, rng: Rng) -> str:
    path = rng.choice([file for file in all_files(out) if file.stat().st_size])
    keep = rng.choice([0, rng.randrange(path.stat().st_size), path.stat().st_size - 1])
    path.write_bytes(path.read_bytes()[:keep])
    return f"{path}: truncated to {keep}"


def truncate_resealed(out: Path, rng: Rng) -> str:
    path = rng.choice(parquet_files(out))
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    reseal(out, path)
    return f"{path}: truncated, resealed"


# ---- files


def delete(out: Path, rng: Rng) -> str:
    path = rng.choice(all_files(out))
    path.unlink()
    return f"{path}: deleted"


def duplicate(out: Path, rng: Rng) -> str:
    path = rng.choice(all_files(out))
    new = path.with_name(
        rng.choice([f"copy-{path.name}", path.name.replace("0000", "0001"), f"{path.stem}.bak", "notes"])
    )
    shutil.copy(path, new) if new != path else new.with_name("again.parquet").write_bytes(b"")
    return f"{path}: copied to {new.name}"


def rename(out: Path, rng: Rng) -> str:
    path = rng.choice(all_files(out))
    path.rename(path.with_name(f"x{path.name}"))
    return f"{path}: renamed"


def swap(out: Path, rng: Rng) -> str:
    """Two Parquet files, or two seals, or two quarantine files change places; with or without new seals."""
    kinds = [parquet_files(out), sorted(out.glob("_engine/shards/*")), sorted(out.glob("_engine/quarantine/*"))]
    files = rng.choice([kinds[0], *kinds])
    a, b = rng.sample(files, 2)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    resealed = files is kinds[0] and rng.random() < 0.7
    if resealed:
        reseal(out, a)
        reseal(out, b)
    return f"{a} and {b}: swapped{', resealed' if resealed else ''}"


def foreign(other: Path) -> Callable[[Path, Rng], str]:
    """A file of another run under the name of one of ours."""

    def put(out: Path, rng: Rng) -> str:
        path = rng.choice([file for file in all_files(out) if (other / file.relative_to(out)).is_file()])
        shutil.copy(other / path.relative_to(out), path)
        resealed = path.suffix == ".parquet" and rng.random() < 0.7
        if resealed:
            reseal(out, path)
        return f"{path}: of another run{', resealed' if resealed else ''}"

    return put


# ---- JSON


def edit_json(out: Path, rng: Rng) -> str:
    """A value or key of a JSON file; sometimes the same in seal and manifest, written as we write it or not."""
    path = rng.choice(json_files(out))
    content = json.loads(path.read_text())
    leaves = list(_leaves(content, ()))
    keys = rng.choice(leaves)
    parent = content
    for key in keys[:-1]:
        parent = parent[key]
    told = _change(parent, keys[-1], rng)
    path.write_text(canonical_json(content) + "\n" if rng.random() < 0.8 else json.dumps(content, indent=1))
    return f"{path}: {'.'.join(map(str, keys))} {told}"


def _leaves(value: Any, keys: tuple[Any, ...]):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*keys, key)
        yield from _leaves(inner, (*keys, key))


def _change(parent: Any, key: Any, rng: Rng) -> str:
    old = parent[key]
    how = rng.randrange(4)
    if how == 0:
        del parent[key]
        return "removed"
    if how == 1 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
        return "renamed"
    if isinstance(old, bool):
        new: Any = not old
    elif isinstance(old, (int, float)):
        new = rng.choice([old + 1, old - 1, -old - 1, old * 2 + 1, str(old), None, [old], 10**30])
    elif isinstance(old, str):
        new = rng.choice([old + "0", old[::-1] + "z", "", None, 3, {"a": old}])
    else:
        new = rng.choice([None, [], {}, "x", 0]) if old not in (None, [], {}) else 7
    parent[key] = new
    return f"{str(old)[:40]} -> {str(new)[:40]}"


def edit_quarantine(out: Path, rng: Rng) -> str:
    """What the quarantine says about which documents it has."""
    path = rng.choice([file for file in sorted(out.glob("_engine/quarantine/*"))])
    lines = path.read_text().splitlines(keepends=True)
    how = rng.choice(["again", "lost", "row", "garbage"]) if lines else "garbage"
    if how == "again":
        lines.append(lines[0])
    elif how == "lost":
        lines.pop()
    elif how == "row":
        lines[0] = canonical_json({**json.loads(lines[0]), "doc_row": rng.choice([0, 99, "1", None])}) + "\n"
    else:
        lines.append(rng.choice(["{}\n", "[1]\n", "\n", "nonsense\n", '{"doc_row": 1}\n', "\x00"]))
    path.write_text("".join(lines))
    return f"{path}: {how}"


# ---- valid Parquet files with other rows


def rewrite(path: Path, table: pa.Table) -> None:
    """The table under the file's own footer, rows and positions made true, as our writer writes it."""
    footer = {k.decode(): v.decode() for k, v in (pq.read_metadata(path).metadata or {}).items()}
    footer = {key: value for key, value in footer.items() if key.startswith("targetsmith.")}
    footer["targetsmith.rows"] = str(table.num_rows)
    footer["targetsmith.positions"] = str(int(lengths_of(table).sum()))
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
    unit = rng.choice(sorted(units))
    files = [path for path in parquet_files(out) if place_of(out, path)[1] == unit]
    files = files if rng.random() < 0.5 else [rng.choice(files)]
    count = pq.read_metadata(files[0]).num_rows
    kept = list(range(count))
    how = rng.choice(["removed", "doubled", "reordered"])
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
    elif how == "type" and pa.types.is_list(column.type):
        inner = pa.string() if pa.types.is_boolean(column.type.value_type) else pa.float64()
        table = table.set_column(at, column.name, table.column(at).cast(pa.list_(inner)))
    else:
        table = table.set_column(at, pa.field(column.name, column.type, nullable=True), table.column(at))
    footer = {k: v for k, v in (pq.read_metadata(path).metadata or {}).items() if k.startswith(b"targetsmith")}
    pq.write_table(table.replace_schema_metadata(footer), path, compression="zstd", write_page_checksum=True)
    reseal(out, path)
    return f"{path}: {column.name} {how}"


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
