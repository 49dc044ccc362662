"""How large targets are on disk, column by column, and how far rounding moves them: top-k and draws of the same documents.

    python -m benchmarks.codecs                                     the demo's teacher and students
    python -m benchmarks.codecs --teacher T --student S --corpus C.jsonl --column text --documents 40

Every figure is bytes in the Parquet files per position of the product, footers included in the total.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from engine.card.describe import describe
from engine.corpus.scan import scan_corpus
from engine.corpus.units import read_units, sample
from engine.dataset.commit import open_output
from engine.dataset.finish import finish
from engine.plan.make_plan import ENGINE_VERSION, make_plan
from engine.plan.pin import pin
from jobs.pool.unit_worker import UnitWorker
from schemas.manifest import Manifest
from schemas.runfile import parse_run

ASSETS = Path(__file__).resolve().parent.parent / "jobs" / "demo_assets"


def scored(folder: Path, arguments: argparse.Namespace, targets: dict[str, object]) -> tuple[Path, Manifest]:
    """One run in this process."""
    table = {
        "output": str(folder),
        "teacher": {"model": str(arguments.teacher), "device": "cpu"},
        "corpus": {
            "paths": [str(arguments.corpus)],
            "text": arguments.column,
            "limit": arguments.documents,
            "unit_documents": 256,
        },
        "student": [{"name": Path(s).name.replace(" ", "_"), "tokenizer": str(s)} for s in arguments.student],
        "targets": {"store_text": False, **targets},
        "ray": {"num_cpus": 1},
    }
    run = parse_run(table, base_dir=Path.cwd())
    scan = scan_corpus(run.corpus, run.base_dir)
    plan = make_plan(run, scan)
    open_output(run.output, plan)
    worker = UnitWorker(pin(run), plan, sample(run.corpus, scan, run.targets.calibration_documents))
    for unit, documents in read_units(run.corpus, scan, range(len(plan.units))):
        worker.score(unit, documents)
    return Path(run.output), finish(run.output, plan, engine_version=ENGINE_VERSION, describe=describe)


def report(title: str, out: Path, manifest: Manifest) -> None:
    """One line per product, then its columns."""
    for product, total in sorted(manifest.totals.items()):
        if not total.positions:
            continue
        columns: dict[str, int] = defaultdict(int)
        for file in sorted((out / "data" / product).glob("*.parquet")):
            meta = pq.read_metadata(file)
            for group in range(meta.num_row_groups):
                for column in range(meta.num_columns):
                    chunk = meta.row_group(group).column(column)
                    columns[chunk.path_in_schema.split(".")[0]] += chunk.total_compressed_size
        stats = manifest.stats
        rounding = stats.get(f"{product}.rounding_nats_max", 0.0)
        mass = stats.get(f"{product}.stored_mass_sum", 0.0) / max(1.0, stats[f"{product}.scored"])
        bytes_each = total.bytes / total.positions
        line = f"{title:8} {product:24} {total.positions:9,} positions {bytes_each:7.1f} bytes/position"
        print(f"{line}  stored mass {mass:.4f}  rounding <= {rounding:.4f} nats")
        shares = sorted(columns.items(), key=lambda item: -item[1])
        print("         " + ", ".join(f"{name} {size / total.positions:.2f}" for name, size in shares))
        if "sample_ids" in columns:
            drawn = sum(len(ids) for ids in pq.read_table(out / "data" / product, columns=["sample_ids"])["sample_ids"])
            print(f"         {drawn / stats[f'{product}.scored']:.2f} different tokens drawn at a scored position")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=ASSETS / "teacher", type=Path)
    parser.add_argument("--student", nargs="+", default=[ASSETS / "student_sp", ASSETS / "student_bl"])
    parser.add_argument("--corpus", default=ASSETS / "corpus.jsonl", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--draws", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted = {"top_k": arguments.top_k, "teacher_stats": True, "hidden": True, "bytes": True}
        report("top-k", *scored(Path(folder, "top"), arguments, wanted))
        draws = {"codec": "sample", "draws": arguments.draws, "teacher": False}
        report("sample", *scored(Path(folder, "sample"), arguments, draws))
    print(json.dumps({"documents": arguments.documents, "top_k": arguments.top_k, "draws": arguments.draws}))


if __name__ == "__main__":
    main()
