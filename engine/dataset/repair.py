"""Which units of an output must be scored again because files are gone, and whether a plan that is gone may be written anew.

The rule for a person is the same for every file of an output: remove the damaged one and run the same command again. Nothing
is deleted or overwritten here; what is lacking is made from the rest, or by scoring its unit again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from engine.dataset.layout import (
    CARD,
    CLAIMS,
    CROISSANT,
    MANIFEST,
    PLAN,
    REMAKE,
    SEALS,
    claim_name,
    seal_name,
    shard_name,
)
from engine.dataset.parquet import open_shard
from engine.dataset.sidecars import CALIBRATION
from engine.dataset.store import Out, Store, open_store
from schemas.counts import counted
from schemas.errors import OutputError
from schemas.manifest import Plan, Seal


def lacking_units(out: Out, seals: Sequence[Seal]) -> set[int]:
    """Units of which a file or the claim is not there, though sealed: removed, and to be scored again.

    Raises OutputError, which names the files, when some have other sizes than are sealed. Contents are not read: that is
    what `targetsmith verify` does.
    """
    store = open_store(out)
    found, claimed = dict(store.files("data")), {name for name, _ in store.files(CLAIMS)}
    sealed = {file.name: (seal.unit, file.bytes) for seal in seals for file in seal.files.values() if file}
    unlisted = [name for name in sealed if name not in found]  # a listing may be behind: ask for each by its name
    sizes = zip(unlisted, store.map(store.size, unlisted), strict=True)
    found |= {name: size for name, size in sizes if size is not None}
    damaged = [name for name, (_, size) in sealed.items() if name in found and found[name] != size]
    if damaged:
        name, more = (
            damaged[0],
            f" ({counted(len(damaged), 'such file')}: {', '.join(damaged[:5])})" if len(damaged) > 1 else "",
        )
        raise OutputError(
            f"{store.place(name)}: {found[name]:,} bytes, sealed with {sealed[name][1]:,} bytes{more}: changed by hand, or the "
            f"disk or store lost data; {REMAKE}"
        )
    claims = {claim_name(seal.unit): seal.unit for seal in seals}
    unlisted = [name for name in claims if name not in claimed]
    gone = [name for name, there in zip(unlisted, store.map(store.exists, unlisted), strict=True) if not there]
    return {claims[name] for name in gone} | {unit for name, (unit, _) in sealed.items() if name not in found}


def is_whole(store: Store, seal: Seal) -> bool:
    """Whether the claim and all files of one sealed unit are there."""
    files = [file.name for file in seal.files.values() if file is not None]
    return all(store.exists(name) for name in (claim_name(seal.unit), *files))


def check_plan_lost(store: Store, plan: Plan, found: str) -> None:
    """Whether an output without plan.json is this very run: OutputError unless its files say so, each that can."""
    known = {shard_name(product, unit.index, len(plan.units)) for product in plan.products for unit in plan.units}
    signed = [
        name
        for name, _ in store.files()
        if name in known or name in (MANIFEST, CALIBRATION) or name.startswith(f"{SEALS}/")
    ]
    if not signed:
        raise OutputError(
            f"{store}: not empty and not an output of targetsmith (found {store.place(found)}, no {PLAN}); "
            "take a new or empty folder or prefix for the output"
        )
    for name, fingerprint in zip(signed, store.map(lambda name: _fingerprint(store, name), signed), strict=True):
        if fingerprint != plan.fingerprint:
            of = "damaged" if fingerprint is None else f"of run {str(fingerprint)[:12]}"
            raise OutputError(
                f"{store}: {PLAN} is missing, and cannot be put back: {name} is {of}, this command gives run "
                f"{plan.fingerprint[:12]}. Use the very run file, corpus, teacher and version that made it (for an import, the "
                f"files and the tokenizer), restore {PLAN} from a copy, or take a new folder for the output"
            )


def _fingerprint(store: Store, name: str) -> str | None:
    """Of a shard, seal or manifest; None when it has none, or is damaged."""
    if name.endswith(".parquet"):
        with store.open(name) as data:
            try:
                with open_shard(data, store.place(name)) as shard:
                    return shard.footer.get("targetsmith.fingerprint")
            except OutputError:
                return None
    try:
        return json.loads(store.read(name))["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def other_than_sealed(store: Store, name: str, unit: int) -> OutputError:
    """The error for a file that was lost and, scored again, has other bytes than its seal says."""
    return OutputError(
        f"{store.place(name)}: missing, and scored again it is not what was sealed (other hardware or libraries, or memory ran "
        f"out or an actor died in one of the two); remove {seal_name(unit)}, {MANIFEST}, {CARD} and {CROISSANT} too, and run "
        "again"
    )
