"""What stored targets are worth to a real student: python -m benchmarks.real_distill --out FOLDER [--hours 2]

A real teacher scores a text once (--text: GSM8K's answers, or articles in six languages; real_distill_data.py): Qwen2.5-Coder
0.5B Instruct, trained on other problems of GSM8K first (real_distill_teacher.py), or as published (--teacher). A real student
is trained from its own weights by every method (real_distill_methods.py), on the same documents in the same order, all
weights. Students: smollm2 (SmolLM2-135M) and gemma (Gemma 3 270M) have foreign vocabularies; subset is the teacher itself with
the 32,256 rows that a smaller vocabulary keeps. TARGETSMITH_MODELS names the folder with the models (qwen, smollm2, gemma).

The learning rate is chosen for each method by bits per byte on a validation split of its own, uphill on a grid until both
neighbours are worse (once: a series with another teacher that was tuned alike takes it over); then come the other seeds.
Methods that ask what an error of the targets costs are trained at the rate of forward_kl instead: there the target is all that
differs. Measured on problems that no training saw: bits per byte of the answers, KL(teacher || student) over the student's
vocabulary on the targets of the default (nats a position), exact answers by greedy generation for a few methods (a student of
this size solves one or two in a hundred, which tells nothing apart). Beside that seconds of a step, stored bytes a position
that the loss reads, and --errors: the mean total variation of each method's targets to a deep search. `weights` is a hash of
the teacher's: machines tune it alike, not to the last digit.

Every figure is kept in a Parquet table (--table), a row for each text, student, teacher, documents, epochs, method, seed and
rate; what is there is not run again, so the command can be stopped at any time. --hours: no training is begun after that. The
report is made of the table: --report prints it and trains nothing. Processes with other --methods may share a folder and a
table.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from filelock import FileLock

from benchmarks.distill_data import stored_bytes
from benchmarks.real_distill_data import gsm8k_splits, subset_student, udhr_splits, with_published_tokenizer
from benchmarks.real_distill_methods import COMPARED, ERRORS, MEASURED, OURS
from benchmarks.real_distill_teacher import fingerprint, tuned_teacher
from benchmarks.real_distill_train import Place, figures, keep, kept_model, target_error, trained, valid_bits_per_byte

RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
FIRST_RATE = {"smollm2": 1e-4, "gemma": 1e-5, "subset": 3e-6}  # where the search begins
KIND = ("text", "student", "teacher", "weights", "documents", "epochs", "method")
TABLE = Path(__file__).parent / "results" / "real_distill.parquet"


class Table:
    """A row for each training, or for what is known of a method's targets (seed -1)."""

    KEY = (*KIND, "seed", "rate")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = self._read()

    def _read(self) -> list[dict[str, Any]]:
        return pl.read_parquet(self.path).to_dicts() if self.path.is_file() else []

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next(iter(self.all_of(**key)), None)

    def all_of(self, **key: Any) -> list[dict[str, Any]]:
        return [row for row in self.rows if all(row[name] == value for name, value in key.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Other processes may add to the same file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            self.rows = self._read()
            old = self.find(**{name: row[name] for name in self.KEY}) or {}
            self.rows = [other for other in self.rows if other is not old] + [old | row]
            part = self.path.with_suffix(".part")
            pl.DataFrame(self.rows, infer_schema_length=None).write_parquet(part)
            part.replace(self.path)
        print({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


class OutOfTime(Exception):
    """No training is begun any more."""


@dataclass(frozen=True, slots=True)
class Experiment:
    place: Place
    table: Table
    until: float  # time.time()
    weights: str  # fingerprint of the teacher's
    answers: tuple[str, ...] = ()  # methods whose students of seed 0 answer problems

    def key(self, method: str, seed: int, rate: float) -> dict[str, Any]:
        documents = len(self.place.splits.train)
        return {
            "text": self.place.text,
            "student": self.place.student,
            "teacher": self.place.teacher.name,
            "weights": self.weights,
            "documents": documents,
            "epochs": self.place.epochs,
            "method": method,
            "seed": seed,
            "rate": rate,
        }

    def valid(self, name: str, rate: float) -> float:
        """Bits per byte on the validation split of seed 0 at a rate; the best student of a method is kept for its figures."""
        row = self.table.find(**self.key(name, 0, rate))
        if row is None:
            self._check_time()
            key = self.key(name, 0, rate)
            others = self.table.all_of(**{part: value for part, value in key.items() if part != "rate"})
            model, step_s = trained(self.place, name, 0, rate)
            row = key | {
                "step_s": step_s,
                "valid_bits_per_byte": valid_bits_per_byte(self.place, model),
            }
            if all(row["valid_bits_per_byte"] < other["valid_bits_per_byte"] for other in others):
                keep(model, self.place.kept(name, rate))
            self.table.add(row)
        return row["valid_bits_per_byte"]

    def best_rate(self, name: str) -> float:
        """A rate with worse neighbours on both sides; one that an earlier series found, with a teacher tuned alike, is not
        searched again."""
        if name in ERRORS:
            return self.best_rate("forward_kl")
        same = {
            part: self.key(name, 0, 0.0)[part]
            for part in ("text", "student", "teacher", "documents", "epochs", "method")
        }
        others = [row for row in self.table.all_of(**same) if row.get("valid_bits_per_byte")]
        known = min(others, key=lambda row: row["valid_bits_per_byte"], default=None)
        if known and self._settled(known, others):
            return known["rate"]
        at = RATES.index(known["rate"] if known else FIRST_RATE[self.place.student])
        for step in (1, -1):
            while 0 <= at + step < len(RATES) and (self.valid(name, RATES[at + step]) < self.valid(name, RATES[at])):
                at += step
        return RATES[at]

    @staticmethod
    def _settled(best: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
        """Whether the best row's own series tried both neighbours of its rate."""
        at = RATES.index(best["rate"])
        tried = {row["rate"] for row in rows if row["weights"] == best["weights"]}
        return {*RATES[max(0, at - 1) : at + 2]} <= tried

    def measure(self, name: str, seed: int, rate: float) -> None:
        """All figures of one student, where they are not in the table."""
        row = self.table.find(**self.key(name, seed, rate)) or {}
        if row.get("bits_per_byte") is not None:
            return
        self._check_time()
        method, kept = OURS[name], self.place.kept(name, rate)
        if seed == 0 and kept.is_file() and "step_s" in row:
            model, step_s = kept_model(self.place, kept), row["step_s"]
        elif name == "untrained":
            (model, _), step_s = self.place.load(), 0.0
            model.eval()
        else:
            model, step_s = trained(self.place, name, seed, rate)
        found = self.key(name, seed, rate) | {"step_s": step_s}
        found |= figures(self.place, model, with_answers=seed == 0 and name in self.answers)
        found["bytes"] = stored_bytes(self.place.run(method.run), method.needs, "small") if method.needs else 0.0
        self.table.add(found)
        kept.unlink(missing_ok=True)

    def all_seeds(self, name: str, seeds: int) -> None:
        if name == "untrained":
            return self.measure(name, 0, 0.0)
        rate = self.best_rate(name)
        for seed in range(seeds):
            self.measure(name, seed, rate)

    def error(self, name: str) -> None:
        key = self.key(name, -1, 0.0)
        if name in MEASURED and self.table.find(**key) is None:
            self.table.add(key | {"target_tv": target_error(self.place, name)})

    def _check_time(self) -> None:
        if time.time() > self.until:
            raise OutOfTime


def teacher_figures(place: Place, table: Table, weights: str) -> None:
    """The teacher's own bits per byte and answers, in its own vocabulary."""
    key = {"text": place.text, "student": "teacher", "teacher": place.teacher.name, "weights": weights}
    key |= {"documents": 0, "epochs": 0, "method": "untrained", "seed": 0, "rate": 0.0}
    if table.find(**key) is None:
        own = replace(place, student="teacher", model=place.teacher, epochs=0)
        model, _ = own.load()
        table.add(key | figures(own, model.eval(), with_kl=False) | {"kl_nats": 0.0, "step_s": 0.0, "bytes": 0.0})


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown, of the rows that have all figures, a series after the other: mean and standard deviation over seeds; gain: bits
    per byte below cross-entropy with the same seed; TV: error of the targets against a deep search."""
    done = [row for row in rows if row.get("bits_per_byte") is not None]
    errors = {_kind(row): row.get("target_tv") for row in rows if row["seed"] < 0}
    titles = (*KIND, "rate", "seeds", "bits/byte", "gain", "KL, nats", "solved %", "s/step", "bytes/position", "TV")
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    order = list(OURS)
    for kind in sorted(set(map(_kind, done)), key=lambda kind: (*map(str, kind[:-1]), order.index(kind[-1]))):
        mine = [row for row in done if _kind(row) == kind]
        base = {row["seed"]: row["bits_per_byte"] for row in done if _kind(row) == (*kind[:-1], "ce")}
        gains = [base[row["seed"]] - row["bits_per_byte"] for row in mine if row["seed"] in base]
        tv = errors.get(kind)
        cells = [
            *map(str, kind[:-1]),
            OURS[kind[-1]].title,
            f"{mine[0]['rate']:g}",
            str(len(mine)),
            _spread([row["bits_per_byte"] for row in mine], 4),
            "" if kind[-1] == "ce" else _spread(gains, 4),
            _spread([row["kl_nats"] for row in mine], 4),
            _spread([100 * row["solved"] for row in mine if row.get("solved") is not None], 1),
            _spread([row["step_s"] for row in mine if row["step_s"] is not None], 1),
            f"{mine[0]['bytes']:.0f}",
            "" if tv is None else f"{tv:.4f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _kind(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KIND)


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    tensor = torch.tensor(values, dtype=torch.float64)
    return f"{tensor.mean():.{digits}f}" + (f" ± {tensor.std():.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of scored runs")
    parser.add_argument("--table", type=Path, default=TABLE, help="default: %(default)s")
    parser.add_argument("--text", choices=("gsm8k", "udhr"), default="gsm8k")
    parser.add_argument("--student", choices=("smollm2", "gemma", "subset"), default="smollm2")
    parser.add_argument("--teacher", choices=("tuned", "published"), default="tuned")
    parser.add_argument("--tuning", type=int, default=160, help="problems that the tuned teacher is trained on")
    parser.add_argument("--methods", help=f"comma between; there are {', '.join(OURS)}; teacher: its own figures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--documents", type=int, help="of training; default: 32 of gsm8k, 48 of udhr")
    parser.add_argument("--epochs", type=int, default=3, help="times that each is seen")
    parser.add_argument("--valid", type=int, default=24)
    parser.add_argument("--held", type=int, help="default: 64 of gsm8k, 48 of udhr")
    parser.add_argument("--solve", type=int, default=200, help="problems answered by greedy generation")
    parser.add_argument(
        "--answers", default="untrained,ce,forward_kl", help="methods whose students of seed 0 answer them"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hours", type=float, default=6.0, help="no training is begun after so long")
    parser.add_argument(
        "--errors", action="store_true", help="measure the targets' own error, too (scores with budget 6)"
    )
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    names = args.methods.split(",") if args.methods else [*COMPARED, "untrained", *ERRORS, "teacher"]
    if unknown := {*names} - {*OURS, "teacher"} | {*args.answers.split(",")} - {*OURS}:
        raise SystemExit(f"no method {', '.join(sorted(unknown))}; there are {', '.join(OURS)}")
    table = Table(args.table)
    if not args.report:
        if args.text == "udhr" and args.teacher == "tuned":
            raise SystemExit("--text udhr: there is nothing to tune a teacher on; take --teacher published")
        if args.out is None:
            raise SystemExit("--out FOLDER: where do the scored runs go?")
        torch.set_num_threads(args.threads)
        run_all(args, names, table)
    print(report(table.rows))


def run_all(args: argparse.Namespace, names: list[str], table: Table) -> None:
    """Until all is done or time is up."""
    models = Path(os.environ.get("TARGETSMITH_MODELS", ""))
    args.out.mkdir(parents=True, exist_ok=True)
    if args.text == "gsm8k":
        splits = gsm8k_splits(args.documents or 32, args.valid, args.held or 64, args.solve, args.tuning)
    else:
        splits = udhr_splits(args.documents or 48, args.valid, args.held or 48)
    teacher = models / "qwen"
    if args.teacher == "tuned":
        teacher = tuned_teacher(teacher, args.out / f"tuned-{args.tuning}", splits.tuning)
    weights = fingerprint(teacher)
    print(f"teacher: {teacher}, weights {weights}", flush=True)
    model = models / args.student
    if args.student == "subset":
        teacher = with_published_tokenizer(teacher, args.out / "published-tokenizer" / teacher.name)
        model = subset_student(teacher, args.out / f"subset-of-{teacher.name}")
    place = Place(args.out, args.text, args.student, model, teacher, splits, args.epochs)
    until, answers = time.time() + 3600 * args.hours, tuple(args.answers.split(","))
    experiment = Experiment(place, table, until, weights, answers)
    try:
        for name in names:
            if name == "teacher":
                teacher_figures(place, table, weights)
            else:
                experiment.all_seeds(name, args.seeds)
        if args.errors:
            for name in names:
                experiment.error(name)
    except OutOfTime:
        print(f"{args.hours:g} hours are over: what is missing is run by the same command")


if __name__ == "__main__":
    main()
