"""Ways to damage the files of a whole run beside its shards: the teacher's lm_head, the calibration."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save

from engine.dataset.sidecars import CALIBRATION, DIGEST, LM_HEAD
from schemas.manifest import Sidecar
from tests.support.mutations import Rng, recatalogue, write_json

# ---- the teacher's head


def write_head(out: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], *, sealed: bool = True) -> None:
    """The file anew; its checksum in the manifest anew, too."""
    (out / LM_HEAD).write_bytes(save(tensors, {key: value for key, value in metadata.items() if key != DIGEST}))
    manifest = out / "_engine" / "manifest.json"
    if sealed and manifest.exists():
        record = Sidecar.of(LM_HEAD, (out / LM_HEAD).read_bytes()).model_dump()
        write_json(manifest, {**json.loads(manifest.read_text()), "head": record})
        recatalogue(out, LM_HEAD)


def read_head(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata)"""
    data = (out / LM_HEAD).read_bytes()
    return load(data), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def head_file(out: Path, rng: Rng) -> str:
    """A safetensors file that can be read and is not what docs/format.md says."""
    tensors, metadata = read_head(out)
    name = rng.choice(sorted(tensors))
    how = rng.choice(["nan", "rows", "columns", "lost", "renamed", "added", "type", "scale", "softcap"])
    if how == "nan":
        tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = float(rng.choice(["nan", "inf"]))
    elif how == "rows":
        tensors[name] = tensors[name][: rng.choice([0, 1, 500])].contiguous()
    elif how == "columns":
        tensors[name] = tensors[name][..., :-1].contiguous()
    elif how == "lost":  # without its bias it would be the head of another teacher, which only that one can tell
        del tensors[rng.choice(["lm_head", "embedding"])]
    elif how == "renamed":
        tensors[f"{name}x"] = tensors.pop(name)
    elif how == "added":
        tensors["more"] = tensors[name].clone()
    elif how == "type":
        tensors[name] = tensors[name].to(torch.float16)
    else:
        metadata[how] = rng.choice(["", "x", "nan", "inf", "-1.0"])
        if rng.random() < 0.2:
            del metadata[how]
    sealed = rng.random() < 0.8
    write_head(out, tensors, metadata, sealed=sealed)
    return f"{out / LM_HEAD}: {name} {how}{', resealed' if sealed else ''}"


def manifest_side(out: Path, rng: Rng) -> str:
    """What the manifest says of a file of the whole run, or that it says something where there is none."""
    path = out / "_engine" / "manifest.json"
    content = json.loads(path.read_text())
    key, name = rng.choice([("head", LM_HEAD), ("continuations", CALIBRATION)])
    old = content.get(key) or {"name": name, "bytes": 5, "sha256": "0" * 64}
    new = rng.choice(
        [None, {**old, "bytes": old["bytes"] + 1}, {**old, "sha256": "1" * 64}, {**old, "name": "x"}, [], 3]
    )
    write_json(path, {**content, key: new})
    return f"{path}: {key} {new}"


# ---- what the calibration sample gave


def means_file(out: Path, rng: Rng) -> str:
    """A Parquet file that can be read and is not what docs/format.md says."""
    with pq.ParquetFile(out / CALIBRATION) as file:
        table, metadata = file.read(), dict(file.metadata.metadata or {})
    metadata.pop(b"ARROW:schema", None)
    columns = {name: table.column(name).to_pylist() for name in table.schema.names}
    heads = next(name for name in columns if name.startswith("heads/"))
    row = rng.randrange(1, table.num_rows)
    how = rng.choice(["token", "ids", "rise", "nan", "sum", "special", "heads", "size", "column", "run", "left_out"])
    if how == "token":
        columns["token"][row] = rng.choice([-1, columns["token"][row - 1], 0])
    elif how == "ids":
        columns["ids"][row] = rng.choice([[-1, *columns["ids"][row][1:]], columns["ids"][row][1:]])
    elif how == "rise":
        columns["probs"][row] = [0.0, *columns["probs"][row][:-1]]
    elif how == "nan":
        name = rng.choice(["probs", heads])
        columns[name][row] = [float(rng.choice(["nan", "inf", "-1"])), *columns[name][row][1:]]
    elif how == "sum":
        columns["probs"][row] = [1.0] * len(columns["probs"][row])
    elif how == "special":
        columns["special"][row] = rng.choice([-0.5, 2.0, math.nan])
    elif how == "heads":
        columns[heads][row] = [0.5 * value for value in columns[heads][row]]
    elif how == "size":
        columns[heads][row] = columns[heads][row][:-1]
    elif how == "run":
        metadata[b"targetsmith.fingerprint"] = b"0" * 64
    elif how == "left_out":
        metadata[b"targetsmith.left_out"] = rng.choice(
            [b"", b"{}", b"[1]", b'[{"doc_row":1,"reason":"nonsense"}]', b"[["]
        )
    schema = table.schema.with_metadata(metadata)
    table = pa.Table.from_pydict(columns, schema=schema)
    if how == "column":
        table = rng.choice([table.drop_columns([heads]), table.rename_columns([f"{n}x" for n in table.schema.names])])
    pq.write_table(table, out / CALIBRATION, write_page_checksum=True)
    manifest = out / "_engine" / "manifest.json"
    sealed = manifest.exists() and rng.random() < 0.8
    if sealed:
        record = Sidecar.of(CALIBRATION, (out / CALIBRATION).read_bytes()).model_dump()
        write_json(manifest, {**json.loads(manifest.read_text()), "continuations": record})
        recatalogue(out, CALIBRATION)
    return f"{out / CALIBRATION}: {how}{', resealed' if sealed else ''}"
