"""verify: what lies beside the shards, each against the others: manifest, quarantine, the teacher's head."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from safetensors.torch import load

from engine.findings import Finding, short
from engine.head import HEAD, head_record
from engine.outfolder import MANIFEST, claim_name, seal_name
from engine.store import Store
from schemas.manifest import (
    REASONS,
    Manifest,
    Plan,
    PlanUnit,
    ProductTotal,
    Seal,
    ShardRecord,
    add_stats,
    canonical_json,
)
from schemas.target import MANTISSA_BITS

_QUARANTINE_KEYS = {"doc_id", "doc_row", "source", "place", "reason", "detail", "text_sha256"}


def manifest_findings(plan: Plan, seals: Mapping[int, Seal], manifest: Manifest) -> Iterator[Finding]:
    """The manifest against plan and seals."""
    name = MANIFEST
    facts = {product: one.model_dump(exclude={"tokenizer"}) for product, one in plan.products.items()}
    stated = {product: one.model_dump(exclude={"tokenizer"}) for product, one in manifest.products.items()}
    version = plan.semantic.get("engine_version", manifest.engine_version)
    documents = sum(unit.n_rows for unit in plan.units)
    totals = {product: _total(product, manifest.shards) for product in plan.products}
    listed = [shard.unit for shard in manifest.shards]
    for what, found, wanted in (
        ("fingerprint", manifest.fingerprint, plan.fingerprint),
        ("engine_version", manifest.engine_version, version),
        ("mantissa_bits", manifest.mantissa_bits, MANTISSA_BITS),
        ("products", stated, facts),
        ("documents", manifest.documents, documents),
        ("quarantined", manifest.quarantined, sum(shard.quarantined for shard in manifest.shards)),
        ("totals", {key: value.model_dump() for key, value in manifest.totals.items()}, totals),
        ("units of shards", listed, [unit.index for unit in plan.units]),
    ):
        if found != wanted:
            yield Finding(name, f"{what} {short(_first_difference(found, wanted))}", "what plan and seals have")
    for shard in manifest.shards:
        seal = seals.get(shard.unit)
        if seal is not None and (shard.quarantined, shard.files) != (seal.quarantined, seal.files):
            yield Finding(name, f"another record of unit {shard.unit}", f"that of {seal_name(shard.unit)}")
    if len(seals) == len(plan.units):
        stats: dict[str, float] = {}
        for unit in sorted(seals):
            add_stats(stats, seals[unit].stats)
        same = stats.keys() == manifest.stats.keys() and all(
            math.isclose(stats[key], value, rel_tol=1e-9, abs_tol=1e-12) for key, value in manifest.stats.items()
        )
        if not same:
            yield Finding(name, f"stats {_first_difference(manifest.stats, stats)}", "the sums over all seals")


def head_findings(store: Store, plan: Plan, manifest: Manifest | None) -> Iterator[Finding]:
    """The file of lm_head and embedding: checksum, names, sizes, finite numbers."""
    size = plan.products["hidden"].hidden_size
    try:
        data = store.read(HEAD)
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        _ = float(metadata["scale"]) + float(metadata["softcap"])
    except Exception as error:
        yield Finding(HEAD, f"not readable: {type(error).__name__}: {short(error)}", "lm_head and embedding")
        return
    if manifest is not None and head_record(data) != manifest.head:
        yield Finding(
            HEAD, f"sha256 {hashlib.sha256(data).hexdigest()[:12]}…, {len(data):,} bytes", "those of the manifest"
        )
    bias = tensors.pop("bias", None)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if shapes.keys() != {"lm_head", "embedding"} or any(shape[1:] != (size,) for shape in shapes.values()):
        yield Finding(HEAD, f"tensors {shapes}", f"lm_head and embedding with {size} columns")
        return
    if bias is not None and bias.shape != tensors["lm_head"].shape[:1]:
        yield Finding(HEAD, f"a bias of shape {tuple(bias.shape)}", f"({tensors['lm_head'].shape[0]},)")
    if not all(bool(tensor.isfinite().all()) for tensor in (*tensors.values(), *([] if bias is None else [bias]))):
        yield Finding(HEAD, "a number that is not finite", "finite numbers")


def quarantine_of(store: Store, unit: PlanUnit, record: ShardRecord) -> tuple[frozenset[int] | None, list[Finding]]:
    """doc_rows in quarantine; None where the file cannot be relied on."""
    name = claim_name(unit.index)
    if not store.exists(name):
        return None, [Finding(name, "missing", "the unit's quarantine file (empty when there is nothing in it)")]
    rows: list[int] = []
    span = range(unit.doc_row, unit.doc_row + unit.n_rows)
    try:
        for number, line in enumerate(store.read(name).splitlines(keepends=True), 1):
            entry = json.loads(line)
            if wrong := _bad_entry(entry, line, span):
                return None, [Finding(f"{name}, line {number}", wrong, "a record as docs/format.md, section 5, has it")]
            rows.append(entry["doc_row"])
    except Exception as error:
        return None, [Finding(name, f"not readable: {type(error).__name__}: {short(error)}", "JSON lines")]
    if len(rows) != record.quarantined or rows != sorted(set(rows)):
        return None, [
            Finding(name, f"documents {rows[:10]}", f"{record.quarantined} different ones, in order, as sealed")
        ]
    return frozenset(rows), []


def _total(product: str, shards: tuple[ShardRecord, ...]) -> dict[str, int]:
    files = [file for shard in shards if (file := shard.files.get(product)) is not None]
    total = ProductTotal(
        files=len(files),
        rows=sum(file.rows for file in files),
        positions=sum(file.positions for file in files),
        bytes=sum(file.bytes for file in files),
    )
    return total.model_dump()


def _bad_entry(entry: Any, line: bytes, span: range) -> str | None:
    if not isinstance(entry, dict) or entry.keys() != _QUARANTINE_KEYS:
        return "another kind of record"
    if not isinstance(entry["doc_row"], int) or entry["doc_row"] not in span:
        return f"doc_row {short(entry['doc_row'])}, not of this unit ({span.start} to {span.stop - 1})"
    if entry["reason"] not in list(REASONS):
        return f"reason {short(entry['reason'])}"
    if not all(isinstance(entry[key], str) for key in ("doc_id", "source", "place", "detail")):
        return "a value that is no text"
    if canonical_json(entry).encode() + b"\n" != line:
        return "no canonical JSON"
    return None


def _first_difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() | wanted.keys():
        key = next((key for key in [*wanted, *found] if found.get(key) != wanted.get(key)), "keys")
        return f"{key}: {_first_difference(found.get(key), wanted.get(key))}"
    return f"{short(found, 60)}, not {short(wanted, 60)}"
