"""Whether values depend on what a document is scored with: the same documents in other groups, batches and orders.

    python -m benchmarks.determinism                               the demo's teacher, 100 documents
    python -m benchmarks.determinism --documents 300 --settings 1x64 7x512 --codec sample

A setting GxB scores units of G documents with `batch_tokens` B; `r` behind it reverses the order of the documents. All are
compared with the first one, every column as the scorer gives it, before it is rounded for the file. Log-probabilities
are compared in nats, token by token; a token that only one side lists counts by its mass. Printed is the largest
difference of each column, and how many values differ by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.corpus.document import Document
from engine.dataset.parquet import flat, lengths_of
from engine.scoring.scorer import Scorer
from schemas.runfile import parse_run
from schemas.target import LOGP_COLUMNS, PAD_ID

ASSETS = Path(__file__).resolve().parent.parent / "jobs" / "demo_assets"
BOUND_NATS = 1e-5
FAINT = 1e-6
"""Probabilities below this are compared as probabilities: float32 leaves them no more than a few digits in nats."""


def demo_scorer(
    batch_tokens: int = 8192, *, students: dict[str, Path] | None = None, calibrate: int = 16, **targets: object
) -> Scorer:
    """The demo's teacher with these students (default: its own two and its own tokenizer), calibrated on its corpus."""
    named = students or {"sp": ASSETS / "student_sp", "bl": ASSETS / "student_bl", "same": ASSETS / "teacher"}
    table = {
        "output": "unused",
        "teacher": {"model": str(ASSETS / "teacher"), "device": "cpu", "batch_tokens": batch_tokens},
        "corpus": {"paths": ["unused.jsonl"]},
        "student": [{"name": name, "tokenizer": str(path)} for name, path in named.items()],
        "targets": {**({"top_k": 32} if targets.get("teacher", True) else {}), **targets},
    }
    scorer = Scorer(parse_run(table, base_dir=Path.cwd()))
    scorer.calibrate(demo_documents(calibrate))
    return scorer


def demo_documents(count: int) -> list[Document]:
    """The first documents of the demo's corpus."""
    lines = (ASSETS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [Document(f"d{i}", i, json.loads(line)["text"], "c", f"line {i + 1}") for i, line in enumerate(lines)]


def score(scorer: Scorer, documents: Sequence[Document], group: int, *, backwards: bool = False) -> dict[str, pa.Table]:
    """Tables of all products in the order of `documents`, scored in units of `group` documents."""
    order = list(reversed(documents)) if backwards else list(documents)
    units = [scorer.score_unit(order[i : i + group]) for i in range(0, len(order), group)]
    assert not any(unit.quarantine for unit in units), units[0].quarantine
    tables = {p: pa.concat_tables([unit.products[p] for unit in units]) for p in scorer.stages.products}
    return {product: table.sort_by("doc_row") for product, table in tables.items()}


def gaps(ours: pa.Table, theirs: pa.Table) -> dict[str, np.ndarray]:
    """Column -> difference of each value: nats for log-probabilities (see FAINT), as they are for all other floats, 0 or 1
    for what is no float. Both tables hold the same documents."""
    found = {}
    for name in ours.schema.names:
        if name == "topk_ids" or name == "topk_logps":
            continue
        if not pa.types.is_list(ours.schema.field(name).type):
            same = [a == b for a, b in zip(ours[name].to_pylist(), theirs[name].to_pylist(), strict=True)]
            found[name] = 1.0 - np.array(same, float)
            continue
        a, b = flat(ours, name), flat(theirs, name)
        if len(a) != len(b):  # other numbers of drawn tokens
            found[name] = np.ones(1)
        elif name in LOGP_COLUMNS:
            found[name] = _nats(a.astype(float), b.astype(float))
        elif a.dtype.kind == "f":
            found[name] = np.abs(a.astype(float) - b.astype(float))
        elif name == "hidden":
            found[name] = np.abs(_bfloat16(a) - _bfloat16(b))
        else:
            found[name] = (a != b).astype(float)
    if "topk_ids" in ours.schema.names:
        found["topk_logps"] = _by_token(ours, theirs)
    return found


def _bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(float)


def _nats(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| where both have a probability above FAINT, else the difference of the probabilities."""
    loud = np.minimum(a, b) > np.log(FAINT)
    return np.where(loud, np.abs(np.where(loud, a - b, 0.0)), np.abs(np.exp(a) - np.exp(b)))


def _by_token(ours: pa.Table, theirs: pa.Table) -> np.ndarray:
    """Per position the largest difference of a token's log-probability over the tokens that either side lists.

    A token that one side does not list (a near tie at the end of the top-k) has there at most the least listed one's.
    """
    n = int(lengths_of(ours).sum())
    sides = []
    for table in (ours, theirs):
        ids, logps = flat(table, "topk_ids").reshape(n, -1), flat(table, "topk_logps").reshape(n, -1).astype(float)
        order = np.argsort(ids, axis=1, kind="stable")
        sides.append((np.take_along_axis(ids, order, 1), np.take_along_axis(logps, order, 1)))
    (ids, a), (other, b) = sides
    out = np.where(ids == PAD_ID, 0.0, _nats(a, b)).max(1, initial=0.0)
    for row in np.flatnonzero((ids != other).any(1)):
        mine = {t: p for t, p in zip(ids[row], a[row], strict=True) if t != PAD_ID}
        yours = {t: p for t, p in zip(other[row], b[row], strict=True) if t != PAD_ID}
        floors = [
            min(side.values(), default=-np.inf) if len(side) == ids.shape[1] else -np.inf for side in (mine, yours)
        ]
        pairs = [(mine.get(t, floors[0]), yours.get(t, floors[1])) for t in mine.keys() | yours.keys()]
        out[row] = _nats(*np.array(pairs, float).T).max()
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--codec", choices=("topk", "sample"), default="topk")
    parser.add_argument("--targets", type=json.loads, default={}, help="JSON: more keys of [targets]")
    parser.add_argument("--settings", nargs="+", default=["64x8192", "7x8192", "1x8192", "7x512", "64x64", "64x8192r"])
    arguments = parser.parse_args()
    documents = demo_documents(arguments.documents)
    first: dict[str, pa.Table] = {}
    for setting in arguments.settings:
        group, _, batch = setting.removesuffix("r").partition("x")
        wanted = {"bytes": True, "teacher_stats": True, "codec": arguments.codec, **arguments.targets}
        scorer = demo_scorer(int(batch), **wanted)
        begin = time.perf_counter()
        tables = score(scorer, documents, int(group), backwards=setting.endswith("r"))
        seconds = time.perf_counter() - begin
        first = first or tables
        positions = sum(len(flat(table, "token_ids")) for table in tables.values())
        print(f"{setting}: {len(documents)} documents, {positions:,} positions in {seconds:.0f} s", flush=True)
        for product, table in tables.items():
            found = gaps(first[product], table)
            told = {name: f"{values.max(initial=0):.1e}" for name, values in found.items() if values.any()}
            over = {n: int((values > BOUND_NATS).sum()) for n, values in found.items() if (values > BOUND_NATS).any()}
            print(f"    {product:14} largest {told or 0}; more than {BOUND_NATS:g}: {over or 'none'}", flush=True)


if __name__ == "__main__":
    main()
