"""The end of a run: when all units are sealed, the files are checked, then what describes them is written, then manifest.json."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence

from engine.dataset.layout import CARD, CROISSANT, MANIFEST, REMAKE, load_manifest, own_seal, seal_name, unsealed_units
from engine.dataset.repair import lacking_units
from engine.dataset.sidecars import CALIBRATION, LM_HEAD, check_calibration, lm_head_fault, sidecars_of
from engine.dataset.store import Out, Store, open_store
from engine.dataset.token_tables import token_records
from schemas.counts import counted
from schemas.errors import OutputError
from schemas.manifest import Manifest, Plan, ProductTotal, Seal, ShardRecord, Sidecar, add_stats

Describe = Callable[[Store, Plan, Manifest], Mapping[str, bytes]]
"""What describes a run for people and for catalogues, as files: README.md and croissant.json (engine/card)."""

LIBRARIES = ("datasets", "numpy", "polars", "pyarrow", "ray", "tokenizers", "torch", "transformers")


def finish(
    out: Out, plan: Plan, *, engine_version: str, describe: Describe, versions: Mapping[str, str] | None = None
) -> Manifest:
    """Close the run: README.md and croissant.json, then manifest.json. Idempotent; returns the manifest that is there in the end.

    Only when every unit is sealed, every sealed file is there with its sealed size, data/ holds no other file, and a manifest
    that is there already says what the seals say; otherwise OutputError says which and what to do. `versions`: libraries
    that made the run, default those installed.
    """
    store = open_store(out)
    missing = unsealed_units(store, plan)
    if missing:
        raise OutputError(
            f"{store}: {len(missing)} of {counted(len(plan.units), 'unit')} not sealed (first: {missing[:5]}); run again to "
            "score them"
        )
    seals = store.map(lambda unit: own_seal(store, plan, unit.index), plan.units)
    _check_files(store, seals)
    sidecars = {name: _sidecar(store, name) for name in sidecars_of(plan)}
    if CALIBRATION in sidecars:
        check_calibration(store, seals, sidecars[CALIBRATION].sha256)
    if store.exists(MANIFEST):
        found = load_manifest(store)
        tokens = token_records(store, plan, found)
        for product, record in (found.vocabularies or {}).items():
            if (tokens or {}).get(product) != record:
                raise OutputError(
                    f"{store.place(record.name)}: not the file that {MANIFEST} lists: damaged, or made again by other "
                    f"libraries; {REMAKE}"
                )
        made = _manifest(plan, seals, found.engine_version, found.versions, sidecars, tokens)
        for name, wanted in ((LM_HEAD, found.head), (CALIBRATION, found.continuations)):
            if wanted is not None and sidecars.get(name) != wanted:
                raise OutputError(
                    f"{store.place(name)}: not the file that {MANIFEST} lists: damaged, or made again by other libraries; "
                    f"{REMAKE}"
                )
        if _nameless(made) != _nameless(found) or store.read(MANIFEST) != found.to_bytes():
            pairs = zip(made.shards, found.shards, strict=False)
            unit = next((mine.unit for mine, listed in pairs if mine != listed), None)
            beside = "plan and seals say:" if unit is None else f"{seal_name(unit)} says (verify tells which is right):"
            raise OutputError(
                f"{store.place(MANIFEST)}: does not say what {beside} damaged, or of another run; {REMAKE}"
            )
        _describe(store, plan, found, describe)
        return found
    tokens = token_records(store, plan, None)
    manifest = _manifest(
        plan, seals, engine_version, versions if versions is not None else _installed(), sidecars, tokens
    )
    _describe(store, plan, manifest, describe)
    store.put_if_absent(MANIFEST, manifest.to_bytes())
    return load_manifest(store)


def _describe(store: Store, plan: Plan, manifest: Manifest, describe: Describe) -> None:
    """Files that are there stay; figures are read from the shards only where one is missing."""
    if not (store.exists(CARD) and store.exists(CROISSANT)):
        for name, data in describe(store, plan, manifest).items():
            store.put_if_absent(name, data)


def _sidecar(store: Store, name: str) -> Sidecar:
    if not store.exists(name):
        raise OutputError(f"{store.place(name)}: missing; run again to make it anew")
    data = store.read(name)
    if name == LM_HEAD and (fault := lm_head_fault(data)):
        raise OutputError(f"{store.place(name)}: damaged: {fault}; {REMAKE}")
    return Sidecar.of(name, data)


def _nameless(manifest: Manifest) -> Manifest:
    """Without the tokenizers' names, which the run file may give in another way."""
    products = {name: facts.model_copy(update={"tokenizer": ""}) for name, facts in manifest.products.items()}
    return manifest.model_copy(update={"products": products})


def _check_files(store: Store, seals: Sequence[Seal]) -> None:
    if lacking := sorted(lacking_units(store, seals)):
        raise OutputError(
            f"{store}: files of {counted(len(lacking), 'sealed unit')} are missing (first: {lacking[:5]}): removed by "
            "hand, or the disk or "
            "store lost data; run again to make them anew"
        )
    sealed = {file.name for seal in seals for file in seal.files.values() if file is not None}
    extra = sorted({name for name, _ in store.files("data")} - sealed)
    if extra:
        raise OutputError(
            f"{store.place(extra[0])}: not a file of this run ({counted(len(extra), 'such file')}), and readers of "
            "data/ would pick "
            "it up: move it away and run again"
        )


def _manifest(
    plan: Plan,
    seals: Sequence[Seal],
    engine_version: str,
    versions: Mapping[str, str],
    sidecars: Mapping[str, Sidecar],
    tokens: dict[str, Sidecar] | None,
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
        head=sidecars.get(LM_HEAD),
        continuations=sidecars.get(CALIBRATION),
        vocabularies=tokens,
    )


def _installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for distribution in importlib.metadata.distributions():
        name = (distribution.name or "").lower()
        if name in LIBRARIES:
            found[name] = distribution.version
    return dict(sorted(found.items()))
