"""The plan of a run for a person who has not begun it: corpus and tokenizers read, a few documents tried, the rest worked out.

run file -> corpus scan -> plan, memory of an actor -> trial (jobs/run/trial.py) -> Told
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from engine.corpus.scan import CorpusScan, scan_corpus
from engine.corpus.units import sample as first_documents
from engine.kernels.jit import compile_all, is_compiled
from engine.plan.estimate import PEAK_TFLOPS, Cluster, Estimate, Trial, estimate, worked_out_rate
from engine.plan.make_plan import known_files, make_plan
from engine.plan.regimes import why_of
from engine.plan.teacher_fit import needs_of
from engine.plan.teacher_size import TeacherSize, teacher_size
from engine.plan.untried import untried
from engine.plan.vocabularies import load_vocabularies
from engine.scoring.room import actors_here, at_once, check_on_this_machine
from jobs.run.progress import Counts, Display
from jobs.run.trial import try_run
from schemas.counts import counted
from schemas.errors import RunFileError, TeacherError
from schemas.manifest import Plan
from schemas.runfile import RunConfig
from schemas.settings import StudentConfig

WIDE_OPEN = 0.1
"""Expected total variation with nothing spent from which a pair of tokenizers is said to be a hard one."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says. students: tokenizers instead of the run file's; price: of a GPU (or actor) for an hour."""

    sample: int
    students: tuple[str, ...] = ()
    gpus: float | None = None
    gpu: str | None = None
    tokens_per_s: float | None = None
    price: float | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What is known before the run. why: of each student's regime; memory: of one actor, (what, bytes); tried: documents of the
    trial, 0 where there was none, and then sizes are by rule of thumb. examples: of each reason for quarantine, a detail."""

    output: str
    estimate: Estimate
    why: Mapping[str, str]
    memory: tuple[tuple[str, int], ...]
    tried: int
    examples: Mapping[str, str]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """All of it."""
        found = {**asdict(self), "memory": dict(self.memory)}
        return json.dumps(found, ensure_ascii=False, indent=1)


def plan_run(run: RunConfig, asked: Asked, stream: TextIO) -> Told:
    """Raises RunFileError for what is asked in a wrong way, and what `score` would raise before it begins."""
    if asked.gpu is not None and asked.gpu.lower() not in PEAK_TFLOPS:
        raise RunFileError(
            f"--gpu: got {asked.gpu!r}; want one of {', '.join(PEAK_TFLOPS)}, or --tokens-per-s where you know the speed"
        )
    if asked.students:
        run = run.model_copy(update={"student": _students(asked.students)})
    counts = Counts()
    with Display(counts, stream) as display:
        with display.stepping("reading the corpus"):
            scan = scan_corpus(run.corpus, run.base_dir, known_files(run))
        scan.check_some_readable()
        if not is_compiled():
            with display.stepping("compiling functions, once on this machine") as tell:
                compile_all(tell)
        with display.stepping("reading the tokenizers"):
            known = load_vocabularies(run)
            plan = make_plan(run, scan, known=known, sha256=lambda file: f"{file.stat().st_size} bytes, not read")
            why = {
                p: why_of(run.targets, plan.products[p].regime, known.teacher, known.students[p])
                for p in known.students
            }
        notes = list(dict.fromkeys(note for facts in plan.products.values() for note in facts.notes))
        size, tried, examples = teacher_size(run, on_cpu=_on_cpu(run, asked)), 0, dict[str, str]()
        trial = None
        if asked.sample and _fits(run, scan, notes):
            trial, examples = try_run(run, scan, plan, asked.sample, counts, display)
            tried = trial.documents
        if trial is None:
            trial = untried(plan, known, first_documents(run.corpus, scan, 64))
    told = estimate(
        [unit.n_rows for unit in plan.units],
        sum(file.text_bytes for file in scan.files),
        {name: facts.regime for name, facts in plan.products.items()},
        trial,
        _cluster(run, asked, trial, size, len(known.students)),
    )
    told = replace(told, quarantined=_quarantined(scan, told))
    needs = needs_of(size, at_once(run, size), "cpu" if _on_cpu(run, asked) else "cuda")
    return Told(str(run.output), told, why, tuple(needs.lines()), tried, examples, (*notes, *_warnings(told, plan)))


def _fits(run: RunConfig, scan: CorpusScan, notes: list[str]) -> bool:
    """Whether the teacher, whose size is known, fits on this machine; what there is to be said goes to the notes."""
    try:
        if hint := check_on_this_machine(run, scan.n_units):
            notes.append(hint)
        return True
    except TeacherError as error:
        notes.append(f"nothing was scored to measure: {error}")
        return False


def _students(tokenizers: tuple[str, ...]) -> tuple[StudentConfig, ...]:
    """Tables for tokenizers that were named on the command line; folders are of the place where it was called."""
    found = []
    for number, place in enumerate(tokenizers, 1):
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(place).name).lstrip("._-") or f"s{number}"
        if name in {one.name for one in found}:
            name = f"{name}-{number}"
        found.append(StudentConfig(name=name, tokenizer=str(Path(place).absolute()) if Path(place).exists() else place))
    return tuple(found)


def _on_cpu(run: RunConfig, asked: Asked) -> bool:
    import torch

    return run.teacher.device == "cpu" or (not asked.gpus and not asked.gpu and not torch.cuda.is_available())


def _cluster(run: RunConfig, asked: Asked, trial: Trial, size: TeacherSize, students: int) -> Cluster:
    """Where the run is to be, from what is asked: this machine where nothing is."""
    each = run.ray.num_gpus if run.ray.num_gpus is not None else 1.0
    gpus = asked.gpus or (each if asked.gpu else 0.0)
    if not gpus:
        return Cluster(actors_here(run), tokens_per_s=asked.tokens_per_s, how=_given(asked), price=asked.price)
    actors = max(1, int(gpus / each + 1e-6)) if each else 1
    rate, how = asked.tokens_per_s, _given(asked)
    if rate is None and asked.gpu is not None:
        evaluations = trial.stats["teacher_evaluations"] / max(1.0, trial.stats["teacher_tokens"])
        rate, how = worked_out_rate(asked.gpu.lower(), each, size.parameters, evaluations, students)
    return Cluster(actors, gpus, rate, how, asked.price)


def _given(asked: Asked) -> str:
    return "" if asked.tokens_per_s is None else "as --tokens-per-s says"


def _quarantined(scan: CorpusScan, told: Estimate) -> dict[str, int]:
    """What the scan has counted is known exactly; the rest is carried over from the trial."""
    known = {reason: count for reason, (count, _) in scan.problems.items()}
    return {**told.quarantined, **known}


def _warnings(told: Estimate, plan: Plan) -> list[str]:
    found = []
    if told.expected_tv.get("0", 0.0) > WIDE_OPEN:
        found.append(
            f"much is open between these tokenizers: expected total variation {told.expected_tv['0']:.3f} with nothing spent"
        )
    if sum(told.quarantined.values()) > told.documents / 2:
        found.append("more than half of the documents would go to quarantine: the run would end with exit code 3")
    if len(plan.units) < told.actors:
        found.append(
            f"{counted(len(plan.units), 'unit')} for {counted(told.actors, 'actor')}: lower [corpus] unit_bytes or unit_documents"
        )
    return found
