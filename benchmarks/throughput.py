"""Tokens per second of the engine beside a plain teacher forward, in one process: python benchmarks/throughput.py

Rows, timed in turn over fresh documents, the same for all rows, and repeated over others (nothing is scored twice by one row):
  plain    the teacher's own forward, log-softmax and top-k over its own vocabulary (what a same-tokenizer cache costs)
  same     this engine, student tokenizer = teacher tokenizer
  S1..Sn   this engine, one foreign student each;  first 2, all n = several of them from one pass
Prints seconds, teacher tokens/s, evaluations per student token, the ratio to `plain` and, for several students, to the mean
of them one by one. The first pass is printed apart: it makes the rules that most boundaries need, once per actor. Real models
and the state behind the first minute: benchmarks/real.py.

The shared teachers are so small that they cost nothing; --teacher-size 512x10 puts a Llama of hidden size 512 and 10 layers
with random weights (31M parameters; 768x16: 113M) behind the same tokenizer. --cpu counts processor seconds instead of the
clock's, with --threads 1 the only figure that other work on the machine hardly moves.
Other options: --teacher, --student (repeatable), --corpus, --documents, --top-k, --repeats.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.fresh import SHARED, Fresh
from benchmarks.plain import plain
from engine.scoring.scorer import Scorer
from schemas.runfile import parse_run

DEMO = Path(__file__).resolve().parent.parent / "jobs" / "demo_assets"


def make_scorer(teacher: str, students: list[str], top_k: int, regime: str = "fast") -> Scorer:
    """A scorer for these students; the teacher's own view is switched off so that only the named products are paid for."""
    table = {
        "output": "unused",
        "teacher": {"model": teacher},
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": f"s{i}", "tokenizer": s} for i, s in enumerate(students)],
        "targets": {"top_k": top_k, "teacher": False, "regime": regime},
    }
    return Scorer(parse_run(table, base_dir=Path.cwd()))


def make_teacher(tokenizer: str, size: str, folder: Path) -> tuple[str, int]:
    """A Llama of random weights over a teacher's tokenizer. size: "HIDDENxLAYERS". Returns (folder, parameters)."""
    hidden, layers = (int(n) for n in size.split("x"))
    old = json.loads((Path(tokenizer) / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=old["vocab_size"],
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        max_position_embeddings=2048,
        bos_token_id=old.get("bos_token_id"),
        eos_token_id=old.get("eos_token_id"),
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    for file in Path(tokenizer).glob("tokenizer*"):
        shutil.copy(file, folder)
    return str(folder), sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = (SHARED / "models").is_dir()
    parser.add_argument("--teacher", default=str(SHARED / "models/stories260K" if shared else DEMO / "teacher"))
    parser.add_argument("--student", action="append")
    parser.add_argument(
        "--corpus", default=str(SHARED / "text/tinystories_sample_2MB.txt" if shared else DEMO / "corpus.jsonl")
    )
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--teacher-size", help="HIDDENxLAYERS: random weights behind the tokenizer of --teacher")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--regime", default="fast", help="of all students: fast, or beam with the default budget")
    parser.add_argument("--cpu", action="store_true", help="processor seconds of all threads, not seconds of the clock")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Score, time, print."""
    shared = (SHARED / "models").is_dir()
    teacher, now = args.teacher, time.process_time if args.cpu else time.perf_counter
    if args.teacher_size:
        teacher, parameters = make_teacher(args.teacher, args.teacher_size, folder)
        print(f"teacher: random Llama {args.teacher_size}, {parameters / 1e6:.1f}M parameters")
    students = args.student or (
        [str(SHARED / f"tokenizers/{n}") for n in ("gpt2", "llama-2", "smollm2")]
        if shared
        else [str(DEMO / "student_sp"), str(DEMO / "student_bl")]
    )
    corpus = Fresh([Path(args.corpus)])
    scorers = {"same": make_scorer(teacher, [teacher], args.top_k)}
    ones = [Path(s).name for s in students]
    scorers |= {
        name: make_scorer(teacher, [s], args.top_k, args.regime) for name, s in zip(ones, students, strict=True)
    }
    if len(students) > 2:
        scorers["first 2"] = make_scorer(teacher, students[:2], args.top_k, args.regime)
    if len(students) > 1:
        scorers[f"all {len(students)}"] = make_scorer(teacher, students, args.top_k, args.regime)
    base = scorers["same"]
    print(
        f"{args.documents} fresh documents a pass, top_k {args.top_k}, {torch.get_num_threads()} threads, "
        f"{base.stages.teacher.device}, "
        f"{'processor' if args.cpu else 'clock'} seconds"
    )
    warm: dict[str, float] = {}
    seconds: dict[str, list[float]] = {"plain": [], **{name: [] for name in scorers}}
    results, tokens = {}, []
    documents = corpus.take(args.documents)
    for name, scorer in scorers.items():
        begin = now()
        scorer.score_unit(documents)
        warm[name] = now() - begin
    for _ in range(args.repeats):
        documents = corpus.take(args.documents)
        for name, scorer in scorers.items():
            begin = now()
            results[name] = scorer.score_unit(documents)
            seconds[name].append(now() - begin)
        begin, stages = now(), base.stages
        batch_tokens = stages.run.teacher.batch_tokens
        tokens.append(plain(stages.teacher, stages.vocabulary, documents, top_k=args.top_k, batch_tokens=batch_tokens))
        seconds["plain"].append(now() - begin)
    head = f"{'':14}{'first s':>9}{'s':>9}{'teacher tok/s':>15}{'positions/s':>13}{'evals/position':>16}"
    print(f"{head}{'x plain':>9}{'x one':>8}")
    one = [statistics.mean(times) for times in zip(*(seconds[name] for name in ones), strict=True)]
    for name, times in seconds.items():
        middle = statistics.median(times)
        ratio = statistics.median(t / p for t, p in zip(times, seconds["plain"], strict=True))
        versus = statistics.median(t / o for t, o in zip(times, one, strict=True))
        rate = statistics.median(n / t for n, t in zip(tokens, times, strict=True))
        stats = results[name].stats if name in results else {"teacher_evaluations": tokens[-1]}  # of the last pass
        positions = sum(v for k, v in stats.items() if k.endswith(".positions")) or tokens[-1]
        evals = stats["teacher_evaluations"] / positions
        print(
            f"{name:14}{warm.get(name, middle):9.2f}{middle:9.2f}{rate:15,.0f}{rate * positions / tokens[-1]:13,.0f}"
            f"{evals:16.2f}{ratio:9.2f}"
            + (f"{versus:8.2f}" if results.get(name) and name not in ("same", *ones) else "")
        )


if __name__ == "__main__":
    main()
