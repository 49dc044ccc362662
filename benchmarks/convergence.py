"""How far the fast and beam regimes are from the lossless value, and what they certify: python benchmarks/convergence.py

The same documents are scored with rising budgets (`max_nodes_per_token`) and once with a large one, the reference. Two figures
are kept apart: the certified width (`err`: worst case) and the total variation to the reference (the error as it is, up to
the reference's own width, printed beside). One table per student, one line per budget; then the same by the entropy of the
reference's distribution, and for rows whose next token is white space or begins with a digit.

Letters: T positions of all documents, K stored tokens (as many as a run file may ask for).
Options: --teacher, --student (repeatable), --corpus, --documents, --budgets, --reference, --tolerance, --skip.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.fresh import SHARED, Fresh
from engine.corpus.document import Document
from engine.scoring.scorer import Scorer
from schemas.runfile import parse_run

TOP_K = 1024
BINS = ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 3.5), (3.5, 99.0))


@dataclass(frozen=True, slots=True)
class Scored:
    """One student's rows: ids [T, K], prob float64 [T, K], tail, err, open [T], gold's text class [T], seconds, cost."""

    ids: np.ndarray
    prob: np.ndarray
    tail: np.ndarray
    err: np.ndarray
    gold: np.ndarray
    kind: np.ndarray
    seconds: float
    per_token: float


def make_scorer(teacher: str, students: list[str], budget: float, tolerance: float) -> Scorer:
    """A scorer that stores as much of each row as a run file may ask for."""
    targets = {"top_k": TOP_K, "teacher": False, "tolerance": tolerance, "max_nodes_per_token": budget}
    table = {
        "output": "unused",
        "teacher": {"model": teacher},
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": Path(s).name, "tokenizer": s} for s in students],
        "targets": targets,
    }
    return Scorer(parse_run(table, base_dir=Path.cwd()))


def score(scorer: Scorer, documents: list[Document]) -> dict[str, Scored]:
    """All scored rows of every student."""
    began = time.perf_counter()
    result = scorer.score_unit(documents)
    seconds = time.perf_counter() - began
    out = {}
    for product, table in result.products.items():
        at = column(table, "scored").astype(bool)
        rows = len(at)
        cost = result.stats["teacher_evaluations"] / max(1, int(at.sum()))
        ids = column(table, "topk_ids").reshape(rows, -1)[at]
        prob = np.exp(column(table, "topk_logps").astype(np.float64).reshape(rows, -1)[at])
        tail, err = np.exp(column(table, "tail_logp").astype(np.float64)[at]), column(table, "err")[at]
        kind = np.concatenate(
            [kinds(t, e) for t, e in zip(table["text"].to_pylist(), table["byte_end"].to_pylist(), strict=True)]
        )
        out[product] = Scored(ids, prob, tail, err, column(table, "gold_logp")[at], kind[at], seconds, cost)
    return out


def column(table: pa.Table, name: str) -> np.ndarray:
    """All values of a list column, one document after another."""
    return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)


def kinds(text: str, ends: list[int]) -> np.ndarray:
    """Of each token: "s" white space only, "d" begins with a digit (after a space), "." other."""
    raw, begin, out = text.encode(), 0, []
    for end in ends:
        token = raw[begin:end]
        out.append("s" if token and not token.strip() else "d" if token.strip()[:1].isdigit() else ".")
        begin = end
    return np.array(out)


def variation(a: Scored, b: Scored, size: int) -> np.ndarray:
    """Total variation [T] between two sets of rows, what is in neither top-K taken as one cell each."""
    out = np.empty(len(a.ids))
    dense = np.zeros(size + 1)
    for t in range(len(a.ids)):
        dense[a.ids[t]] += a.prob[t]
        dense[b.ids[t]] -= b.prob[t]
        dense[-1] = 0.0  # padding
        out[t] = 0.5 * (np.abs(dense[a.ids[t]]).sum() + np.abs(dense[np.setdiff1d(b.ids[t], a.ids[t])]).sum())
        out[t] += 0.5 * abs(a.tail[t] - b.tail[t])
        dense[a.ids[t]] = 0.0
        dense[b.ids[t]] = 0.0
    return out


def entropy(rows: Scored) -> np.ndarray:
    """Nats [T]; the tail counts as one cell."""
    p = np.concatenate([rows.prob, rows.tail[:, None]], axis=1)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--teacher", default=str(SHARED / "models" / "stories260K"))
    parser.add_argument("--student", action="append")
    parser.add_argument("--corpus", type=Path, default=SHARED / "text" / "tinystories_sample_2MB.txt")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--skip", type=int, default=0, help="documents to leave out at the beginning")
    parser.add_argument("--budgets", default="0,1,2,4,8,16,32")
    parser.add_argument("--reference", type=float, default=64.0)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--calibrate", type=int, default=0, help="documents behind those scored, for calibration")
    options = parser.parse_args()
    torch.set_num_threads(2)
    students = options.student or [str(SHARED / "tokenizers" / "gpt2")]
    stop = options.skip + options.documents
    read = Fresh([options.corpus]).take(stop + options.calibrate)
    documents, sample = read[options.skip : stop], read[stop:]
    budgets = [float(b) for b in options.budgets.split(",")]
    for student in students:
        scorer = make_scorer(options.teacher, [student], options.reference, options.tolerance)
        product = next(iter(scorer.stages.students))
        size = scorer.stages.students[product].size
        reference = score(scorer, documents)[product]
        nats = entropy(reference)
        print(
            f"\n{Path(options.teacher).name} -> {Path(student).name}: {len(nats)} positions of {len(documents)} documents, "
            f"mean entropy {nats.mean():.2f} nats, reference {reference.per_token:.1f} evaluations a token, "
            f"mean width {reference.err.mean():.4f}"
        )
        masks = {"all": np.ones(len(nats), bool)}
        masks |= {f"{a}-{b}" if b < 99 else f">{a}": (nats >= a) & (nats < b) for a, b in BINS}
        masks |= {"space": reference.kind == "s", "digit": reference.kind == "d"}
        print("positions: " + ", ".join(f"{n} {int(m.sum())}" for n, m in masks.items()))
        print("budget  cost/token  seconds  bounded |" + " |".join(f" {n:>7} tv  width" for n in masks))
        for budget in budgets:
            scorer = make_scorer(options.teacher, [student], budget, options.tolerance)
            scorer.calibrate(sample)
            got = score(scorer, documents)[product]
            tv = variation(got, reference, size)
            cells = [f" {tv[m].mean():9.5f} {got.err[m].mean():6.4f}" if m.any() else " " * 17 for m in masks.values()]
            stored = (
                1 - np.maximum(0, got.tail - got.err).mean()
            )  # what is neither stored nor within the certified width
            print(
                f"{budget:6g}  {got.per_token:10.2f} {got.seconds:8.1f}  {stored:7.4f} |" + " |".join(cells), flush=True
            )


if __name__ == "__main__":
    main()
