"""Real teachers, real tokenizers, fresh text: the engine beside the plain forward, pair by pair: python -m benchmarks.real

TARGETSMITH_MODELS names a folder with the folders qwen, smollm2 and gemma (Qwen2.5-Coder 0.5B, SmolLM2-135M, Gemma 3 270M or
others of those families); TARGETSMITH_SHARED one with text/gsm8k and tokenizers/. Each pair runs in a process of its own (its
memory, its cold start); no document is scored twice. See benchmarks/real_pair.py for what is measured, and in which order.

Columns: load, derive, calib = seconds until the first group (teacher; tokenizers and tables; calibration documents);
first, minute, steady = share of the plain forward + top-k in the first group, the first minute of engine time, and after it;
tok/s = teacher tokens of the steady state; evals = teacher evaluations a teacher token; peak, +model = GiB at most, and beside
the loaded teacher; TV = mean total variation to the reference, over all positions and over those below 1 nat.
Behind the table: microseconds a teacher token by stage, and one JSON line for each pair.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fresh import SHARED
from benchmarks.real_pair import Settings

MODELS = Path(os.environ.get("TARGETSMITH_MODELS", ""))
PAIRS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "qwen-smollm2": ("qwen", ("smollm2",), None),
    "qwen-gemma": ("qwen", ("gemma",), None),
    "smollm2-gemma": ("smollm2", ("gemma",), None),
    "smollm2-qwen": ("smollm2", ("qwen",), None),
    "qwen-llama3": ("qwen", ("llama-3",), None),
    "qwen-three": ("qwen", ("smollm2", "gemma", "llama-3"), None),
    "qwen-subset": ("qwen", ("qwen2.5-subset-32000",), "exact"),
    "qwen-bytes": ("qwen", (), "exact"),
    "qwen-same": ("qwen", ("qwen",), "exact"),
}
"""Name -> (teacher, students, the regime that it has whatever --regime says)."""
WANTED = {"fast": 0.9, "beam": 0.4, "qwen-three": 0.75, "qwen-same": 0.95, "qwen-bytes": 0.5}


def folder_of(name: str) -> str:
    """A model's folder, or a shared tokenizer's. Raises SystemExit naming what is missing."""
    for folder in (MODELS / name, SHARED / "tokenizers" / name):
        if (folder / "tokenizer.json").is_file():
            return str(folder.resolve())
    raise SystemExit(
        f"no folder {name!r} with a tokenizer.json in TARGETSMITH_MODELS ({MODELS}) or {SHARED}/tokenizers"
    )


def tokenizer_of(pair: str) -> str:
    """The teacher's tokenizer where it is not its own: models made of GGUF files lack Qwen's normaliser (NFC), and without it
    the subsets of Qwen's tokenizer are none."""
    return str((SHARED / "tokenizers/qwen2.5").resolve()) if pair == "qwen-subset" else ""


def settings_of(name: str, args: argparse.Namespace) -> Settings:
    """What is measured of a pair."""
    teacher, students, own = PAIRS[name]
    regime = own or args.regime
    return Settings(
        name=name,
        teacher=folder_of(teacher),
        students=tuple(folder_of(student) for student in students),
        tokenizer=tokenizer_of(name),
        regime="auto" if own == "exact" else regime,
        bytes=name == "qwen-bytes",
        eps=args.eps,
        group=args.group or (2 if regime == "beam" else 8),
        documents=args.documents,
        seconds=args.seconds,
        cold_s=args.first_minute,
        calibration=args.calibration if own is None else 0,
        reference=args.reference,
        top_k=args.top_k,
        threads=args.threads,
        cpu=args.cpu,
        targets=json.loads(args.targets),
    )


def measured(settings: Settings) -> dict[str, Any]:
    """The result of a pair's own process. Raises SystemExit when it fails."""
    command = [sys.executable, "-m", "benchmarks.real_pair", json.dumps(asdict(settings))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{settings.name}: its process ended with {done.returncode}, see above")
    return json.loads(done.stdout.splitlines()[-1])


def wanted(result: dict[str, Any]) -> float:
    """The share that a pair is to reach; the subset's hangs on how many rows it has for each of the teacher's tokens."""
    name = result["name"]
    if name == "qwen-subset":
        return 0.85 / result["positions_per_token"]
    return WANTED.get(name) or WANTED[result["regime"]]


def show(results: list[dict[str, Any]]) -> None:
    """The two tables."""
    head = (
        "load",
        "derive",
        "calib",
        "first",
        "minute",
        "steady",
        "wanted",
        "tok/s",
        "plain",
        "evals",
        "peak",
        "+model",
    )
    print(f"\n{'':16}" + "".join(f"{name:>8}" for name in head) + f"{'TV':>9}{'<1 nat':>9}")
    for r in results:
        cells = [f"{r[n]:8.1f}" for n in ("teacher_s", "derive_s", "calibrate_s")]
        cells += [f"{r[f'{part}_share']:8.2f}" for part in ("first", "minute", "steady")]
        cells += [f"{wanted(r):8.2f}"]
        cells += [f"{r[n]:8,.0f}" for n in ("steady_tokens_per_s", "steady_plain_tokens_per_s")]
        cells += [f"{r['evaluations_per_token']:8.2f}", f"{r['peak_gib']:8.2f}"]
        cells += [f"{r['peak_gib'] - r['teacher_gib']:8.2f}"]
        for key in ("tv_mean", "tv_below_1_nat"):
            values = [d[key] for d in r.get("distance", {}).values() if d[key] is not None]
            cells += [f"{sum(values) / len(values):9.4f}" if values else f"{'-':>9}"]
        print(f"{r['name']:16}" + "".join(cells) + (" (no steady state: all cold)" if r["steady_is_cold"] else ""))
    stages = list(dict.fromkeys(stage for r in results for stage in r["stages_us"]))
    print("\nmicroseconds of the engine a teacher token, steady state (plain: all of the plain forward)")
    for r in results:
        plain_us = 1e6 / r["steady_plain_tokens_per_s"]
        cells = [f"{stage} {r['stages_us'][stage]:,.0f}" for stage in stages if stage in r["stages_us"]]
        print(f"{r['name']:16}plain {plain_us:,.0f} | " + ", ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="qwen-smollm2", help=f"comma between, or all: {', '.join(PAIRS)}")
    parser.add_argument("--regime", choices=("fast", "beam"), default="fast")
    parser.add_argument(
        "--documents", type=int, default=0, help="at most so many timed ones a pair (0: --seconds decide)"
    )
    parser.add_argument("--seconds", type=float, default=240.0, help="of timed groups a pair, plain ones included")
    parser.add_argument("--first-minute", type=float, default=60.0, help="engine seconds before the steady state")
    parser.add_argument("--group", type=int, default=0, help="documents at once; default 8, with beam 2")
    parser.add_argument("--calibration", type=int, default=8, help="documents; a run file's default is 64")
    parser.add_argument("--reference", type=int, default=0, help="documents for total variation; a slow search")
    parser.add_argument("--eps", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="processor seconds; with --threads 1 on a busy machine")
    parser.add_argument("--targets", default="{}", help="more keys of [targets], as JSON")
    parser.add_argument("--json", type=Path, help="append the JSON lines to this file, too")
    args = parser.parse_args()
    names = list(PAIRS) if args.pairs == "all" else args.pairs.split(",")
    if unknown := [name for name in names if name not in PAIRS]:
        raise SystemExit(f"no pair {', '.join(unknown)}; there are {', '.join(PAIRS)}")
    results = []
    for name in names:
        results.append(measured(settings_of(name, args)))
        show(results)
        if args.json:
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print()
    for result in results:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
