"""targetsmith score RUN.toml: the main job, from the run file to finished shards.

run file -> corpus scan -> plan (fingerprint) -> what is missing in the output -> Ray pool -> manifest -> summary

Safe to kill at any moment and to run again: published units stay, only the rest is done. Progress goes to standard
error, the summary to standard output.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from engine.calibrate import sample
from engine.corpus import CorpusScan, Document, Unit, read_units, scan_corpus
from engine.finish import finish
from engine.head import hidden_size_note
from engine.means import MEANS, learns
from engine.outfolder import MANIFEST, load_plan, sealed_quarantine, unsealed_units
from engine.plan import ENGINE_VERSION, make_plan, pin
from engine.retry import check_corpus, find_retry, read_retried, retry_plan
from engine.shards import open_output
from engine.store import PosixStore, Store, open_store
from engine.vocab import load_vocabulary
from jobs.budget import Budget
from jobs.events import Done, Notice, Ready, Salvaged
from jobs.progress import Counts, Display, clock
from jobs.rayconnect import connect
from jobs.raypool import Pool
from jobs.worker import UnitWorker, join_outcomes, publish
from schemas.errors import OutputError, RunFileError
from schemas.manifest import REASONS, REGIMES, Manifest, Plan
from schemas.runfile import RunConfig
from schemas.settings import QuarantineConfig

_EPHEMERAL = "/runtime_resources/working_dir_files/"  # where Ray unpacks what `ray job submit --working-dir` ships


_PIPE_WIDTH = 110  # columns where the output is not a terminal
_COLUMNS = ("docs", "positions", "scored", "stored mass", "width", "non-canonical", "bytes/pos")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run: where it lies, its manifest, and what this command itself did for it."""

    store: Store
    manifest: Manifest
    counts: Counts


def score(run: RunConfig, address: str | None = None) -> Outcome:
    """Do all that is missing of the run. Raises TargetsmithError; what is published by then stays."""
    if _EPHEMERAL in str(run.output):
        raise RunFileError(
            f"output = {Path(run.output).name!r} would lie in Ray's copy of the working folder, which Ray deletes. Under "
            f"`ray job submit` write an absolute path on storage that all nodes share, or a URL: output = '/shared/...'"
        )
    scan = scan_corpus(run.corpus, run.base_dir)
    return _score(_Job(run, scan, make_plan(run, scan), open_store(run.output)), address, [])


def retry_quarantined(run: RunConfig, address: str | None = None) -> Outcome | None:
    """Score the documents that a finished run has in quarantine again, into an output beside it (engine/retry.py); what a
    retry before has left is taken from there. None: nothing is in quarantine. Raises TargetsmithError."""
    store, rows = find_retry(run.output)
    if not rows:
        return None
    scan, base = scan_corpus(run.corpus, run.base_dir), load_plan(run.output)
    whole = make_plan(run, scan)
    check_corpus(whole, base)
    told = [f"retrying {len(rows):,} documents that are in quarantine in {run.output}"]
    if changed := base.difference(whole):
        told.append("other than that run: " + "; ".join(changed))
    run = run.model_copy(update={"output": store.root if isinstance(store, PosixStore) else str(store)})
    return _score(_Job(run, scan, retry_plan(whole, base.fingerprint, scan, rows), store, rows), address, told)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be scored, and where to. rows: of the corpus, in a retry."""

    run: RunConfig
    scan: CorpusScan
    plan: Plan
    store: Store
    rows: list[int] | None = None

    def units(self, missing: set[int]) -> Iterator[tuple[Unit, list[Document]]]:
        if self.rows is None:
            return read_units(self.run.corpus, self.scan, missing)
        return read_retried(self.run.corpus, self.scan, self.rows, missing)

    def budget(self) -> Budget:
        """A retry has none: its documents are known to be bad."""
        return Budget(
            self.store, self.plan, self.run.quarantine if self.rows is None else QuarantineConfig(max_share=1.0)
        )


def _score(job: _Job, address: str | None, told: list[str]) -> Outcome:
    run, plan, store = job.run, job.plan, job.store
    sealed = set(open_output(store, plan))
    counts = Counts(units_total=len(plan.units), units_before=len(sealed))
    with Display(counts, sys.stderr) as display:
        display.say(f"run {plan.fingerprint[:12]} -> {store}")
        for line in told:
            display.say(line)
        made = ", ".join(f"{name} ({facts.regime})" for name, facts in plan.products.items())
        display.say(f"products: {made}; {run.targets.semantics}")
        if sealed:
            display.say(f"resuming: {len(sealed)} of {len(plan.units)} units are done already")
        if run.targets.hidden:
            display.say(_hidden_note(run, job.scan, plan))
        budget = job.budget()
        if sealed and not store.exists(MANIFEST):
            budget.resume()
        if len(sealed) < len(plan.units):
            _work(job, {unit.index for unit in plan.units} - sealed, budget, counts, display, address)
    return Outcome(store, finish(store, plan, engine_version=ENGINE_VERSION), counts)


def _work(job: _Job, missing: set[int], budget: Budget, counts: Counts, display: Display, address: str | None) -> None:
    """Score all units that have no seal. Raises QuarantineError when too many documents are bad."""
    run, plan, store = pin(job.run), job.plan, job.store
    said = {""}
    with connect(run.ray, address) as where:
        display.say(f"Ray ({where}) is up; each actor loads the teacher")
        learned = None
        if learns(plan) and not store.exists(MEANS):
            learned = sample(run.corpus, job.scan, run.targets.calibration_documents)
        pool = Pool(partial(UnitWorker, run, plan), run.ray, local=where == "local", lessons=learned)
        with closing(pool.run(job.units(missing), len(missing))) as events:
            for event in events:
                if isinstance(event, Notice):
                    display.say(event.text)
                elif isinstance(event, Salvaged):
                    joined = join_outcomes(plan, event.outcomes)
                    seal = publish(store, plan, event.unit, joined)
                    counts.add(joined.stats)
                    budget.add(event.unit.index, seal.quarantined)
                elif isinstance(event, Done):
                    counts.add(event.stats)
                    budget.add(event.unit.index, int(event.stats["quarantined"]))
                elif isinstance(event, Ready):
                    counts.actor_is_ready()
                    if event.note not in said:
                        said.add(event.note)
                        display.say(event.note)
                display.update(unit_done=isinstance(event, Done | Salvaged))
    unseen = unsealed_units(store, plan)
    if unseen:
        raise OutputError(
            f"{store}: the actors published {len(missing)} units, but {len(unseen)} of them are not visible here "
            f"(first: unit {unseen[0]}). All nodes must share the output: name a folder on a shared disk, or a URL that is "
            "the same store everywhere."
        )


def _hidden_note(run: RunConfig, scan: CorpusScan, plan: Plan) -> str:
    teacher = run.teacher
    vocabulary = load_vocabulary(
        run.locate(teacher.tokenizer or teacher.model),
        revision=teacher.revision if teacher.tokenizer is None else None,
        trust_remote_code=teacher.trust_remote_code,
    )
    documents = sum(unit.n_rows for unit in plan.units)
    first = sample(run.corpus, scan, run.targets.calibration_documents or 64)
    return hidden_size_note(first, documents, vocabulary, plan.products["hidden"].hidden_size)


def print_summary(outcome: Outcome, stream: TextIO) -> None:
    """What came out, for a person: the products, the quarantine, the speed."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    manifest, counts, store = outcome.manifest, outcome.counts, outcome.store
    console.print(f"{store}: run {manifest.fingerprint[:12]} is complete", markup=False)
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
        counted = (f"{total.rows:,}", f"{total.positions:,}", f"{scored:,.0f}")
        facts = manifest.products[name]
        made = facts.regime if facts.codec == "topk" else f"{facts.regime}, {facts.codec}"
        table.add_row(name, made, *counted, mass, width, outside, size)
    console.print(table)
    console.print(
        "Means over scored positions: stored mass, probability of what is stored; width, certified width; non-canonical, the\n"
        "teacher's mass on tokens that no text has there. Regimes:"
    )
    for regime in sorted({facts.regime for facts in manifest.products.values()}):
        console.print(f"  {regime}: {REGIMES[regime]}", markup=False)
    console.print(
        f"{len(manifest.shards):,} units, {manifest.documents:,} documents, {manifest.quarantined:,} in quarantine"
    )
    for reason, count in quarantined_by_reason(store, manifest).most_common():
        console.print(f"  {count:6,}  {reason}: {REASONS[reason]}", markup=False)
    if retried := manifest.stats.get("oom_retries"):
        console.print(f"{retried:,.0f} times memory ran out and less was tried: lower [teacher] batch_tokens")
    if manifest.quarantined:
        console.print(f"  each with its place and detail: {store.place('_engine/quarantine')}/*.jsonl", markup=False)
    if counts.units:
        rate = f"{counts.tokens:,} teacher tokens, {counts.tokens_per_s:,.0f} tokens/s"
        console.print(f"this command: {counts.units:,} units, {rate}, {clock(counts.seconds)} wall time")
    else:
        console.print("this command: nothing to do, the run was complete")


def quarantined_by_reason(store: Store, manifest: Manifest) -> Counter[str]:
    """Reason -> number of documents."""
    counts: Counter[str] = Counter()
    for shard in manifest.shards:
        records = sealed_quarantine(store, shard) if shard.quarantined else []
        counts.update(record["reason"] for record in records)
    return counts


if __name__ == "__main__":
    from jobs.cli import main  # the command line lives in one place; it imports this file by its own name

    main(["score", *sys.argv[1:]])
