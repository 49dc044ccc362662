"""The end of a run: all units are sealed; check the files, write README.md and manifest.json. Text: docs/format.md."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from engine.card import dataset_card
from engine.head import HEAD, head_record
from engine.outfolder import MANIFEST, load_manifest, own_seal, unsealed_units
from engine.store import Out, Store, open_store
from schemas.errors import OutputError
from schemas.manifest import HeadFile, Manifest, Plan, ProductTotal, Seal, ShardRecord, add_stats

LIBRARIES = ("datasets", "numpy", "polars", "pyarrow", "ray", "tokenizers", "torch", "transformers")


def finish(out: Out, plan: Plan, *, engine_version: str, versions: Mapping[str, str] | None = None) -> Manifest:
    """Close the run: README.md, then manifest.json. Idempotent; returns the manifest that is there in the end.

    Only when every unit is sealed, every sealed file is there with its sealed size, and data/ holds no other file;
    otherwise OutputError says which and what to do. `versions`: libraries that made the run, default those installed.
    """
    store = open_store(out)
    if store.exists(MANIFEST):
        return load_manifest(store)
    missing = unsealed_units(store, plan)
    if missing:
        raise OutputError(
            f"{store}: {len(missing)} of {len(plan.units)} units are not sealed (first: {missing[:5]}); run again to "
            "score them"
        )
    seals = store.map(lambda unit: own_seal(store, plan, unit.index), plan.units)
    _check_files(store, seals)
    if "hidden" in plan.products and not store.exists(HEAD):
        raise OutputError(
            f"{store.place(HEAD)}: missing, and hidden states are of little use without it. It is written when an actor starts: "
            "remove the seal of one unit (_engine/shards/<unit>.json) and run again"
        )
    head = head_record(store.read(HEAD)) if "hidden" in plan.products else None
    manifest = _manifest(plan, seals, engine_version, versions if versions is not None else _installed(), head)
    store.put_if_absent("README.md", dataset_card(manifest).encode())
    store.put_if_absent(MANIFEST, manifest.to_bytes())
    return load_manifest(store)


def _check_files(store: Store, seals: Sequence[Seal]) -> None:
    sealed = {file.name: file.bytes for seal in seals for file in seal.files.values() if file is not None}
    found = dict(store.files("data"))
    unlisted = [name for name in sealed if name not in found]  # a listing may be behind: ask for each by its name
    sizes = zip(unlisted, store.map(store.size, unlisted), strict=True)
    found |= {name: size for name, size in sizes if size is not None}
    wrong = [name for name in sealed if found.get(name) != sealed[name]]
    if wrong:
        got = found.get(wrong[0])
        raise OutputError(
            f"{store.place(wrong[0])}: {'missing' if got is None else f'{got:,} bytes'}, sealed with {sealed[wrong[0]]:,} "
            f"bytes ({len(wrong)} such files): changed by hand, or the disk or store lost data; remove these files and their "
            "seals (_engine/shards/<unit>.json), then run again"
        )
    extra = sorted(found.keys() - sealed.keys())
    if extra:
        raise OutputError(
            f"{store.place(extra[0])}: not a file of this run ({len(extra)} such files), and readers of data/ would pick "
            "it up: move it away and run again"
        )


def _manifest(
    plan: Plan, seals: Sequence[Seal], engine_version: str, versions: Mapping[str, str], head: HeadFile | None
) -> Manifest:
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
        head=head,
    )


def _installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for distribution in importlib.metadata.distributions():
        name = (distribution.name or "").lower()
        if name in LIBRARIES:
            found[name] = distribution.version
    return dict(sorted(found.items()))
