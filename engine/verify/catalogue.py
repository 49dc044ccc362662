"""croissant.json, checked as far as someone would rest on it: its files, sizes and checksums are those of the manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator

from engine.dataset.layout import CROISSANT
from engine.dataset.store import Store
from engine.verify.findings import Finding, short
from schemas.errors import OutputError
from schemas.manifest import Manifest


def croissant_findings(store: Store, manifest: Manifest) -> Iterator[Finding]:
    """All of them. Outputs of before 0.7.0 have no such file, and large ones name no shards in it."""
    if not store.exists(CROISSANT):
        return
    try:
        content = json.loads(store.read(CROISSANT))
        named = [one for one in content["distribution"] if one["@type"] == "cr:FileObject"]
        found = {one["contentUrl"]: (one["contentSize"], one["sha256"]) for one in named}
    except (OutputError, ValueError, KeyError, TypeError, RecursionError) as error:
        yield Finding(
            CROISSANT,
            f"not readable: {short(str(error))}",
            "Croissant metadata as it was written; remove it and run again",
        )
        return
    listed = [file for shard in manifest.shards for file in shard.files.values() if file is not None]
    listed += [file for file in (manifest.head, manifest.continuations) if file is not None]
    listed += (manifest.vocabularies or {}).values()
    wanted = {file.name: (f"{file.bytes} B", file.sha256) for file in listed}
    for name in sorted(key for key, told in found.items() if wanted.get(key) != told):
        told = "another file than the manifest's, or with another size or sha256"
        yield Finding(
            CROISSANT, f"{short(name)}: {told}", "what the manifest lists; remove croissant.json and run again"
        )
