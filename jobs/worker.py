"""What runs inside an actor: score one unit with the pure engine, publish it, hand back its sums. Knows no Ray."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch

from engine.corpus import Document, Unit
from engine.head import publish_head
from engine.outfolder import own_seal, seal_name
from engine.retry import renumbered
from engine.score import Scorer, UnitResult, refusal
from engine.shards import publish_unit
from engine.store import Out, open_store
from jobs.events import Died
from schemas.manifest import Plan, add_stats
from schemas.runfile import RunConfig


class UnitWorker:
    """Holds the teacher for as long as its process lives. sample: documents to learn the usual continuations from, the same
    for all workers of a run."""

    def __init__(self, run: RunConfig, plan: Plan, sample: Sequence[Document] = ()) -> None:
        # Ray reserves cores, it does not enforce them: without this every actor would use all cores of the machine.
        torch.set_num_threads(max(1, int(run.ray.num_cpus)))
        self._store = open_store(run.output)
        self._plan = plan
        self._scorer = Scorer(run)
        self._scorer.calibrate(sample)
        if run.targets.hidden:
            publish_head(self._store, self._scorer.teacher)
        teacher = self._scorer.teacher
        by_paths = f"teacher: contexts are scored one path at a time: {teacher.why}"
        self.note = by_paths if teacher.attention == "paths" else ""

    def score(self, unit: Unit, documents: list[Document]) -> dict[str, float]:
        """Score and publish a unit. Returns its sums only: the targets never travel through Ray.

        A unit that is sealed by now (another actor took it over, or another command works on this output) is not scored again.
        """
        if self._store.exists(seal_name(unit.index)):
            return own_seal(self._store, self._plan, unit.index).stats
        result = self._scorer.score_unit(documents)
        publish(self._store, self._plan, unit, result)
        return result.stats

    def score_alone(self, document: Document) -> UnitResult:
        """Score one document without publishing it: for units in which some document kills its process."""
        return self._scorer.score_unit([document])


def publish(out: Out, plan: Plan, unit: Unit, result: UnitResult) -> None:
    """Publish the result of a unit of this plan. Raises what `publish_unit` raises."""
    result = renumbered(result, plan)
    publish_unit(out, plan, unit.index, result.products, result.quarantine, result.stats)


def join_outcomes(plan: Plan, outcomes: Sequence[tuple[Document, UnitResult | Died]]) -> UnitResult:
    """One unit again from its documents scored one by one; Died instead of a result quarantines the document."""
    results = [outcome for _, outcome in outcomes if not isinstance(outcome, Died)]
    stats: dict[str, float] = {}
    for result in results:
        add_stats(stats, result.stats)
    quarantine = [record for result in results for record in result.quarantine]
    for document, outcome in outcomes:
        if isinstance(outcome, Died):
            quarantine.append(refusal(document, "worker_died", outcome.how))
            add_stats(stats, {"documents": 1.0, "quarantined": 1.0})
    products = {
        name: pa.concat_tables([facts.schema_of_rows.empty_table(), *(result.products[name] for result in results)])
        for name, facts in plan.products.items()
    }
    return UnitResult(products=products, quarantine=quarantine, stats=stats)
