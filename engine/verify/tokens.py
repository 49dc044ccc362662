"""The files of the products' tokens, checked: those that the manifest lists, each with its checksum and form."""

from __future__ import annotations

from collections.abc import Iterator

from engine.dataset.layout import MANIFEST
from engine.dataset.store import Store
from engine.dataset.token_tables import TokenTable, facts_by_owner, token_file
from engine.verify.findings import Finding, short
from schemas.errors import OutputError
from schemas.manifest import Manifest, Plan, Sidecar


def token_findings(store: Store, plan: Plan, manifest: Manifest | None) -> Iterator[Finding]:
    """All of them. Outputs of before 0.7.0 have none, and an unfinished one may not have them yet."""
    listed = (manifest.vocabularies or {}) if manifest is not None else {}
    owners = facts_by_owner(plan.products)
    for product in sorted(listed.keys() - owners.keys()):
        yield Finding(MANIFEST, f"a record of the tokens of {short(product)}", "none, this run has no such product")
    for product, facts in owners.items():
        name, record = token_file(product), listed.get(product)
        if not store.exists(name):
            if record is not None:
                yield Finding(name, "missing", "the tokens of the product, as the manifest lists them")
            continue
        try:
            data = store.read(name)
            TokenTable.from_bytes(data, name, facts)
        except OutputError as error:
            yield Finding(name, f"not readable: {short(str(error))}", "the tokens of the product")
            continue
        if manifest is not None and record is None:
            yield Finding(MANIFEST, f"no record of {name}", "its name, bytes and sha256")
        elif record is not None and (own := Sidecar.of(name, data)) != record:
            told = [f"{one.name}, sha256 {short(one.sha256, 13)}, {one.bytes:,} bytes" for one in (own, record)]
            yield Finding(name, told[0], f"{short(told[1], 120)}, as the manifest says")
