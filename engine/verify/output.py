"""A whole output against docs/format.md, from the plan down to every row: findings come out, nothing is written.

    plan, seals, manifest ─▶ listing of data/ ─▶ per unit: quarantine, files, products beside each other ─▶ totals

A damaged file is a finding and stops nothing else: where the plan cannot be trusted, the manifest stands in for it, and the
manifest's record for a seal. Only a folder that has neither is an error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from engine.dataset.layout import (
    CARD,
    CLAIMS,
    MANIFEST,
    PLAN,
    SEALS,
    claim_name,
    load_json,
    no_output,
    seal_name,
    shard_name,
)
from engine.dataset.store import Out, Store, open_store
from engine.verify.catalogue import croissant_findings
from engine.verify.findings import Report, short
from engine.verify.records import manifest_findings, plan_findings, quarantine_of
from engine.verify.shard_file import ExpectedFile, FileCheck, FileContents, compare, same_tokens
from engine.verify.sidecars import sidecar_findings
from engine.verify.tokens import token_findings
from schemas.counts import counted
from schemas.errors import OutputError
from schemas.manifest import MAXIMUM, Manifest, Plan, PlanUnit, Seal, ShardRecord
from schemas.products import HIDDEN, TEACHER

_Model = TypeVar("_Model", bound=BaseModel)


def verify(out: Out, *, complete: bool = False, progress: Callable[[Report], None] | None = None) -> Report:
    """Everything that can be checked without the teacher. complete: an unfinished run is a finding.

    progress is called behind each unit. Raises OutputError when the folder is no output at all.
    """
    return _Verifier(open_store(out), complete, progress).run()


class _Verifier:
    def __init__(self, store: Store, complete: bool, progress: Callable[[Report], None] | None) -> None:
        self.store, self.complete, self.progress = store, complete, progress
        self.report = Report(str(store))

    def run(self) -> Report:
        began = time.perf_counter()
        report = self.report
        report.finished = self.store.exists(MANIFEST)
        manifest = self._json(MANIFEST, Manifest) if report.finished else None
        plan = self._plan(manifest)
        report.fingerprint, report.units = plan.fingerprint, len(plan.units)
        report.extend(plan_findings(plan))
        self.sealed_names = self._listed_or_there(plan)
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
            self.report.extend(manifest_findings(plan, seals, manifest))
            self.report.extend(croissant_findings(self.store, manifest))
        self.report.extend(sidecar_findings(self.store, plan, manifest, seals, report.notes))
        self.report.extend(token_findings(self.store, plan, manifest))
        report.seconds = time.perf_counter() - began
        return report

    # ---- plan, seals, manifest

    def _plan(self, manifest: Manifest | None) -> Plan:
        if not self.store.exists(PLAN) and manifest is None:
            if self.report.finished:
                raise OutputError(
                    f"{self.store}: no {PLAN}, and its manifest cannot be read; name the `output` of a run"
                )
            raise no_output(self.store)
        plan = self._json(PLAN, Plan)
        if plan is not None:
            if plan.recompute() != plan.fingerprint:
                found = f"content with the fingerprint {plan.recompute()[:12]}…"
                self.report.add(PLAN, found, f"{short(plan.fingerprint, 13)}, as it says itself")
                plan = None
            elif wrong := _unit_gap(plan):
                self.report.add(PLAN, wrong, "units numbered from 0, without holes")
                plan = None
        if plan is not None:
            return plan
        if manifest is None:
            raise OutputError(
                f"{self.store.place(PLAN)}: {self.report.findings[-1].found}; without it, and without a manifest, nothing can "
                "be checked: restore it from a copy"
            )
        self.report.notes.append("the plan is damaged: all files were checked against the manifest instead")
        return _plan_from(self.store, manifest)

    def _seals(self, plan: Plan) -> dict[int, Seal]:
        seals = {}
        known = {seal_name(unit.index): unit.index for unit in plan.units}
        for name in sorted(self.sealed_names):
            if name not in known:
                self.report.add(name, "a file that is no seal of this run", "seals of its units only")
                continue
            unit = known[name]
            seal = self._json(name, Seal)
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
                self.report.add(name, f"a seal with {', '.join(wrong)}", wanted)
                continue
            self._check_stats(name, seal)
            seals[unit] = seal
        return seals

    def _listed_or_there(self, plan: Plan) -> set[str]:
        """Names of seals. A listing may be behind: what it lacks is asked for."""
        listed = {name for name, _ in self.store.files(SEALS)}
        lacking = [name for unit in plan.units if (name := seal_name(unit.index)) not in listed]
        there = self.store.map(self.store.exists, lacking)
        return listed | {name for name, found in zip(lacking, there, strict=True) if found}

    def _check_stats(self, file: str, seal: Seal) -> None:
        most = 2.0**-7 * 1.001
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
                    self.report.add(seal_name(unit), f"a file named {short(file.name)}", wanted)
        return dict(sorted(records.items()))

    def _check_progress(self, plan: Plan, records: Mapping[int, ShardRecord]) -> None:
        missing = [unit.index for unit in plan.units if unit.index not in records]
        if self.report.finished:
            for name in (seal_name(unit.index) for unit in plan.units):
                if name not in self.sealed_names:
                    self.report.add(name, "missing", "the unit's seal")
            if not self.store.exists(CARD):
                self.report.add(CARD, "missing", "the dataset card, which is written before the manifest")
        elif self.complete:
            found = f"no manifest; {len(records)} of {counted(len(plan.units), 'unit')} sealed"
            self.report.add(MANIFEST, found, f"a finished run: {plan.again}")
        else:
            first = f" (first without: {missing[0]})" if missing else ""
            self.report.notes.append(
                f"the run is not finished: {len(records)} of {counted(len(plan.units), 'unit')} sealed{first}, no manifest"
            )

    def _check_listing(self, plan: Plan, records: Mapping[int, ShardRecord]) -> None:
        found = sorted(name for name, _ in self.store.files("data"))
        sealed = {file.name for record in records.values() for file in record.files.values() if file is not None}
        waiting = {
            shard_name(product, unit.index, len(plan.units))
            for unit in plan.units
            for product in plan.products
            if seal_name(unit.index) not in self.sealed_names  # it may have got one since, beside a run
        }
        unsealed = 0
        for name in found:
            if name in waiting and not self.report.finished:
                unsealed += 1
            elif name not in sealed:
                self.report.add(name, "a file that is in no seal", "only the sealed files of this run in data/")
        if unsealed:
            self.report.notes.append(f"not looked at: {counted(unsealed, 'file')} of units without a seal")
        known = {claim_name(unit.index) for unit in plan.units}
        for name in sorted({name for name, _ in self.store.files(CLAIMS)} - known):
            self.report.add(name, "a file of no unit", "quarantine files of this run only")

    # ---- units

    def _check_unit(self, plan: Plan, unit: PlanUnit, record: ShardRecord, seal: Seal | None) -> None:
        quarantined, wrong = quarantine_of(self.store, unit, record)
        self.report.extend(wrong)
        self.report.quarantined += record.quarantined
        sealed_in = seal_name(unit.index)
        if seal is not None:
            self._check_counts(sealed_in, unit, seal)
        names, contents, by_product = [], [], {}
        for product, file in record.files.items():
            if file is None:
                continue
            if file.rows + record.quarantined != unit.n_rows:
                found = f"{product}: {file.rows} rows and {record.quarantined} in quarantine"
                self.report.add(sealed_in, found, f"{counted(unit.n_rows, 'document')} of the unit")
            expected = ExpectedFile(
                plan, unit, product, file, quarantined, record.quarantined,
                None if seal is None else seal.stats, plan.stores_text, None if seal is None else seal.continuations,
            )  # fmt: skip
            checked = self._check_file(expected)
            names.append(file.name)
            contents.append(checked)
            by_product[product] = (file.name, checked)
        self.report.documents += max((file.rows for file in record.files.values() if file is not None), default=0)
        self.report.extend(compare(names, contents))
        if HIDDEN in by_product and TEACHER in by_product:
            hidden, teacher = by_product[HIDDEN], by_product[TEACHER]
            if hidden[1].complete and teacher[1].complete:
                self.report.extend(same_tokens(*hidden, *teacher))
        if (
            seal is not None
            and contents
            and contents[0].complete
            and seal.stats.get("quarantined") == record.quarantined
        ):
            size = sum(len(text.encode()) for text in contents[0].texts)
            if plan.stores_text and seal.stats.get("text_bytes") != size:
                self.report.add(sealed_in, f"stats text_bytes = {seal.stats.get('text_bytes')}", str(size))

    def _check_counts(self, name: str, unit: PlanUnit, seal: Seal) -> None:
        some, all_of = [file is None for file in seal.files.values()], seal.quarantined == unit.n_rows
        if any(some) != all(some) or all(some) != all_of:
            found = f"{sum(some)} of {counted(len(some), 'file')} null, {counted(seal.quarantined, 'document')} in quarantine"
            self.report.add(name, found, f"all null with {counted(unit.n_rows, 'document')} in quarantine, else none")
        if seal.stats.get("documents") != unit.n_rows:
            self.report.add(name, f"stats documents = {seal.stats.get('documents')}", f"{unit.n_rows}, as in the plan")
        counts = {"teacher_tokens", "teacher_evaluations", "text_bytes"}
        counts |= {f"{product}.rounding_nats{MAXIMUM}" for product in seal.files}
        if not all_of and (lost := sorted(counts - seal.stats.keys())):
            self.report.add(
                name, f"no {', '.join(lost)} in the stats", "all counts that docs/format.md, section 5, has"
            )
        told = seal.stats.get("quarantined")
        if told is None or told > seal.quarantined:
            self.report.add(name, f"stats quarantined = {told}", f"at most {seal.quarantined}, as sealed")

    def _check_file(self, expected: ExpectedFile) -> FileContents:
        check = FileCheck(expected)
        try:
            data = self.store.read(expected.name)
        except Exception as error:
            missing = not self.store.exists(expected.name)
            found = "missing" if missing else f"not readable: {short(error)}"
            self.report.add(expected.name, found, f"{expected.record.bytes:,} bytes, as sealed")
            return check.contents
        check.run(data)
        self.report.files += 1
        self.report.bytes += len(data)
        self.report.positions += int(check.contents.sums.get("positions", 0))
        self.report.extend(check.findings)
        return check.contents

    def _json(self, name: str, model: type[_Model]) -> Any:
        """A JSON file of ours, None (and a finding) when it is missing, damaged or not as it was written."""
        try:
            loaded, data = load_json(self.store, name, model), self.store.read(name)
        except Exception as error:
            found = "missing" if not self.store.exists(name) else f"damaged: {_why(error)}"
            self.report.add(name, found, f"the {model.__name__.lower()} of a run")
            return None
        if loaded.to_bytes() != data:  # pyright: ignore[reportAttributeAccessIssue]
            self.report.add(name, "other bytes than its content gives", "canonical JSON, as it was written")
        return loaded


def _plan_from(store: Store, manifest: Manifest) -> Plan:
    """As much of a plan as the manifest has."""
    units, row = [], 0
    for number, shard in enumerate(manifest.shards):
        rows = max((file.rows for file in shard.files.values() if file is not None), default=0) + shard.quarantined
        if shard.unit != number or rows < 1:
            raise OutputError(f"{store}: neither the plan nor the manifest can be used; restore them from a copy")
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


def _why(error: Exception) -> str:
    """The reason without path and advice, which stand in the finding already."""
    cause = error.__cause__
    if cause is None:
        return short(error)
    lines = str(cause).splitlines()
    return short(" ".join(line.strip() for line in lines[:3]) if len(lines) > 1 else cause)
