"""What came out of a run, for a person."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from engine.dataset.layout import sealed_quarantine
from engine.dataset.store import Store
from jobs.run.progress import Counts, clock
from schemas.counts import counted
from schemas.manifest import REGIMES, Manifest, Plan
from schemas.reasons import REASONS, REMEDIES

_PIPE_WIDTH = 110  # columns where the output is not a terminal
_COLUMNS = ("docs", "positions", "scored", "stored mass", "width", "non-canonical", "bytes/pos")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run: where it lies, its manifest, and what this command itself did for it."""

    store: Store
    manifest: Manifest
    counts: Counts
    plan: Plan


def print_summary(outcome: Outcome, stream: TextIO) -> None:
    """What came out, for a person: the products, the quarantine, the speed."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    manifest, counts, store = outcome.manifest, outcome.counts, outcome.store
    console.print(f"{store}: run {manifest.fingerprint[:12]} has ended, every unit is published", markup=False)
    headings = [
        Column("product", overflow="fold", min_width=12),
        Column("regime", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in _COLUMNS),
    ]
    table = Table(*headings, box=SIMPLE_HEAD, pad_edge=False)
    for name, total in manifest.totals.items():
        scored = manifest.stats.get(f"{name}.scored", 0.0)
        mass = width = outside = size = "-"
        if scored and manifest.products[name].codec != "hidden":
            mass = f"{manifest.stats[f'{name}.stored_mass_sum'] / scored:.6f}"
            width = f"{manifest.stats[f'{name}.err_sum'] / scored:.2e}"
            outside = f"{manifest.stats[f'{name}.noncanonical_mass_sum'] / scored:.2e}"
        if total.positions:
            size = f"{total.bytes / total.positions:.1f}"
        sizes = (f"{total.rows:,}", f"{total.positions:,}", f"{scored:,.0f}")
        facts = manifest.products[name]
        made = facts.regime if facts.codec == "topk" else f"{facts.regime}, {facts.codec}"
        table.add_row(name, made, *sizes, mass, width, outside, size)
    console.print(table)
    console.print(
        "Means over scored positions: stored mass, probability of what is stored; width, certified width; non-canonical, the\n"
        "teacher's mass on tokens that no text has there. Regimes:"
    )
    for regime in sorted({facts.regime for facts in manifest.products.values()}):
        console.print(f"  {regime}: {REGIMES[regime]}", markup=False)
    if boundaries := manifest.stats.get("beam.boundaries"):
        left = manifest.stats["beam.expected_tv_sum"] / boundaries
        console.print(
            f"expected total variation of students' rows (beam) to a search without end: {left:.4f} in the mean.\n"
            "Widths are upper bounds of what was not proven, mostly far above that"
        )
    console.print(
        f"{counted(len(manifest.shards), 'unit')}, "
        f"{counted(manifest.documents, 'document')}, {manifest.quarantined:,} in quarantine"
    )
    for source, (documents, refused) in documents_by_source(outcome.plan, manifest).items():
        told = f" and {refused:,} in quarantine" if refused else ""
        console.print(f"  {source}: {counted(documents - refused, 'document')}{told}", markup=False)
    for reason, count in quarantined_by_reason(store, manifest).most_common():
        console.print(f"  {count:6,}  {reason}: {REASONS[reason]}", markup=False)
        console.print(f"          do: {REMEDIES[reason]}", markup=False)
    if manifest.quarantined:
        console.print(f"  each with its place and detail: {store.place('_engine/quarantine')}/*.jsonl", markup=False)
    if shortened := manifest.stats.get("shortened_prompts"):
        console.print(
            f"{counted(int(shortened), 'document')} with a prompt longer than the teacher's context: the oldest of it was left "
            "out ([corpus] too_long_prompt)",
            markup=False,
        )
    if retried := manifest.stats.get("oom_retries"):
        console.print(f"{retried:,.0f} times memory ran out and less was tried: lower [teacher] batch_tokens")
    if counts.units:
        rate = f"{counts.tokens:,} teacher tokens, {counts.tokens_per_s:,.0f} tokens/s"
        console.print(f"this command: {counted(counts.units, 'unit')}, {rate}, {clock(counts.seconds)} wall time")
    else:
        console.print("this command: nothing to do, the run had ended")


def as_json(outcome: Outcome) -> str:
    """The same as one line of JSON, for programs."""
    manifest, counts = outcome.manifest, outcome.counts
    return json.dumps(
        {
            "output": str(outcome.store),
            "fingerprint": manifest.fingerprint,
            "documents": manifest.documents,
            "quarantined": dict(quarantined_by_reason(outcome.store, manifest).most_common()),
            "products": {
                name: {"regime": manifest.products[name].regime, **total.model_dump()}
                for name, total in manifest.totals.items()
            },
            "stats": manifest.stats,
            "this_command": {
                "units": counts.units,
                "teacher_tokens": counts.tokens,
                "tokens_per_s": counts.tokens_per_s,
                "seconds": counts.seconds,
            },
        },
        ensure_ascii=False,
    )


def documents_by_source(plan: Plan, manifest: Manifest) -> dict[str, tuple[int, int]]:
    """Name of a [[corpus]] table -> its documents, and those of them that are in quarantine; empty without a mixture."""
    refused = {shard.unit: shard.quarantined for shard in manifest.shards}
    found: dict[str, tuple[int, int]] = {}
    for unit in plan.units:
        if source := plan.source_of(unit):
            documents, bad = found.get(source, (0, 0))
            found[source] = (documents + unit.n_rows, bad + refused.get(unit.index, 0))
    return found


def quarantined_by_reason(store: Store, manifest: Manifest) -> Counter[str]:
    """Reason -> number of documents."""
    counts: Counter[str] = Counter()
    for shard in manifest.shards:
        records = sealed_quarantine(store, shard) if shard.quarantined else []
        counts.update(record["reason"] for record in records)
    return counts
