"""What runs inside an actor: score one unit with the pure engine, publish it, hand back its sums. Knows no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from engine.beam.calibration_file import publish_calibration, read_calibration
from engine.corpus.document import Document, Unit, refusal
from engine.dataset.commit import publish_unit
from engine.dataset.layout import own_seal, seal_name
from engine.dataset.repair import is_whole
from engine.dataset.sidecars import CALIBRATION, has_calibration
from engine.dataset.store import Out, open_store
from engine.dataset.unit_result import UnitResult
from engine.plan.retry import renumbered
from engine.scoring.scorer import Scorer
from engine.teacher.lm_head import publish_head
from jobs.pool.events import Died
from schemas.errors import OutputError
from schemas.manifest import Plan, Seal, add_stats
from schemas.runfile import RunConfig


class UnitWorker:
    """Holds the teacher for as long as its process lives. sample: documents to learn the usual continuations from; without
    it they come by `learn`, unless the output has what was learned."""

    def __init__(self, run: RunConfig, plan: Plan, sample: Sequence[Document] | None = None) -> None:
        # Ray reserves cores, it does not enforce them: without this every actor would use all cores of the machine.
        torch.set_num_threads(max(1, int(run.ray.num_cpus)))
        self._store = open_store(run.output)
        self._plan = plan
        self._scorer = Scorer(run)
        self._learns, self._left_out = has_calibration(plan), list[dict[str, Any]]()
        self._learned: set[int] = set()  # by doc_row
        self._recall()
        if sample is not None:
            self.learn(sample, True)
        if run.targets.hidden:
            publish_head(self._store, self._scorer.stages.teacher)
        teacher = self._scorer.stages.teacher
        by_paths = f"teacher: contexts are scored one path at a time: {teacher.why}"
        self.note = by_paths if teacher.attention == "paths" else ""

    def learn(self, documents: Sequence[Document], last: bool, lost: Sequence[tuple[Document, str]] = ()) -> None:
        """Some or all documents of the calibration sample; last: there are no more. lost: those that kill, and how.

        What the first worker has learned is published, and all take it: values depend on no worker's memory or misfortune.
        """
        self._recall()
        if not self._learns:
            return
        self._left_out += self._scorer.learn_calibration(documents)
        self._learned |= {document.doc_row for document in documents}
        if last:
            self._scorer.finish_calibration()
            died = [
                refusal(document, "worker_died", how) for document, how in lost if document.doc_row not in self._learned
            ]
            publish_calibration(self._store, self._plan, self._scorer.calibration.mean_rows, [*self._left_out, *died])
            self._recall()

    def _recall(self) -> None:
        if self._learns and self._store.exists(CALIBRATION):
            self._scorer.use_calibration(*read_calibration(self._store, self._plan, self._scorer.head_counts))
            self._learns = False

    def score(self, unit: Unit, documents: list[Document]) -> dict[str, float]:
        """Score and publish a unit. Returns its sums only: the targets never travel through Ray.

        A unit that is sealed by now (another actor took it over, or another command works on this output) is not scored again.
        """
        if self._learns:
            raise OutputError(f"{self._store.place(CALIBRATION)}: removed while the command ran; run it again")
        if self._store.exists(seal_name(unit.index)):
            seal = own_seal(self._store, self._plan, unit.index)
            if is_whole(self._store, seal):
                return _told(seal)
        return _told(publish(self._store, self._plan, unit, self._scorer.score_unit(documents)))

    def score_alone(self, document: Document) -> UnitResult:
        """Score one document without publishing it: for units in which some document kills its process."""
        return self._scorer.score_unit([document])


def _told(seal: Seal) -> dict[str, float]:
    """Its sums. An attempt that scored more documents than the claim leaves counted what it scored: what is sealed counts."""
    return {**seal.stats, "quarantined": float(seal.quarantined)}


def publish(out: Out, plan: Plan, unit: Unit, result: UnitResult) -> Seal:
    """Publish the result of a unit of this plan; its seal. Raises what `publish_unit` raises."""
    result = renumbered(result, plan)
    return publish_unit(
        out,
        plan,
        unit.index,
        result.products,
        result.quarantine,
        result.stats,
        calibration_sha256=result.calibration_sha256,
    )


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
    calibration = next((result.calibration_sha256 for result in results), None)
    return UnitResult(products=products, quarantine=quarantine, stats=stats, calibration_sha256=calibration)
