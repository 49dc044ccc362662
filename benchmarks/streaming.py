"""Memory of a run by the size of its corpus: python -m benchmarks.streaming

Scores a corpus of short texts, and one of ten times as many, with `targetsmith score`, and samples the resident memory of the
driver and of each actor all the while. Prints the peaks, their ratio, and how they came about, by tenths of the run.

The texts repeat and the teacher is tiny (the demo's tokenizer, random weights, its own tokens as the student's), so that
200,000 documents take minutes: what a list of all documents, an unbounded queue or anything else by document would cost shows
(100,000 documents are about 35 MB as Python objects). What is remembered of ever new texts is another matter: --texts NEW makes
all of them different. `--regime beam` scores the demo's foreign student instead. Other options: --documents, --times, --actors.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "jobs" / "demo_assets"
EVERY_S = 0.2
ACTOR = "ray::_Shell"
MIB = 2**20


@dataclass
class Seen:
    """Resident bytes of the driver and of the largest actor, sample by sample."""

    driver: list[int] = field(default_factory=list)
    actor: list[int] = field(default_factory=list)
    seconds: float = 0.0


def write_run(folder: Path, documents: int, args: argparse.Namespace) -> Path:
    """A run file over `documents` short texts."""
    folder.mkdir()
    rng = random.Random(0)
    words = " ".join(json.loads(line)["text"] for line in (DEMO / "corpus.jsonl").open(encoding="utf-8")).split()
    known = [" ".join(rng.choices(words, k=4)) for _ in range(200)]
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(documents):
            text = f"{number} {' '.join(rng.choices(words, k=4))}" if args.texts == "new" else rng.choice(known)
            stream.write(json.dumps({"id": f"document-{number:09d}", "text": text}) + "\n")
    teacher = DEMO / "teacher" if args.regime == "beam" else tiny_teacher(folder / "teacher")
    student = DEMO / ("student_bl" if args.regime == "beam" else "teacher")
    (folder / "run.toml").write_text(
        f'output = "out"\n[teacher]\nmodel = {json.dumps(str(teacher))}\n[corpus]\npaths = ["corpus.jsonl"]\nid = "id"\n'
        f'[[student]]\nname = "s"\ntokenizer = {json.dumps(str(student))}\n'
        f"[targets]\ntop_k = 4\nteacher = false\nstore_text = false\n[ray]\nactors = {args.actors}\n",
        encoding="utf-8",
    )
    return folder / "run.toml"


def tiny_teacher(folder: Path) -> Path:
    """The demo's tokenizer with one layer of random weights."""
    shutil.copytree(DEMO / "teacher", folder, ignore=shutil.ignore_patterns("model*"))
    config = AutoConfig.from_pretrained(folder)
    config.update({"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 16})
    config.update({"num_attention_heads": 1, "num_key_value_heads": 1})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def watch(run_file: Path) -> Seen:
    """Run the command and look at its processes until it ends."""
    seen, began = Seen(), time.monotonic()
    command = [sys.executable, "-m", "jobs.cli", "score", str(run_file), "--address", "local"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            sizes = []
            try:
                seen.driver.append(driver.memory_info().rss)
                for child in driver.children(recursive=True):
                    if any(part.startswith(ACTOR) for part in child.cmdline()):
                        sizes.append(child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
            seen.actor.append(max(sizes, default=0))
            time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit(f"score ended with {process.returncode}")
    seen.seconds = time.monotonic() - began
    return seen


def tenths(samples: list[int]) -> str:
    """The largest sample of each tenth of the time, in MiB."""
    cuts = [len(samples) * i // 10 for i in range(11)]
    return " ".join(f"{max(samples[a : max(b, a + 1)]) / MIB:.0f}" for a, b in zip(cuts, cuts[1:], strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--texts", choices=["known", "new"], default="known")
    parser.add_argument("--regime", choices=["same", "beam"], default="same")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for times in (1, args.times):
            run_file = write_run(Path(folder) / f"x{times}", args.documents * times, args)
            size = (run_file.parent / "corpus.jsonl").stat().st_size
            found[times] = seen = watch(run_file)
            plan = (run_file.parent / "out" / "_engine" / "plan.json").stat().st_size
            print(
                f"{times} x: {args.documents * times:,} documents, corpus {size:,} bytes, plan.json {plan:,} bytes, "
                f"{seen.seconds:.0f} s"
            )
            for name in ("driver", "actor"):
                samples = getattr(seen, name)
                print(f"  {name}: peak {max(samples) / MIB:.0f} MiB; by tenths of the time {tenths(samples)}")
        for name in ("driver", "actor"):
            few, many = (max(getattr(found[times], name)) for times in (1, args.times))
            print(f"{name}: {args.times} x / 1 x = {many / few:.3f}, {(many - few) / MIB:+.0f} MiB")


if __name__ == "__main__":
    main()
