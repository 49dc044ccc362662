"""The two files of a whole run beside its shards, checked: the teacher's lm_head, and what the calibration sample gave."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from safetensors.torch import load

from engine.beam.calibration import KEPT
from engine.beam.calibration_file import parse_calibration
from engine.dataset.layout import MANIFEST, seal_name
from engine.dataset.parquet import flat, lengths_of
from engine.dataset.sidecars import CALIBRATION, LM_HEAD, calibrated_products, has_calibration, lm_head_fault
from engine.dataset.store import Store
from engine.verify.findings import Finding, short
from engine.verify.shard_file import nulls_of
from schemas.counts import counted
from schemas.errors import OutputError
from schemas.manifest import Manifest, Plan, Seal, Sidecar
from schemas.products import HIDDEN, TEACHER
from schemas.reasons import REASONS

_SLACK = 1e-6  # of sums of probabilities


def sidecar_findings(
    store: Store, plan: Plan, manifest: Manifest | None, seals: Mapping[int, Seal], notes: list[str]
) -> Iterator[Finding]:
    """Both files: there, with the checksum that manifest and seals have, and with what docs/format.md says. Adds notes."""
    lm_head, calibration = (manifest.head, manifest.continuations) if manifest else (None, None)
    calibrated = None if plan.calibration_documents is None else has_calibration(plan)
    sidecars = (
        (LM_HEAD, HIDDEN in plan.products, lm_head, _lm_head),
        (CALIBRATION, calibrated, calibration, _calibration),
    )
    for name, wanted, record, check in sidecars:
        if wanted is None:  # the plan is lost, and only the manifest knows
            wanted = record is not None
        if not wanted:
            if record is not None:
                yield Finding(MANIFEST, f"a record of {name}", "none, this run has no such file")
            continue
        try:
            data = store.read(name)
        except OutputError as error:
            if store.exists(name):
                yield Finding(name, f"not readable: {short(str(error))}", "a file of the run")
            elif name == CALIBRATION and record is None and not any(seal.continuations for seal in seals.values()):
                notes.append(f"there is no {CALIBRATION}: the output was made before 0.6.0, or no unit is scored yet")
            elif manifest is not None or seals:
                yield Finding(name, "missing", "a file that all actors write or read when they start")
            continue
        own, usual = Sidecar.of(name, data), _usual(seals) if name == CALIBRATION else None
        if record is not None and own != record:
            lies, listed = (f"{one.name}, sha256 {short(one.sha256, 13)}, {one.bytes:,} bytes" for one in (own, record))
            if usual == own.sha256:  # two against one
                yield Finding(MANIFEST, f"{short(listed, 120)}", f"{lies}, as the file and the seals say")
            else:
                yield Finding(name, lies, f"{short(listed, 120)}, as the manifest says")
        elif usual is not None and usual != own.sha256:
            yield Finding(name, f"sha256 {own.sha256[:12]}…", f"{short(usual, 13)}, as the seals say")
        if manifest is not None and record is None:
            notes.append(f"the manifest has no checksum of {name}, so only its form was checked")
        yield from check(data, plan, notes)
        if name == CALIBRATION:
            yield from _calibrated_otherwise(seals, usual or own.sha256)


def _usual(seals: Mapping[int, Seal]) -> str | None:
    """The sha256 that most seals have."""
    found = Counter(seal.continuations for seal in seals.values() if seal.continuations is not None)
    return found.most_common(1)[0][0] if found else None


def _lm_head(data: bytes, plan: Plan, notes: list[str]) -> Iterator[Finding]:
    """The file of lm_head and embedding: names, sizes, finite numbers."""
    facts = plan.products[HIDDEN]
    try:
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        scale, softcap = float(metadata["scale"]), float(metadata["softcap"])
    except Exception as error:
        yield Finding(LM_HEAD, f"not readable: {type(error).__name__}: {short(error)}", "lm_head and embedding")
        return
    if fault := lm_head_fault(data):
        yield Finding(LM_HEAD, fault, "the numbers that were written")
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(softcap) and softcap >= 0):
        yield Finding(
            LM_HEAD, f"scale {scale}, softcap {softcap}", "finite numbers, scale above 0 and softcap not below"
        )
    if lost := sorted({"lm_head", "embedding"} - tensors.keys()):
        yield Finding(LM_HEAD, f"no {' and no '.join(lost)}", "lm_head and embedding")
    rows = len(tensors["lm_head"]) if "lm_head" in tensors and tensors["lm_head"].dim() else 0
    for name, tensor in sorted(tensors.items()):
        found = f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        if name in ("lm_head", "embedding"):
            fits = tensor.dtype == torch.bfloat16 and tensor.shape[1:] == (facts.hidden_size,)
            if not (fits and len(tensor) >= facts.vocab_size):
                yield Finding(LM_HEAD, found, f"bfloat16 [{facts.vocab_size} or more, {facts.hidden_size}]")
        elif name != "bias":
            yield Finding(LM_HEAD, found, "lm_head, embedding and bias only")
        elif tensor.dtype != torch.float32 or tensor.shape != (rows,):
            yield Finding(LM_HEAD, found, f"float32 [{rows}]")
        if not bool(tensor.isfinite().all()):
            yield Finding(LM_HEAD, f"a number of {name} that is not finite", "finite numbers")


def _calibration(data: bytes, plan: Plan, notes: list[str]) -> Iterator[Finding]:
    """The mean rows: columns, ids in range, probabilities, sums."""
    try:
        table, left_out = parse_calibration(data, plan, CALIBRATION)
    except OutputError as error:
        yield Finding(CALIBRATION, short(str(error)), "the mean rows of the calibration sample")
        return
    if nulls := [name for name in table.schema.names if nulls_of(table, name)]:
        yield Finding(CALIBRATION, f"nulls in {', '.join(nulls)}", "none in any column")
        return
    sizes = {
        name: lengths_of(table, name) for name in ("ids", "probs", *(f"heads/{p}" for p in calibrated_products(plan)))
    }
    token, ids = table.column("token").to_numpy(), flat(table, "ids")
    probs, special = flat(table, "probs"), table.column("special").to_numpy()
    owner = np.repeat(np.arange(len(token)), sizes["ids"])
    known = max((plan.products[p].vocab_size for p in (TEACHER, HIDDEN) if p in plan.products), default=2**31)
    row = np.repeat(np.arange(len(token)), sizes["probs"])
    kept = np.bincount(row, probs, minlength=len(token))
    within = {"probs": probs, "special": special, **{name: flat(table, name) for name in sizes if "/" in name}}
    problems = {
        "tokens do not rise from 0": (np.diff(token) <= 0).any() or (token < 0).any() or (token >= known).any(),
        "ids below 0, or not below the teacher's vocabulary": (ids < 0).any() or (ids >= known).any(),
        "an id twice in a row": len(np.unique(np.stack([owner, ids]), axis=1).T) < len(ids),
        "ids and probs of different numbers": (sizes["ids"] != sizes["probs"]).any(),
        f"more than {KEPT} ids in a row": (sizes["ids"] > KEPT).any(),
        "probs that rise": (np.diff(probs)[np.diff(row) == 0] > 0).any(),
        "probs with a sum above 1": (kept > 1 + _SLACK).any(),
    }
    for name, values in within.items():
        problems[f"{name} with numbers that are no probabilities"] = not ((values >= 0) & (values <= 1 + _SLACK)).all()
    for product in calibrated_products(plan):
        name = f"heads/{product}"
        problems[f"{name} of different sizes"] = len(set(sizes[name].tolist())) > 1
        owner = np.repeat(np.arange(len(token)), sizes[name])
        sums = np.bincount(owner, within[name], minlength=len(token))
        problems[f"{name} with sums that are not 1"] = (np.abs(sums - 1) > _SLACK).any()
    for problem, there in problems.items():
        if there:
            yield Finding(CALIBRATION, problem, "rows as docs/format.md says")
    if not (isinstance(left_out, list) and all(_is_refusal(record) for record in left_out)):
        yield Finding(CALIBRATION, f"left_out {short(left_out, 60)}", "records of documents, as in quarantine")
    elif left_out:
        why = ", ".join(sorted({record["reason"] for record in left_out}))
        notes.append(
            f"{counted(len(left_out), 'document')} of the calibration sample gave nothing ({why}); {CALIBRATION} has the list"
        )


def _calibrated_otherwise(seals: Mapping[int, Seal], sha256: str) -> Iterator[Finding]:
    for unit, seal in seals.items():
        filled = any(file is not None for file in seal.files.values())
        if seal.continuations != sha256 and (filled or seal.continuations is not None):
            told = "no" if seal.continuations is None else f"{short(seal.continuations, 13)} for"
            yield Finding(
                seal_name(unit), f"{told} sha256 of continuations.parquet", f"{short(sha256, 13)}, as the others"
            )


def _is_refusal(record: object) -> bool:
    return isinstance(record, dict) and type(record.get("doc_row")) is int and record.get("reason") in REASONS
