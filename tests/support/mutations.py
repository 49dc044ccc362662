"""Ways to damage an output, for tests of verify and the reader. Each changes a folder in place and says what it did.

`reseal` makes the damage look intended: size, sha256, rows and positions of a file are written anew into its seal, into the
manifest and into croissant.json, so that only what looks deeper can find it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.dataset.layout import CROISSANT, load_plan, load_seals
from engine.dataset.parquet import flat
from engine.verify.rows import sums_of
from schemas.manifest import add_stats, canonical_json

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


def write_json(path: Path, content: Any) -> None:
    """As the engine writes it."""
    path.write_text(canonical_json(content) + "\n")


def recatalogue(out: Path, name: str) -> None:
    """Write size and sha256 of a file anew into croissant.json, where there is one."""
    catalogue, data = out / CROISSANT, (out / name).read_bytes()
    if catalogue.exists():
        content = json.loads(catalogue.read_text())
        for file in content["distribution"]:
            if file.get("contentUrl") == name:
                file |= {"contentSize": f"{max(1, len(data))} B", "sha256": hashlib.sha256(data).hexdigest()}
        write_json(catalogue, content)


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
    seal, manifest = out / "_engine" / "shards" / f"{unit:05d}.json", out / "_engine" / "manifest.json"
    if seal.exists():
        content = json.loads(seal.read_text())
        content["files"][product].update(new)
        write_json(seal, content)
    if manifest.exists():
        content = json.loads(manifest.read_text())
        next(shard for shard in content["shards"] if shard["unit"] == unit)["files"][product].update(new)
        records = [shard["files"][product] for shard in content["shards"] if shard["files"][product]]
        sums = {key: sum(record[key] for record in records) for key in ("rows", "positions", "bytes")}
        content["totals"][product] = {"files": len(records), **sums}
        write_json(manifest, content)
    recatalogue(out, path.relative_to(out).as_posix())


def recount(out: Path) -> None:
    """All statistics that hang on stored rows anew, in seals and manifest, so that sums do not betray what was changed."""
    plan, total = load_plan(out), {}
    for path in parquet_files(out):
        product, unit = place_of(out, path)
        seal = out / "_engine" / "shards" / f"{unit:05d}.json"
        content = json.loads(seal.read_text())
        sums = sums_of(pq.read_table(path), plan.products[product])
        content["stats"] |= {f"{product}.{name}": float(value) for name, value in sums.items()}
        write_json(seal, content)
    for seal in load_seals(out):
        add_stats(total, seal.stats)
    manifest = out / "_engine" / "manifest.json"
    write_json(manifest, {**json.loads(manifest.read_text()), "stats": total})


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
        return f"{path}: a byte in an empty file"
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
        resealed = path in parquet_files(out) and rng.random() < 0.7
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


# ---- files that nobody asked for

_ODD_NAMES = (
    "٣.json", "1.json", "-1.json", ".json", "7777777.json", "00001.JSON", "00001.json.bak", "9" * 200 + ".json",
    "two\nlines.json", "\x1b[31m.json", os.fsdecode(b"\xff\xfe.json"), "00009.json/inner", "٣.jsonl", "1.jsonl",
    "train-00001-of-0000٣.parquet", "train-1-of-3.parquet", ".train-00000-of-00003.parquet", "a b?*[.parquet",
)  # fmt: skip


def stray(out: Path, rng: Rng) -> str:
    """A file of an odd name beside ours: empty, a copy, or a link to nothing."""
    folders = sorted({path.parent for path in all_files(out)} | {out / "data", out / "_engine" / "tmp"})
    path = rng.choice([*folders, out / "_engine" / "shards"]) / rng.choice(_ODD_NAMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    how = rng.choice(["empty", "copy", "link"])
    if how == "empty":
        path.write_bytes(b"")
    elif how == "copy":
        shutil.copy(rng.choice(json_files(out)), path)
    else:
        path.symlink_to("nowhere")
    return f"{path.parent.relative_to(out)} / {path.name!a}: stray, {how}"
