"""The records beside the shards, each against the others: plan, manifest, quarantine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.corpus.scan import CorpusScan
from engine.dataset.layout import MANIFEST, PLAN, claim_name, load_json, seal_name, sealed_units
from engine.dataset.store import Store
from engine.plan.retry import retry_plan
from engine.verify.findings import Finding, short
from schemas.counts import counted
from schemas.manifest import (
    Manifest,
    Plan,
    PlanUnit,
    ProductTotal,
    Seal,
    ShardRecord,
    add_stats,
    canonical_json,
)
from schemas.plan_inputs import RETRY
from schemas.reasons import REASONS
from schemas.target import MANTISSA_BITS

_DIGEST = re.compile("[0-9a-f]{64}")
_QUARANTINE_KEYS = {"doc_id", "doc_row", "source", "place", "reason", "detail", "text_sha256"}


def plan_findings(plan: Plan) -> Iterator[Finding]:
    """The plan's units against its own account of the corpus: no document of any file is without a unit."""
    if not plan.has_corpus and plan.semantic.get(RETRY) is None:  # made of a manifest, which has neither
        return
    try:
        retried = plan.retry
        wanted = tuple(PlanUnit(**asdict(unit)) for unit in corpus_of(plan, Path()).units())
        if retried is not None:
            rows, of = retried.rows, retried.of
            if not (rows and all(type(row) is int and row >= 0 for row in rows) and rows == sorted(set(rows))):
                yield Finding(PLAN, f"semantic.retry.rows {short(rows, 60)}", "rows of the corpus, rising, each once")
                return
            if not _is_digest(of):
                yield Finding(PLAN, f"semantic.retry.of {short(of, 60)}", "the fingerprint of a run")
            wanted = retry_plan(plan, str(of), corpus_of(plan, Path()), rows).units
    except Exception as error:
        yield Finding(PLAN, f"semantic not readable: {type(error).__name__}: {short(error)}", "the corpus of a run")
        return
    if wanted != plan.units:
        found = (
            f"{counted(len(plan.units), 'unit')} with {counted(sum(unit.n_rows for unit in plan.units), 'document')}"
        )
        whose = "the documents that are retried" if retried is not None else "the corpus files"
        told = (
            f"{counted(len(wanted), 'unit')} with {counted(sum(unit.n_rows for unit in wanted), 'document')}, as "
            f"{whose} are cut"
        )
        yield Finding(PLAN, found, told)


def corpus_of(plan: Plan, base_dir: Path) -> CorpusScan:
    """The corpus as the plan has it, without reading it; its files by their labels."""
    return CorpusScan.of_plan(plan.corpus_files, base_dir)


def manifest_findings(plan: Plan, seals: Mapping[int, Seal], manifest: Manifest) -> Iterator[Finding]:
    """The manifest against plan and seals."""
    name = MANIFEST
    facts = {product: one.model_dump(exclude={"tokenizer"}) for product, one in plan.products.items()}
    stated = {product: one.model_dump(exclude={"tokenizer"}) for product, one in manifest.products.items()}
    version = plan.engine_version or manifest.engine_version
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


def sound_seals(store: Store, plan: Plan, damaged: Collection[str]) -> dict[int, Seal]:
    """Seals by unit, those left out that are damaged or whose files or quarantine are. damaged: names of files."""
    found = {}
    for unit in sorted({unit.index for unit in plan.units} & set(sealed_units(store))):
        if seal_name(unit) not in damaged and claim_name(unit) not in damaged:
            seal = load_json(store, seal_name(unit), Seal)
            if not any(file is not None and file.name in damaged for file in seal.files.values()):
                found[unit] = seal
    return found


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
                return None, [
                    Finding(name, f"in line {number}, {wrong}", "a record as docs/format.md, section 5, has it")
                ]
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
    if not (entry["text_sha256"] is None or _is_digest(entry["text_sha256"])):
        return f"text_sha256 {short(entry['text_sha256'])}"
    if canonical_json(entry).encode() + b"\n" != line:
        return "no canonical JSON"
    return None


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _first_difference(found: Any, wanted: Any) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() | wanted.keys():
        key = next((key for key in [*wanted, *found] if found.get(key) != wanted.get(key)), "keys")
        return f"{key}: {_first_difference(found.get(key), wanted.get(key))}"
    return f"{short(found, 60)}, not {short(wanted, 60)}"
