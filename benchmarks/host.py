"""What the engine alone takes, microseconds a teacher token by stage: python -m benchmarks.host

A teacher whose forward is free (benchmarks/free_teacher.py) stands behind real tokenizers, fresh GSM8K documents go through all
of scoring and into Parquet bytes, on one thread, in processor seconds. Pairs and folders as in benchmarks/real.py; qwen and
smollm2 are also found among the shared tokenizers. Columns:

  derive   seconds until the first document: tokenizers and all that is derived or compiled of them
  cold     all stages but the teacher's, over the first group
  host     steady state: tokenize, contexts, canonical, align, tables, encode and what no stage has: what a processor does,
           whatever device the teacher is on
  device   steady state: softmax, masks, push-forward, top-k, beam: passes over vocabularies, made where the teacher is
  tokens/s teacher tokens that one core would score in a second if the teacher took no time at all
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks import encoded as files
from benchmarks.free_teacher import FreeTeacher
from benchmarks.fresh import SHARED, gsm8k, texts_of
from benchmarks.real import MODELS, PAIRS, tokenizer_of
from benchmarks.real_pair import Settings, run_of
from benchmarks.stage_times import STAGES, StageTimes
from engine.kernels.jit import compile_all
from engine.plan.regimes import regimes_of
from engine.plan.vocabularies import load_vocabularies
from engine.scoring.scorer import Scorer
from engine.scoring.stages import derive_stages
from engine.teacher.model import Teacher

HOST = ("tokenize", "contexts", "canonical", "align", "tables", "encode", "other")
TEACHER = ("forward", "lm_head")
_FREE = {
    name: (f"benchmarks.free_teacher:FreeTeacher.{method}",)
    for name, method in zip(TEACHER, ("hidden", "logits"), strict=True)
}
SAMPLE = 1000
"""Documents that the teacher's bigrams are counted in: the test part, which nothing else reads before 7,473 documents."""


def folder_of(name: str) -> str:
    """A tokenizer's folder. Raises SystemExit naming what is missing."""
    for folder in (MODELS / name, SHARED / "tokenizers" / {"qwen": "qwen2.5"}.get(name, name)):
        if (folder / "tokenizer.json").is_file():
            return str(folder.resolve())
    raise SystemExit(
        f"no folder {name!r} with a tokenizer.json in TARGETSMITH_MODELS ({MODELS}) or {SHARED}/tokenizers"
    )


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One pair."""
    teacher, students, own = PAIRS[name]
    settings = Settings(
        name=name,
        teacher=folder_of(teacher),
        students=tuple(folder_of(student) for student in students),
        tokenizer=tokenizer_of(name),
        regime="auto" if own else args.regime,
        bytes=name == "qwen-bytes",
        top_k=args.top_k,
        targets=json.loads(args.targets),
    )
    run = run_of(settings)
    compile_all()  # once on a machine: no pair's
    known = load_vocabularies(run)
    free = FreeTeacher(known.teacher, islice(texts_of(SHARED / "text/gsm8k/test.jsonl"), SAMPLE))
    begin = time.process_time()
    regimes = regimes_of(run, known.teacher, known.students)
    # it has all that scoring asks of a teacher, and none of what loading asks
    scorer = Scorer(run, derive_stages(run, known, cast(Teacher, free), regimes))
    told: dict[str, Any] = {"name": name, "regime": settings.regime, "derive_s": time.process_time() - begin}
    corpus, facts = gsm8k(), files.facts_of(scorer)
    scorer.calibrate(corpus.take(args.calibration))
    with StageTimes(STAGES | _FREE) as times:
        for phase, groups in (("cold", 1), ("steady", args.groups)):
            times.reset()
            begin, tokens, evaluations = time.process_time(), 0.0, 0.0
            for _ in range(groups):
                result = scorer.score_unit(corpus.take(args.group))
                files.encoded(result.products, facts)
                if result.quarantine:
                    raise SystemExit(f"{name}: documents in quarantine: {result.quarantine[:3]}")
                tokens += result.stats["teacher_tokens"]
                evaluations += result.stats["teacher_evaluations"]
            spent = time.process_time() - begin
            stages = {stage: 1e6 * s / tokens for stage, s in times.cpu.items()}
            stages["other"] = 1e6 * (spent - sum(times.cpu.values())) / tokens
            told[phase] = {"tokens": tokens, "evaluations_per_token": evaluations / tokens, "stages_us": stages}
            # lead-in of the next phase: more text, so that what is counted last is the steady state
            if phase == "cold" and args.warm:
                scorer.score_unit(corpus.take(args.warm))
    return told


def show(told: dict[str, Any]) -> None:
    """One pair's lines."""
    cold, steady = (told[phase]["stages_us"] for phase in ("cold", "steady"))
    host = sum(us for stage, us in steady.items() if stage in HOST)
    device = sum(us for stage, us in steady.items() if stage not in (*HOST, *TEACHER))
    first = sum(us for stage, us in cold.items() if stage not in TEACHER)
    print(
        f"{told['name']:14}{told['regime']:>6}{told['derive_s']:8.1f}{first:10,.0f}{host:9,.1f}{device:10,.0f}"
        f"{1e6 / (host + device):9,.0f}{told['steady']['evaluations_per_token']:7.2f}"
    )
    print("    " + ", ".join(f"{stage} {us:,.1f}" for stage, us in steady.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="qwen-smollm2", help=f"comma between, or all: {', '.join(PAIRS)}")
    parser.add_argument("--regime", choices=("fast", "beam"), default="fast")
    parser.add_argument("--group", type=int, default=16, help="documents at once")
    parser.add_argument("--groups", type=int, default=4, help="of the steady state")
    parser.add_argument("--warm", type=int, default=64, help="documents between the cold group and the steady state")
    parser.add_argument("--calibration", type=int, default=8, help="documents; a run file's default is 64")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--targets", default="{}", help="more keys of [targets], as JSON")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = list(PAIRS) if args.pairs == "all" else args.pairs.split(",")
    if unknown := [name for name in names if name not in PAIRS]:
        raise SystemExit(f"no pair {', '.join(unknown)}; there are {', '.join(PAIRS)}")
    print(f"{'':14}{'':>6}{'derive':>8}{'cold':>10}{'host':>9}{'device':>10}{'tokens/s':>9}{'evals':>7}", flush=True)
    for name in names:
        told = measured(name, args)
        show(told)
        if args.json:
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
