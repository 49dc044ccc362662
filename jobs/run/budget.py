"""How many bad documents a run may have. One broken record is quarantined and forgotten; a wrong tokenizer looks like a
million of them, and then the run stops before it has spent its days.

A run stops when *more* than `[quarantine] max_documents` and *more* than `max_share` of the corpus's documents are in
quarantine, those of earlier commands included. The share is of the whole corpus, not of what is done so far: bad records
often lie together, and what can be lost before the stop is that share of the run's work.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from engine.dataset.layout import load_seals, read_quarantine
from engine.dataset.store import Out
from schemas.counts import counted
from schemas.errors import QuarantineError
from schemas.manifest import Manifest, Plan
from schemas.reasons import REASONS, REMEDIES
from schemas.settings import QuarantineConfig

SHOWN_REASONS, SHOWN_EXAMPLES = 3, 2


class Budget:
    """Counts documents in quarantine, by unit."""

    def __init__(self, out: Out, plan: Plan, config: QuarantineConfig) -> None:
        self._out, self._plan, self._config = out, plan, config
        self._documents = sum(unit.n_rows for unit in plan.units)
        self._most = max(config.max_documents, math.floor(Fraction(str(config.max_share)) * self._documents))
        self._found: dict[int, int] = {}  # unit -> documents; a unit that lost a file is scored again, and counts once

    def resume(self) -> None:
        """Count what earlier commands have sealed. Raises QuarantineError."""
        for seal in load_seals(self._out, self._plan):
            self.add(seal.unit, seal.quarantined)

    def add(self, unit: int, quarantined: int) -> None:
        """One more published unit. Raises QuarantineError."""
        if not quarantined:
            return
        self._found[unit] = quarantined
        count = sum(self._found.values())
        if count <= self._most:
            return
        config = self._config
        raise QuarantineError(
            f"{self._out}: {count:,} of {counted(self._documents, 'document')} in quarantine; wanted at most {self._most:,} "
            f"([quarantine] max_documents = {config.max_documents}, max_share = {config.max_share:g} of the corpus).\n"
            f"{reasons_told(self._out, sorted(self._found))}\n"
            f"So many look like one cause, such as a wrong tokenizer, column or format: mend it and score into a new `output`. "
            f"If these documents are just bad, raise max_documents or max_share and run the same command again: what is "
            f"published stays. All of them: _engine/quarantine/*.jsonl in the output."
        )


def check_finished(out: Out, manifest: Manifest, *, retry: bool = False) -> None:
    """Raises QuarantineError for a finished run in which nothing was scored, or more than half of the documents went to
    quarantine, whatever the budget allows: nobody wants such a run, and a script must see it. retry: of documents that are
    known to be bad, so that one of them is enough."""
    scored = any(manifest.stats.get(f"{product}.scored") for product in manifest.products)
    if scored and (retry or 2 * manifest.quarantined <= manifest.documents):
        return
    count = f"{manifest.quarantined:,} of {counted(manifest.documents, 'document')} in quarantine"
    units = [shard.unit for shard in manifest.shards if shard.quarantined]
    raise QuarantineError(
        f"{out}: {count}" + ("" if scored else ", and not one position has a distribution") + ".\n"
        f"{reasons_told(out, units)}\n"
        + (
            "Wanted at least one of them scored. Mend the cause and retry again."
            if retry
            else "Wanted at least half of the documents. Mend the cause and score into a new `output`; what fails for want of "
            "memory or a setting alone goes into a run of its own by --retry-quarantined."
        )
    )


def reasons_told(out: Out, units: Iterable[int]) -> str:
    """The most frequent reasons of these units' quarantine with examples, a few lines."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for unit in units:
        for record in read_quarantine(out, unit):
            counts[record["reason"]] += 1
            known = examples.setdefault(record["reason"], [])
            if len(known) < SHOWN_EXAMPLES:
                known.append(f"    {record.get('source')}, {record.get('place')}: {record.get('detail')}"[:200])
    lines = []
    for reason, count in counts.most_common(SHOWN_REASONS):
        lines += [f"  {count:6,}  {reason}: {REASONS[reason]}", f"          do: {REMEDIES[reason]}", *examples[reason]]
    if len(counts) > SHOWN_REASONS:
        lines.append(f"  and {counted(len(counts) - SHOWN_REASONS, 'more reason')}")
    return "\n".join(lines)
