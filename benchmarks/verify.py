"""How fast `targetsmith verify` checks an output: python -m benchmarks.verify

Positions per minute of CPU time (all threads of the process), one thread where that can be chosen; top-64 over 151,936 ids.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.reader import document_lengths
from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.parquet import lengths_of, round_rows
from engine.verify.output import verify
from engine.verify.rows import sums_of
from schemas.manifest import Plan
from tests.support.tables import small_plan, targets_table


def write(out: Path, top_k: int, files: int, positions: int) -> None:
    """A finished output of one student, with true statistics."""
    rng = np.random.default_rng(top_k)
    lengths = [document_lengths(rng, positions) for _ in range(files)]
    count = min(map(len, lengths))
    plan = small_plan(files, count, top_k=top_k, vocab_size=151_936)
    plan = Plan.make(plan.semantic, plan.units, {"student/small": plan.products["student/small"]})
    open_output(out, plan)
    for unit in plan.units:
        table = targets_table(rng, lengths[unit.index][:count], top_k=top_k, vocab_size=151_936, first_row=unit.doc_row)
        # The tables' byte ends are those of their random texts only where these are as long: make them so.
        texts = ["x" * ends[-1] for ends in table.column("byte_end").to_pylist()]
        table = table.set_column(2, table.schema.field("text"), pa.array(texts))
        sums = sums_of(round_rows(table), plan.products["student/small"])
        stats = {f"student/small.{name}": float(value) for name, value in sums.items()}
        stats |= {"documents": float(count), "quarantined": 0.0, "text_bytes": float(sum(map(len, texts)))}
        stats |= {"teacher_tokens": float(sums["positions"]), "teacher_evaluations": float(sums["positions"])}
        assert lengths_of(table).sum() == sums["positions"]
        publish_unit(out, plan, unit.index, {"student/small": table}, [], stats)
    finish(out, plan, engine_version="benchmark", describe=describe)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--positions", type=int, default=100_000, help="of each file, about")
    parser.add_argument("--passes", type=int, default=3)
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        write(out, 64, arguments.files, arguments.positions)
        best, positions = float("inf"), 0
        for _ in range(arguments.passes):
            began = time.process_time()
            report = verify(out)
            best, positions = min(best, time.process_time() - began), report.positions
            assert report.sound, report.findings[:3]
        print(
            f"top-64: {positions:,} positions in {best:.2f} CPU s: {positions / best * 60:,.0f} positions/min and core"
        )


if __name__ == "__main__":
    main()
