"""The end of a run: all units are sealed; check the files, write README.md and manifest.json. Text: docs/format.md."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.card import dataset_card
from engine.head import head_path
from engine.outfolder import load_manifest, manifest_path, own_seal, put, sealed_units
from engine.publish import output_errors
from schemas.errors import OutputError
from schemas.manifest import Manifest, Plan, ProductTotal, Seal, ShardRecord, add_stats

LIBRARIES = ("datasets", "numpy", "polars", "pyarrow", "ray", "tokenizers", "torch", "transformers")


def finish(out: Path, plan: Plan, *, engine_version: str, versions: Mapping[str, str] | None = None) -> Manifest:
    """Close the run: README.md, then manifest.json. Idempotent; returns the manifest that is there in the end.

    Only when every unit is sealed, every sealed file is there with its sealed size, and data/ holds no other file;
    otherwise OutputError says which and what to do. `versions`: libraries that made the run, default those installed.
    """
    if manifest_path(out).exists():
        return load_manifest(out)
    missing = sorted(set(range(len(plan.units))) - set(sealed_units(out)))
    if missing:
        raise OutputError(
            f"{out}: {len(missing)} of {len(plan.units)} units are not sealed (first: {missing[:5]}); run again to "
            "score them"
        )
    seals = [own_seal(out, plan, unit.index) for unit in plan.units]
    _check_files(out, seals)
    if "hidden" in plan.products and not head_path(out).is_file():
        raise OutputError(
            f"{head_path(out)}: missing, and hidden states are of little use without it. It is written when an actor starts: "
            "remove the seal of one unit (_engine/shards/<unit>.json) and run again"
        )
    manifest = _manifest(plan, seals, engine_version, versions if versions is not None else _installed())
    put(out, out / "README.md", dataset_card(manifest).encode())
    put(out, manifest_path(out), manifest.to_bytes())
    return load_manifest(out)


def _check_files(out: Path, seals: Sequence[Seal]) -> None:
    sealed = {file.name: file.bytes for seal in seals for file in seal.files.values() if file is not None}
    with output_errors(out / "data"):
        found = {
            path.relative_to(out).as_posix(): path.stat().st_size
            for path in (out / "data").rglob("*")
            if path.is_file()
        }
    wrong = [name for name in sealed if found.get(name) != sealed[name]]
    if wrong:
        got = found.get(wrong[0])
        raise OutputError(
            f"{out / wrong[0]}: {'missing' if got is None else f'{got:,} bytes'}, sealed with {sealed[wrong[0]]:,} "
            f"bytes ({len(wrong)} such files): changed by hand, or the disk lost data; remove these files and their "
            "seals (_engine/shards/<unit>.json), then run again"
        )
    extra = sorted(found.keys() - sealed.keys())
    if extra:
        raise OutputError(
            f"{out / extra[0]}: not a file of this run ({len(extra)} such files), and readers of data/ would pick "
            "it up: move it away and run again"
        )


def _manifest(plan: Plan, seals: Sequence[Seal], engine_version: str, versions: Mapping[str, str]) -> Manifest:
    totals = {}
    for product in plan.products:
        files = [file for seal in seals if (file := seal.files[product]) is not None]
        totals[product] = ProductTotal(
            files=len(files),
            rows=sum(file.rows for file in files),
            positions=sum(file.positions for file in files),
            bytes=sum(file.bytes for file in files),
        )
    stats: dict[str, float] = {}
    for seal in seals:
        add_stats(stats, seal.stats)
    return Manifest(
        fingerprint=plan.fingerprint,
        engine_version=engine_version,
        versions=dict(versions),
        products=plan.products,
        documents=sum(unit.n_rows for unit in plan.units),
        quarantined=sum(seal.quarantined for seal in seals),
        totals=totals,
        stats=stats,
        shards=tuple(ShardRecord(unit=seal.unit, quarantined=seal.quarantined, files=seal.files) for seal in seals),
    )


def _installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for distribution in importlib.metadata.distributions():
        name = (distribution.name or "").lower()
        if name in LIBRARIES:
            found[name] = distribution.version
    return dict(sorted(found.items()))
