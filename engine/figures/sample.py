"""What of an output is read for its figures: everything, or of a large one some units, drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.dataset.layout import MANIFEST, load_manifest, load_plan, load_seals, nothing_ready
from engine.dataset.store import Out, Store, open_store
from schemas.errors import OutputError
from schemas.manifest import Plan, ShardRecord, add_stats

MOST_POSITIONS = 4_000_000
"""Positions of the largest product that are read at most, unless one unit alone has more."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output as its plan, seals and manifest tell it."""

    store: Store
    plan: Plan
    finished: bool
    engine_version: str
    shards: tuple[ShardRecord, ...]  # of the sealed units, in unit order
    stats: dict[str, float]  # sums over them


def open_published(out: Out) -> Output:
    """What is published of an output, finished or not. Raises OutputError: no output, damaged, or nothing is sealed yet."""
    store = open_store(out)
    plan = load_plan(store)
    version = str(plan.engine_version or "")
    if store.exists(MANIFEST):
        manifest = load_manifest(store)
        if manifest.fingerprint != plan.fingerprint:
            raise OutputError(
                f"{store.place(MANIFEST)}: of run {manifest.fingerprint[:12]}, the plan beside it is of {plan.fingerprint[:12]}: "
                "copied from elsewhere; `targetsmith verify` tells which is right"
            )
        return Output(store, plan, True, manifest.engine_version, manifest.shards, manifest.stats)
    stats: dict[str, float] = {}
    shards = []
    for seal in load_seals(store, plan):
        add_stats(stats, seal.stats)
        shards.append(ShardRecord(unit=seal.unit, quarantined=seal.quarantined, files=seal.files))
    if not shards:
        raise nothing_ready(store, plan)
    return Output(store, plan, False, version, tuple(shards), stats)


def choose_shards(shards: Sequence[ShardRecord], most_positions: int, seed: int) -> tuple[ShardRecord, ...]:
    """The units whose files are read, in unit order: all, or some drawn by `seed` without replacement, until one more would
    be beyond `most_positions` of its largest product. Always one at least where there is one with documents."""
    full = [shard for shard in shards if any(shard.files.values())]
    sizes = np.array([max(file.positions for file in shard.files.values() if file) for shard in full], np.int64)
    if sizes.sum() <= most_positions:
        return tuple(full)
    order = np.random.default_rng(seed).permutation(len(full))
    taken = max(1, int(np.searchsorted(np.cumsum(sizes[order]), most_positions, side="right")))
    return tuple(full[i] for i in sorted(order[:taken]))
