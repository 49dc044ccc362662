"""The main job: a run file goes in, finished shards and what a person is told of them come out.

run file -> corpus scan -> plan (fingerprint) -> what is missing in the output -> Ray pool -> manifest -> summary

Safe to kill at any moment and to run again: published units stay, only the rest is done. Progress goes to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.card.describe import describe
from engine.corpus.document import Document, Unit
from engine.corpus.scan import CorpusScan, scan_corpus
from engine.corpus.units import read_units, sample
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.dataset.layout import MANIFEST, load_plan, unsealed_units
from engine.dataset.sidecars import CALIBRATION, has_calibration
from engine.dataset.store import PosixStore, Store, open_store
from engine.kernels.jit import compile_all, is_compiled
from engine.plan.make_plan import ENGINE_VERSION, known_files, make_plan
from engine.plan.pin import pin
from engine.plan.retry import check_corpus, find_retry, read_retried, retry_plan
from engine.plan.teacher_split import IN_RANKS, split_of
from engine.plan.token_files import publish_tokens
from engine.plan.vocabularies import load_teacher_vocabulary
from engine.scoring.room import check_on_this_machine
from engine.scoring.teacher_here import follow_leader
from jobs.pool.events import Done, Notice, Ready, Salvaged, Tick
from jobs.pool.ray_cluster import address_of, connect
from jobs.pool.ray_pool import Pool
from jobs.pool.unit_worker import UnitWorker, join_outcomes, publish
from jobs.run.budget import Budget
from jobs.run.estimates import hidden_size_note
from jobs.run.progress import Counts, Display
from jobs.run.summary import Outcome
from schemas.counts import counted
from schemas.errors import OutputError, RunFileError
from schemas.manifest import Plan
from schemas.products import HIDDEN
from schemas.runfile import RunConfig
from schemas.settings import QuarantineConfig

_EPHEMERAL = "/runtime_resources/working_dir_files/"  # where Ray unpacks what `ray job submit --working-dir` ships


def score(run: RunConfig, address: str | None = None, *, log_json: bool = False) -> Outcome:
    """Do all that is missing of the run. log_json: progress as JSON, an object a line. Raises TargetsmithError; what is published
    by then stays."""
    if _EPHEMERAL in str(run.output):
        raise RunFileError(
            f"output = {Path(run.output).name!r} would lie in Ray's copy of the working folder, which Ray deletes. Under "
            f"`ray job submit` write an absolute path on storage that all nodes share, or a URL: output = '/shared/...'"
        )
    address_of(run.ray, address)  # before minutes go into reading
    counts = Counts()
    with Display(counts, sys.stderr, as_json=log_json) as display:
        scan, plan = _planned(run, address, display)
        return _score(Job(run, scan, plan, open_store(run.output)), address, counts, display)


def retry_quarantined(run: RunConfig, address: str | None = None, *, log_json: bool = False) -> Outcome | None:
    """Score the documents that a finished run has in quarantine again, into an output beside it (engine/plan/retry.py); what a
    retry before has left is taken from there. None: nothing is in quarantine. Raises TargetsmithError."""
    address_of(run.ray, address)
    store, rows = find_retry(run.output)
    if not rows:
        return None
    counts = Counts()
    with Display(counts, sys.stderr, as_json=log_json) as display:
        base = load_plan(run.output)
        scan, whole = _planned(run, address, display)
        check_corpus(whole, base)
        display.say(f"retrying {counted(len(rows), 'document')} in quarantine in {run.output}")
        if changed := base.difference(whole):
            display.say("other than that run: " + "; ".join(changed))
        run = run.model_copy(update={"output": store.root if isinstance(store, PosixStore) else str(store)})
        plan = retry_plan(whole, base.fingerprint, scan, rows)
        return _score(Job(run, scan, plan, store, rows), address, counts, display)


def _planned(run: RunConfig, address: str | None, display: Display) -> tuple[CorpusScan, Plan]:
    """The corpus is read once from end to end, and so are the teacher's files: both may take minutes."""
    with display.stepping("reading the corpus"):
        scan = scan_corpus(run.corpus, run.base_dir, known_files(run))
    scan.check_some_readable()
    if not is_compiled():  # else the first of them that a tokenizer asks for would compile them all, without a word
        with display.stepping("compiling functions, once on this machine") as tell:
            compile_all(tell)
    with display.stepping("reading the teacher's files and the tokenizers"):
        if address_of(run.ray, address) == "local" and not open_store(run.output).exists(MANIFEST):
            if hint := check_on_this_machine(
                run, sum(1 for _ in scan.units())
            ):  # on a cluster each actor looks where it is
                display.say(f"note: {hint}")
        return scan, make_plan(run, scan)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be scored, and where to. rows: of the corpus, in a retry."""

    run: RunConfig
    scan: CorpusScan
    plan: Plan
    store: Store
    rows: list[int] | None = None

    def units(self, missing: set[int]) -> Iterator[tuple[Unit, Sequence[Document]]]:
        if self.rows is None:
            return read_units(self.run.corpus, self.scan, missing, unread=True)
        return read_retried(self.run.corpus, self.scan, self.rows, missing)

    def budget(self) -> Budget:
        """A retry has none: its documents are known to be bad."""
        return Budget(
            self.store, self.plan, self.run.quarantine if self.rows is None else QuarantineConfig(max_share=1.0)
        )


def _score(job: Job, address: str | None, counts: Counts, display: Display) -> Outcome:
    run, plan, store = job.run, job.plan, job.store
    sealed = set(open_output(store, plan))
    publish_tokens(store, run, plan)
    counts.units_total, counts.units_before = len(plan.units), len(sealed)
    counts.documents_left = sum(unit.n_rows for unit in plan.units if unit.index not in sealed)
    display.say(f"run {plan.fingerprint[:12]} -> {store}")
    made = ", ".join(f"{name} ({facts.regime})" for name, facts in plan.products.items())
    display.say(f"products: {made}; {run.targets.semantics}")
    for note in dict.fromkeys(note for facts in plan.products.values() for note in facts.notes):
        display.say(f"note: {note}")
    if sealed:
        display.say(f"resuming: {len(sealed):,} of {counted(len(plan.units), 'unit')} done already")
    if run.targets.hidden:
        display.say(_hidden_note(run, job.scan, plan))
    budget = job.budget()
    if sealed and not store.exists(MANIFEST):
        budget.resume()
    if len(sealed) < len(plan.units):
        work(job, {unit.index for unit in plan.units} - sealed, budget, counts, display, address)
    with display.stepping("checking the units and writing the manifest"):
        described = partial(describe, run=run)
        return Outcome(store, finish(store, plan, engine_version=ENGINE_VERSION, describe=described), counts, plan)


def work(job: Job, missing: set[int], budget: Budget, counts: Counts, display: Display, address: str | None) -> None:
    """Score all units that have no seal. Raises QuarantineError when too many documents are bad."""
    run, plan, store = pin(job.run), job.plan, job.store
    said = {""}
    with ExitStack() as open_ray:
        with display.stepping("starting Ray"):
            where = open_ray.enter_context(connect(run.ray, address))
        display.say(f"Ray ({where}) is up; each actor loads the teacher")
        calibration = None  # its documents
        if has_calibration(plan) and not store.exists(CALIBRATION):
            calibration = sample(run.corpus, job.scan, run.targets.calibration_documents)
        follow = partial(follow_leader, run) if split_of(run) in IN_RANKS else None
        pool = Pool(
            partial(UnitWorker, run, plan),
            run.ray,
            local=where == "local",
            sample=calibration,
            run=plan.fingerprint[:12],
            follow=follow,
        )
        with closing(pool.run(job.units(missing), len(missing))) as events:
            for event in events:
                if isinstance(event, Notice):
                    display.say(event.text)
                elif isinstance(event, Salvaged):
                    joined = join_outcomes(plan, event.outcomes)
                    seal = publish(store, plan, event.unit, joined)
                    counts.add(event.unit.index, joined.stats)
                    budget.add(event.unit.index, seal.quarantined)
                elif isinstance(event, Done):
                    counts.add(event.unit.index, event.stats, event.seconds)
                    budget.add(event.unit.index, int(event.stats["quarantined"]))
                elif isinstance(event, Ready):
                    counts.actor_is_ready()
                    if event.note not in said:
                        said.add(event.note)
                        display.say(event.note)
                steps = event.steps if isinstance(event, Tick) else None
                display.update(steps, unit_done=isinstance(event, Done | Salvaged))
    unseen = unsealed_units(store, plan)
    if unseen:
        raise OutputError(
            f"{store}: the actors published {counted(len(missing), 'unit')}, of which {len(unseen):,} cannot be seen here "
            f"(first: unit {unseen[0]}). All nodes must share the output: name a folder on a shared disk, or a URL that is "
            "the same store everywhere."
        )


def _hidden_note(run: RunConfig, scan: CorpusScan, plan: Plan) -> str:
    vocabulary = load_teacher_vocabulary(run)
    documents = sum(unit.n_rows for unit in plan.units)
    first = sample(run.corpus, scan, run.targets.calibration_documents or 64)
    return hidden_size_note(first, documents, vocabulary, plan.products[HIDDEN].hidden_size)
