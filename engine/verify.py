"""verify: a whole output against docs/format.md, from the plan down to every row. Nothing is written.

    plan, seals, manifest ─▶ listing of data/ ─▶ per unit: quarantine, files, products beside each other ─▶ totals

A damaged file is a finding and stops nothing else: where the plan cannot be trusted, the manifest stands in for it, and the
manifest's record for a seal. Only a folder that has neither is an error.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from safetensors import safe_open

from engine.findings import Finding, Report, short
from engine.head import head_path
from engine.outfolder import claim_path, load_json, manifest_path, plan_path, seal_path, shard_name
from engine.publish import output_errors, read_published
from engine.verify_file import Contents, Expected, FileCheck, compare, same_tokens
from schemas.errors import OutputError
from schemas.manifest import (
    MAXIMUM,
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

_Model = TypeVar("_Model", bound=BaseModel)
_QUARANTINE_KEYS = {"doc_id", "doc_row", "source", "place", "reason", "detail", "text_sha256"}


def verify(out: Path, *, complete: bool = False, progress: Callable[[Report], None] | None = None) -> Report:
    """Everything that can be checked without the teacher. complete: an unfinished run is a finding.

    progress is called behind each unit. Raises OutputError when the folder is no output at all.
    """
    return _Verifier(out, complete, progress).run()


class _Verifier:
    def __init__(self, out: Path, complete: bool, progress: Callable[[Report], None] | None) -> None:
        self.out, self.complete, self.progress = out, complete, progress
        self.report = Report(str(out))

    def run(self) -> Report:
        began = time.perf_counter()
        report = self.report
        report.finished = _is_file(manifest_path(self.out))
        manifest = self._json(manifest_path(self.out), Manifest) if report.finished else None
        plan = self._plan(manifest)
        report.fingerprint, report.units = plan.fingerprint, len(plan.units)
        seals = self._seals(plan)
        records = self._records(plan, seals, manifest)
        report.sealed = len(records)
        self._check_progress(plan, records)
        self._check_listing(plan, records)
        for unit in plan.units:
            if unit.index in records:
                self._check_unit(plan, unit, records[unit.index], seals.get(unit.index))
                if self.progress is not None:
                    self.progress(report)
        if manifest is not None:
            self._check_manifest(plan, seals, manifest)
        if "hidden" in plan.products and (report.finished or _is_file(head_path(self.out))):
            self._check_head(plan)
        report.seconds = time.perf_counter() - began
        return report

    # ---- plan, seals, manifest

    def _plan(self, manifest: Manifest | None) -> Plan:
        path = plan_path(self.out)
        if not _is_file(path) and manifest is None:
            raise OutputError(
                f"{self.out}: no _engine/plan.json"
                + (", and its manifest cannot be read" if self.report.finished else ", so not an output of targetsmith")
                + "; name the `output` of a run"
            )
        plan = self._json(path, Plan)
        if plan is not None:
            if plan.recompute() != plan.fingerprint:
                found = f"content and fingerprint {short(plan.fingerprint, 13)} disagree"
                self.report.add(_relative(self.out, path), found, f"the fingerprint {plan.recompute()[:12]}…")
                plan = None
            elif wrong := _unit_gap(plan):
                self.report.add(_relative(self.out, path), wrong, "units numbered from 0, without holes")
                plan = None
        if plan is not None:
            return plan
        if manifest is None:
            raise OutputError(
                f"{path}: {self.report.findings[-1].found}; without it, and without a manifest, nothing can be checked: "
                "restore it from a copy"
            )
        self.report.notes.append("the plan is damaged: all files were checked against the manifest instead")
        return _plan_from(self.out, manifest)

    def _seals(self, plan: Plan) -> dict[int, Seal]:
        folder, seals = seal_path(self.out, 0).parent, {}
        for name in sorted(_files(folder)):
            path = folder / name
            unit = int(path.stem) if path.stem.isascii() and path.stem.isdecimal() and len(path.stem) < 10 else -1
            if path != seal_path(self.out, unit) or not 0 <= unit < len(plan.units):
                self.report.add(
                    _relative(self.out, path), "a file that is no seal of this run", "seals of its units only"
                )
                continue
            seal = self._json(path, Seal)
            if seal is None:
                continue
            wrong = [
                f"{key} {short(found, 13)}"
                for key, found, wanted in (
                    ("unit", seal.unit, unit), ("fingerprint", seal.fingerprint, plan.fingerprint)
                )
                if found != wanted
            ]  # fmt: skip
            if seal.files.keys() != plan.products.keys():
                wrong.append(f"products {', '.join(sorted(seal.files))}")
            if wrong:
                wanted = f"unit {unit}, run {plan.fingerprint[:12]}, products {', '.join(sorted(plan.products))}"
                self.report.add(_relative(self.out, path), f"a seal with {', '.join(wrong)}", wanted)
                continue
            self._check_stats(path, seal)
            seals[unit] = seal
        return seals

    def _check_stats(self, path: Path, seal: Seal) -> None:
        file, most = _relative(self.out, path), 2.0**-7 * 1.001
        for name, value in seal.stats.items():
            if not (math.isfinite(value) and (value >= -1e-3 or name.endswith("gold_nats_sum"))):
                self.report.add(file, f"stats {name} = {value}", "a finite number, not below 0")
            elif name.endswith(f"rounding_nats{MAXIMUM}") and value > most:
                self.report.add(file, f"stats {name} = {value}", f"at most {2.0**-7}")

    def _records(self, plan: Plan, seals: Mapping[int, Seal], manifest: Manifest | None) -> dict[int, ShardRecord]:
        """What is sealed, by unit; the manifest's record where the seal is lost."""
        records = {
            unit: ShardRecord(unit=unit, quarantined=seal.quarantined, files=seal.files) for unit, seal in seals.items()
        }
        for shard in manifest.shards if manifest is not None else ():
            if shard.unit in records or not 0 <= shard.unit < len(plan.units):
                continue
            if shard.files.keys() == plan.products.keys():
                records[shard.unit] = shard
        for unit, record in records.items():
            for product, file in record.files.items():
                wanted = shard_name(product, unit, len(plan.units))
                if file is not None and file.name != wanted:
                    self.report.add(
                        _relative(self.out, seal_path(self.out, unit)), f"a file named {short(file.name)}", wanted
                    )
        return dict(sorted(records.items()))

    def _check_progress(self, plan: Plan, records: Mapping[int, ShardRecord]) -> None:
        missing = [unit.index for unit in plan.units if unit.index not in records]
        if self.report.finished:
            for unit in (unit.index for unit in plan.units):
                if not _is_file(seal_path(self.out, unit)):
                    self.report.add(_relative(self.out, seal_path(self.out, unit)), "missing", "the unit's seal")
            if not _is_file(self.out / "README.md"):
                self.report.add("README.md", "missing", "the dataset card, which is written before the manifest")
        elif self.complete:
            found = f"no manifest; {len(records)} of {len(plan.units)} units are sealed"
            self.report.add("_engine/manifest.json", found, "a finished run: run `targetsmith score` again")
        else:
            first = f" (first without: {missing[0]})" if missing else ""
            self.report.notes.append(
                f"the run is not finished: {len(records)} of {len(plan.units)} units are sealed{first}, no manifest"
            )

    def _check_listing(self, plan: Plan, records: Mapping[int, ShardRecord]) -> None:
        found = _files(self.out / "data")
        sealed = {file.name for record in records.values() for file in record.files.values() if file is not None}
        waiting = {
            shard_name(product, unit.index, len(plan.units))
            for unit in plan.units
            for product in plan.products
            if unit.index not in records and not _is_file(seal_path(self.out, unit.index))
        }
        unsealed = 0
        for name in sorted(f"data/{name}" for name in found):
            if name in waiting and not self.report.finished:
                unsealed += 1
            elif name not in sealed:
                self.report.add(name, "a file that is in no seal", "only the sealed files of this run in data/")
        if unsealed:
            self.report.notes.append(f"{unsealed} files of units without a seal were not looked at")
        folder = claim_path(self.out, 0).parent
        known = {claim_path(self.out, unit.index).name for unit in plan.units}
        for name in sorted(_files(folder).keys() - known):
            self.report.add(
                _relative(self.out, folder / name), "a file of no unit", "quarantine files of this run only"
            )

    def _check_manifest(self, plan: Plan, seals: Mapping[int, Seal], manifest: Manifest) -> None:
        name = _relative(self.out, manifest_path(self.out))
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
                self.report.add(name, f"{what} {short(_first_difference(found, wanted))}", "what plan and seals have")
        for shard in manifest.shards:
            seal = seals.get(shard.unit)
            if seal is not None and (shard.quarantined, shard.files) != (seal.quarantined, seal.files):
                self.report.add(
                    name, f"another record of unit {shard.unit}", f"that of {seal_path(self.out, shard.unit).name}"
                )
        if len(seals) == len(plan.units):
            stats: dict[str, float] = {}
            for unit in sorted(seals):
                add_stats(stats, seals[unit].stats)
            same = stats.keys() == manifest.stats.keys() and all(
                math.isclose(stats[key], value, rel_tol=1e-9, abs_tol=1e-12) for key, value in manifest.stats.items()
            )
            if not same:
                self.report.add(name, f"stats {_first_difference(manifest.stats, stats)}", "the sums over all seals")

    def _check_head(self, plan: Plan) -> None:
        """Names, sizes and finite numbers: no checksum of this file is stored."""
        path, size = head_path(self.out), plan.products["hidden"].hidden_size
        name = _relative(self.out, path)
        try:
            with safe_open(path, "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
                metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
            float(metadata["scale"]), float(metadata["softcap"])
        except Exception as error:
            self.report.add(name, f"not readable: {type(error).__name__}: {short(error)}", "lm_head and embedding")
            return
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if shapes.keys() != {"lm_head", "embedding"} or any(shape[1:] != (size,) for shape in shapes.values()):
            self.report.add(name, f"tensors {shapes}", f"lm_head and embedding with {size} columns")
        elif not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            self.report.add(name, "a number that is not finite", "finite numbers")

    # ---- units

    def _check_unit(self, plan: Plan, unit: PlanUnit, record: ShardRecord, seal: Seal | None) -> None:
        quarantined = self._quarantine(unit, record)
        self.report.quarantined += record.quarantined
        seal_name = _relative(self.out, seal_path(self.out, unit.index))
        if seal is not None:
            self._check_counts(seal_name, unit, seal)
        names, contents, by_product = [], [], {}
        for product, file in record.files.items():
            if file is None:
                continue
            if file.rows + record.quarantined != unit.n_rows:
                found = f"{product}: {file.rows} rows and {record.quarantined} in quarantine"
                self.report.add(seal_name, found, f"{unit.n_rows} documents of the unit")
            expected = Expected(
                plan, unit, product, file, quarantined, record.quarantined,
                None if seal is None else seal.stats, _text_stored(plan),
            )  # fmt: skip
            checked = self._check_file(expected)
            names.append(file.name)
            contents.append(checked)
            by_product[product] = (file.name, checked)
        self.report.documents += max((file.rows for file in record.files.values() if file is not None), default=0)
        self.report.extend(compare(names, contents))
        if "hidden" in by_product and "teacher" in by_product:
            hidden, teacher = by_product["hidden"], by_product["teacher"]
            if hidden[1].complete and teacher[1].complete:
                self.report.extend(same_tokens(*hidden, *teacher))
        if (
            seal is not None
            and contents
            and contents[0].complete
            and seal.stats.get("quarantined") == record.quarantined
        ):
            size = sum(len(text.encode()) for text in contents[0].texts)
            if _text_stored(plan) and seal.stats.get("text_bytes") != size:
                self.report.add(seal_name, f"stats text_bytes = {seal.stats.get('text_bytes')}", str(size))

    def _check_counts(self, name: str, unit: PlanUnit, seal: Seal) -> None:
        some, all_of = [file is None for file in seal.files.values()], seal.quarantined == unit.n_rows
        if any(some) != all(some) or all(some) != all_of:
            found = f"{sum(some)} of {len(some)} files null, {seal.quarantined} documents in quarantine"
            self.report.add(name, found, f"all null when all {unit.n_rows} documents are in quarantine, else none")
        if seal.stats.get("documents") != unit.n_rows:
            self.report.add(name, f"stats documents = {seal.stats.get('documents')}", f"{unit.n_rows}, as in the plan")
        counted = seal.stats.get("quarantined")
        if counted is None or counted > seal.quarantined:
            self.report.add(name, f"stats quarantined = {counted}", f"at most {seal.quarantined}, as sealed")

    def _check_file(self, expected: Expected) -> Contents:
        check = FileCheck(expected)
        try:
            data = read_published(self.out / expected.name)
        except Exception as error:
            missing = not _is_file(self.out / expected.name)
            found = "missing" if missing else f"not readable: {short(error)}"
            self.report.add(expected.name, found, f"{expected.record.bytes:,} bytes, as sealed")
            return check.contents
        check.run(data)
        self.report.files += 1
        self.report.bytes += len(data)
        self.report.positions += int(check.contents.sums.get("positions", 0))
        self.report.extend(check.findings)
        return check.contents

    def _quarantine(self, unit: PlanUnit, record: ShardRecord) -> frozenset[int] | None:
        """doc_rows in quarantine; None where the file cannot be relied on."""
        path = claim_path(self.out, unit.index)
        name = _relative(self.out, path)
        if not _is_file(path):
            self.report.add(name, "missing", "the unit's quarantine file (empty when there is nothing in it)")
            return None
        rows: list[int] = []
        span = range(unit.doc_row, unit.doc_row + unit.n_rows)
        try:
            for number, line in enumerate(read_published(path).splitlines(keepends=True), 1):
                entry = json.loads(line)
                if wrong := _bad_entry(entry, line, span):
                    self.report.add(f"{name}, line {number}", wrong, "a record as docs/format.md, section 5, has it")
                    return None
                rows.append(entry["doc_row"])
        except Exception as error:
            self.report.add(name, f"not readable: {type(error).__name__}: {short(error)}", "JSON lines")
            return None
        if len(rows) != record.quarantined or rows != sorted(set(rows)):
            self.report.add(name, f"documents {rows[:10]}", f"{record.quarantined} different ones, in order, as sealed")
            return None
        return frozenset(rows)

    def _json(self, path: Path, model: type[_Model]) -> Any:
        """A JSON file of ours, None (and a finding) when it is missing, damaged or not as it was written."""
        name = _relative(self.out, path)
        try:
            loaded, data = load_json(path, model), read_published(path)
        except Exception as error:
            found = "missing" if not _is_file(path) else f"damaged: {_why(error)}"
            self.report.add(name, found, f"the {model.__name__.lower()} of a run")
            return None
        if loaded.to_bytes() != data:  # pyright: ignore[reportAttributeAccessIssue]
            self.report.add(name, "other bytes than its content gives", "canonical JSON, as it was written")
        return loaded


def _plan_from(out: Path, manifest: Manifest) -> Plan:
    """As much of a plan as the manifest has."""
    units, row = [], 0
    for number, shard in enumerate(manifest.shards):
        rows = max((file.rows for file in shard.files.values() if file is not None), default=0) + shard.quarantined
        if shard.unit != number or rows < 1:
            raise OutputError(f"{out}: neither the plan nor the manifest can be used; restore them from a copy")
        units.append(PlanUnit(index=number, file_index=0, first_row=0, n_rows=rows, doc_row=row))
        row += rows
    return Plan(fingerprint=manifest.fingerprint, semantic={}, products=manifest.products, units=tuple(units))


def _unit_gap(plan: Plan) -> str | None:
    row = 0
    for number, unit in enumerate(plan.units):
        if (unit.index, unit.doc_row) != (number, row):
            return f"unit {number} has index {unit.index}, doc_row {unit.doc_row}"
        row += unit.n_rows
    return None


def _text_stored(plan: Plan) -> bool | None:
    settings = plan.semantic.get("settings")
    targets = settings.get("targets") if isinstance(settings, dict) else None
    stored = targets.get("store_text") if isinstance(targets, dict) else None
    return stored if isinstance(stored, bool) else None


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
    if isinstance(found, dict) and isinstance(wanted, dict):
        key = next(key for key in [*wanted, *found] if found.get(key) != wanted.get(key))
        return f"{key}: {_first_difference(found.get(key), wanted.get(key))}"
    return f"{short(found, 60)}, not {short(wanted, 60)}"


def _why(error: Exception) -> str:
    """The reason without path and advice, which stand in the finding already."""
    cause = error.__cause__
    if cause is None:
        return short(error)
    lines = str(cause).splitlines()
    return short(" ".join(line.strip() for line in lines[:3]) if len(lines) > 1 else cause)


def _relative(out: Path, path: Path) -> str:
    return path.relative_to(out).as_posix()


def _is_file(path: Path) -> bool:
    with output_errors(path):
        return path.is_file()


def _files(folder: Path) -> dict[str, int]:
    """Files below a folder: path in it -> size."""
    with output_errors(folder):
        return {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }


__all__ = ["Finding", "Report", "verify"]
