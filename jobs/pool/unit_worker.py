"""What runs inside an actor: a unit of documents goes in, its shards lie in the output, its sums come out. Knows no Ray."""

from __future__ import annotations

import threading
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
from jobs.pool.events import Death, Report, Step, silent
from schemas.errors import OutputError
from schemas.manifest import Plan, Seal, add_stats
from schemas.runfile import RunConfig


class UnitWorker:
    """Holds the teacher for as long as its process lives. report: told what it is at. sample: the calibration sample; without
    it the documents come by `calibrate`, unless the output has the calibration already."""

    def __init__(
        self, run: RunConfig, plan: Plan, sample: Sequence[Document] | None = None, *, report: Report = silent
    ) -> None:
        # Ray reserves cores, it does not enforce them: without this every actor would use all cores of the machine.
        torch.set_num_threads(max(1, int(run.ray.num_cpus)))
        self._store, self._plan, self._report = open_store(run.output), plan, report
        self._scorer = Scorer(
            run, progress=lambda done, total, what: report(Step(what, done, total)), regimes=plan.regimes
        )
        self._lacks_calibration, self._left_out = has_calibration(plan), list[dict[str, Any]]()
        self._scoring = threading.Lock()  # the teacher and what is remembered between groups are for one unit at a time
        self._sampled: set[int] = set()  # documents of the sample that were read, by doc_row
        self._use_published()
        if sample is not None:
            self.calibrate(sample, True)
        if run.targets.hidden:
            publish_head(self._store, self._scorer.stages.teacher)
        teacher = self._scorer.stages.teacher
        ways = {"paths": "one path at a time", "states": "over kept states"}
        way = ways.get(teacher.attention)
        notes = [f"contexts are scored {way}: {teacher.why}"] if way else []
        if teacher.noise is not None:
            notes.append(
                f"noise of its kernels {teacher.noise.mean:.2g} on average, {teacher.noise.most:.2g} at most (total variation "
                "between batches)"
            )
        self.note = f"teacher: {'; '.join(notes)}" if notes else ""

    def calibrate(self, documents: Sequence[Document], last: bool, lost: Sequence[tuple[Document, str]] = ()) -> None:
        """Some or all documents of the calibration sample; last: there are no more. lost: those that kill, and how.

        What the first worker has measured is published, and all take it: values depend on no worker's memory or misfortune.
        """
        self._use_published()
        if not self._lacks_calibration:
            return
        for done, document in enumerate(documents):
            self._report(Step("calibrating", done, len(documents)))
            self._left_out += self._scorer.learn_calibration([document])
            self._sampled.add(document.doc_row)
        if last:
            self._scorer.finish_calibration()
            died = [
                refusal(document, "worker_died", how) for document, how in lost if document.doc_row not in self._sampled
            ]
            publish_calibration(self._store, self._plan, self._scorer.calibration.mean_rows, [*self._left_out, *died])
            self._use_published()

    def _use_published(self) -> None:
        """Take the calibration that lies in the output, if there is one."""
        if self._lacks_calibration and self._store.exists(CALIBRATION):
            self._scorer.use_calibration(*read_calibration(self._store, self._plan, self._scorer.head_counts))
            self._lacks_calibration = False

    def score(self, unit: Unit, documents: Sequence[Document]) -> dict[str, float]:
        """Score and publish a unit. Returns its sums only: the targets never travel through Ray.

        May be called from two threads: one unit is scored at a time, and published while the next one is scored. A unit that is
        sealed by now (another actor took it over, or another command works on this output) is not scored again.
        """
        if self._lacks_calibration:
            raise OutputError(f"{self._store.place(CALIBRATION)}: removed while the command ran; run it again")
        if self._store.exists(seal_name(unit.index)):
            seal = own_seal(self._store, self._plan, unit.index)
            if is_whole(self._store, seal):
                return _sums(seal)

        def report(done: int, tokens: int) -> None:
            self._report(Step("scoring", done, len(documents), unit.index, tokens))

        read = list(documents)
        with self._scoring:
            report(0, 0)
            result = self._scorer.score_unit(read, report)
        return _sums(publish(self._store, self._plan, unit, result))  # encoded and written while the next one is scored

    def score_alone(self, document: Document) -> UnitResult:
        """Score one document without publishing it: for units in which some document kills its process."""
        return self._scorer.score_unit([document])


def _sums(seal: Seal) -> dict[str, float]:
    """The sums of a sealed unit. An attempt that scored more documents than the claim leaves has counted them, too: what is
    sealed counts."""
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


def join_outcomes(plan: Plan, outcomes: Sequence[tuple[Document, UnitResult | Death]]) -> UnitResult:
    """One unit again from its documents scored one by one; Death instead of a result quarantines the document."""
    results = [outcome for _, outcome in outcomes if not isinstance(outcome, Death)]
    stats: dict[str, float] = {}
    for result in results:
        add_stats(stats, result.stats)
    quarantine = [record for result in results for record in result.quarantine]
    for document, outcome in outcomes:
        if isinstance(outcome, Death):
            quarantine.append(refusal(document, "worker_died", outcome.how))
            add_stats(stats, {"documents": 1.0, "quarantined": 1.0})
    products = {
        name: pa.concat_tables([facts.schema_of_rows.empty_table(), *(result.products[name] for result in results)])
        for name, facts in plan.products.items()
    }
    calibration = next((result.calibration_sha256 for result in results), None)
    return UnitResult(products=products, quarantine=quarantine, stats=stats, calibration_sha256=calibration)
