"""One pair of a real teacher and real tokenizers, measured in a process of its own; benchmarks/real.py starts it and prints.

Settings as JSON -> measurements as JSON. In the order in which they are made:

  loading     compiled functions; the teacher; then tokenizers and all that is derived or compiled of them; then the
              calibration
  groups      fresh documents by the engine (tokens to Parquet bytes), then the same documents by the plain forward, in turn.
              The engine goes first: what either remembers of a text helps the plain side only.
  reference   more fresh documents by the engine and by a search of a higher budget; total variation between the two

A share is plain seconds / engine seconds of the same groups. Seconds are of the clock: what else runs on the machine disturbs
them (two threads that wait for each other most of all), and then processor seconds of one thread (`cpu`) tell more.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import encoded as files
from benchmarks.convergence import TOP_K as MOST_STORED
from benchmarks.convergence import entropy, score, variation
from benchmarks.fresh import gsm8k
from benchmarks.plain import plain
from benchmarks.stage_times import StageTimes
from engine.corpus.document import Document
from engine.kernels.jit import compile_all
from engine.plan.regimes import regimes_of
from engine.plan.vocabularies import load_vocabularies
from engine.scoring.scorer import Scorer
from engine.scoring.stages import derive_stages
from engine.teacher.model import load_teacher
from schemas.runfile import RunConfig, parse_run


@dataclass(frozen=True, slots=True)
class Settings:
    """One measurement. students: folders of tokenizers, perhaps none (bytes alone); seconds: of timed groups, plain ones
    included; cold_s: engine seconds that count as the first minute; reference: documents, 0 for none."""

    name: str
    teacher: str
    students: tuple[str, ...]
    tokenizer: str = ""  # of the teacher, where it is not in its folder
    regime: str = "fast"
    bytes: bool = False
    eps: float = 0.0
    group: int = 8
    documents: int = 0  # at most so many in the groups; 0: as many as the seconds allow
    seconds: float = 120.0
    cold_s: float = 60.0
    calibration: int = 8
    reference: int = 0
    reference_budget: float = 25.0
    top_k: int = 64
    threads: int = 2
    cpu: bool = False  # processor seconds instead of the clock's
    targets: dict[str, Any] = field(default_factory=dict)  # more keys of [targets]


@dataclass(slots=True)
class Group:
    """One group of fresh documents, by both. evaluations: of the teacher, by the engine; positions: rows of all products."""

    documents: int
    tokens: int
    evaluations: int
    positions: int
    ours_s: float
    plain_s: float


def run_of(settings: Settings, **changed: Any) -> RunConfig:
    """The run file of a measurement. changed: keys of [targets]."""
    targets = {"top_k": settings.top_k, "teacher": False, "regime": settings.regime, "eps": settings.eps}
    if settings.bytes:
        targets["bytes"] = True
    table = {
        "output": "unused",
        "teacher": {"model": settings.teacher} | ({"tokenizer": settings.tokenizer} if settings.tokenizer else {}),
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [
            {"name": f"s{i}", "tokenizer": path} for i, path in enumerate(settings.students or (settings.teacher,))
        ],
        "targets": targets | settings.targets | changed,
    }
    run = parse_run(table, base_dir=Path.cwd())
    # a run file names at least one student; bytes alone are measured without
    return run if settings.students else run.model_copy(update={"student": ()})


class Measurement:
    """All of one pair. `told`: what is known so far, as JSON values."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.told = settings, dict[str, Any](asdict(settings))
        torch.set_num_threads(settings.threads)
        self.now = time.process_time if settings.cpu else time.perf_counter
        self.corpus = gsm8k()
        self.calibration = self.corpus.take(settings.calibration)
        run = run_of(settings)
        self._compare("code_s", compile_all)
        begin = self.now()
        known = load_vocabularies(run)
        vocabularies_s = self.now() - begin
        begin = self.now()
        self.teacher = load_teacher(run.teacher, run.locate(run.teacher.model), tokenizer_end=known.teacher.eos_id)
        self.told["teacher_s"] = self.now() - begin
        self.told["teacher_gib"] = resident_gib()
        self.known, self.regimes = known, regimes_of(run, known.teacher, known.students)
        begin = self.now()
        self.scorer = self._scorer(run)
        self.told["derive_s"] = vocabularies_s + self.now() - begin
        self.facts = files.facts_of(self.scorer)
        self._compare("calibrate_s", lambda: self.scorer.calibrate(self.calibration))

    def _compare(self, name: str, work: Any) -> None:
        begin = self.now()
        work()
        self.told[name] = self.now() - begin
        tell(f"{self.settings.name}: {name} {self.told[name]:.1f}")

    def _scorer(self, run: RunConfig) -> Scorer:
        return Scorer(run, derive_stages(run, self.known, self.teacher, self.regimes))

    def groups(self) -> None:
        """The timed part."""
        settings, groups = self.settings, list[Group]()
        self.is_steady = False  # the last group
        self._plain(self.calibration[:2])  # the model's first pass, which makes what it keeps
        began = self.now()
        with StageTimes() as times:
            while not groups or self.now() - began < settings.seconds:
                count = settings.group
                if settings.documents:
                    count = min(count, settings.documents - sum(group.documents for group in groups))
                if count <= 0:
                    break
                groups.append(
                    self._group(self.corpus.take(count), times, is_steady=_seconds(groups) >= settings.cold_s)
                )
        self._tell_groups(groups)
        spent = times.cpu if settings.cpu else times.seconds
        ours = sum(group.ours_s for group in groups if group in self.steady)
        tokens = sum(group.tokens for group in self.steady)
        self.told["stages_us"] = {name: 1e6 * s / tokens for name, s in spent.items()}
        self.told["stages_us"]["other"] = 1e6 * (ours - sum(spent.values())) / tokens
        self.told["peak_gib"] = peak_gib()

    def _group(self, documents: list[Document], times: StageTimes, *, is_steady: bool) -> Group:
        if not (is_steady and self.is_steady):
            times.reset()
        self.is_steady = is_steady
        begin = self.now()
        result = self.scorer.score_unit(documents)
        sizes = {product: len(data) for product, data in files.encoded(result.products, self.facts).items()}
        ours_s = self.now() - begin
        if result.quarantine:
            raise SystemExit(f"{self.settings.name}: documents in quarantine: {result.quarantine[:3]}")
        after = (dict(times.seconds), dict(times.cpu))
        begin = self.now()
        tokens = self._plain(documents)
        plain_s = self.now() - begin
        for clock, values in zip((times.seconds, times.cpu), after, strict=True):  # the plain side is no stage
            clock.clear()
            clock.update(values)
        if "bytes_a_token" not in self.told:
            self.told["bytes_a_token"] = sum(sizes.values()) / tokens
        stats = result.stats
        positions = sum(int(value) for name, value in stats.items() if name.endswith(".positions"))
        group = Group(len(documents), tokens, int(stats["teacher_evaluations"]), positions, ours_s, plain_s)
        tell(
            f"{self.settings.name}: {group.tokens} tokens, ours {tokens / ours_s:,.0f} tokens/s, plain {tokens / plain_s:,.0f}, "
            f"share {plain_s / ours_s:.2f}, {peak_gib():.1f} GiB"
        )
        return group

    def _plain(self, documents: list[Document]) -> int:
        return plain(
            self.teacher,
            self.known.teacher,
            documents,
            top_k=self.settings.top_k,
            batch_tokens=self.scorer.stages.run.teacher.batch_tokens,
        )

    def _tell_groups(self, groups: list[Group]) -> None:
        """Shares of the first group, of the first minute, and of the steady state behind it."""
        minute, spent = list[Group](), 0.0
        for group in groups:
            if spent >= self.settings.cold_s:
                break
            minute.append(group)
            spent += group.ours_s
        steady = groups[len(minute) :]
        self.told["steady_is_cold"] = not steady
        self.steady = steady or groups[1:] or groups
        parts = {"first": groups[:1], "minute": minute, "steady": self.steady}
        for name, part in parts.items():
            tokens, ours_s = sum(group.tokens for group in part), _seconds(part)
            self.told[f"{name}_tokens_per_s"] = tokens / ours_s
            self.told[f"{name}_plain_tokens_per_s"] = tokens / sum(group.plain_s for group in part)
            self.told[f"{name}_share"] = sum(group.plain_s for group in part) / ours_s
        self.told["steady_share_median"] = statistics.median(g.plain_s / g.ours_s for g in self.steady)
        self.told["evaluations_per_token"] = sum(g.evaluations for g in self.steady) / sum(
            g.tokens for g in self.steady
        )
        self.told["groups"] = [asdict(group) for group in groups]

    def distance(self) -> None:
        """Total variation to a search that may spend `reference_budget` evaluations a token, per student."""
        documents = self.corpus.take(self.settings.reference)
        fast = self._scorer(run_of(self.settings, top_k=MOST_STORED))
        budget = {"regime": "beam", "tolerance": 1e-3, "max_nodes_per_token": self.settings.reference_budget}
        run = run_of(self.settings, top_k=MOST_STORED, **budget)
        self.regimes = regimes_of(run, self.known.teacher, self.known.students)
        best = self._scorer(run)
        for scorer in (fast, best):
            if scorer.stages.beam_search is not None:  # compiled products read no calibration
                scorer.use_calibration(self.scorer.calibration, "")
        begin = time.perf_counter()
        ours = score(fast, documents)
        tell(f"{self.settings.name}: reference of {len(documents)} documents begins")
        reference = score(best, documents)
        self.told["reference_s"] = time.perf_counter() - begin
        found = {}
        for product, rows in reference.items():
            if product not in self.scorer.stages.aligners:
                continue
            tv, nats = variation(ours[product], rows, self.known.students[product].size), entropy(rows)
            low = nats < 1.0
            found[product] = {
                "positions": len(tv),
                "tv_mean": float(tv.mean()),
                "tv_99": float(np.quantile(tv, 0.99)),
                "tv_below_1_nat": float(tv[low].mean()) if low.any() else None,
                "err_mean": float(ours[product].err.mean()),
                "reference_err_mean": float(rows.err.mean()),
                "reference_evaluations_per_position": rows.per_token,
            }
        self.told["distance"] = found


def _seconds(groups: list[Group]) -> float:
    return sum(group.ours_s for group in groups)


def resident_gib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def peak_gib() -> float:
    """The most that was resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def tell(text: str) -> None:
    """For whoever waits: standard output has nothing but the result."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    given = json.loads(sys.argv[1])
    settings = Settings(**(given | {"students": tuple(given["students"])}))
    measurement = Measurement(settings)
    measurement.groups()
    if settings.reference and measurement.scorer.stages.aligners:
        measurement.distance()
    print(json.dumps(measurement.told))


if __name__ == "__main__":
    main()
