"""How fast targets are read, beside other readers of the same files: python benchmarks/reader.py

Positions (of documents, padding not counted) per CPU second, all threads of the process counted, with one thread where a
reader lets that be chosen. Ours gives padded or packed torch tensors of 8 rows; `datasets` streams numpy documents and polars
collects columns, neither makes a batch. All read token_ids, scored, gold_logp, err and the codec's columns; ours reads
byte_end, flags and doc_row too. Best of several passes: other processes of the machine only ever slow it down.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["POLARS_MAX_THREADS"] = "1"  # read by polars when it is imported

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from engine.card.describe import describe
from engine.dataset.commit import open_output, publish_unit
from engine.dataset.finish import finish
from engine.dataset.parquet import encodings
from engine.reader.row_groups import BATCH_COLUMNS
from engine.reader.targets import Targets
from schemas.manifest import Plan
from tests.support.codecs import FACTS, lists, write_shard
from tests.support.tables import small_plan, targets_table

COMMON = ("token_ids", "scored", "gold_logp", "err")
CODECS = {
    "topk": ("topk_ids", "topk_logps", "tail_logp"),
    "sample": ("sample_sizes", "sample_ids", "sample_counts"),
}


def document_lengths(rng: np.random.Generator, positions: int) -> list[int]:
    """Log-normal with a median of 300 positions and at most 2,048, as in web text; about `positions` in all."""
    lengths = np.clip(rng.lognormal(np.log(300), 0.9, positions // 200), 8, 2048).astype(int)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), positions)) + 1].tolist()


def write_topk(out: Path, top_k: int, files: int, positions: int) -> None:
    """A finished output by the project's own writer."""
    rng = np.random.default_rng(top_k)
    lengths = [document_lengths(rng, positions) for _ in range(files)]
    rows = min(map(len, lengths))
    plan: Plan = small_plan(files, rows, top_k=top_k, vocab_size=151_936)
    plan = Plan.make(plan.semantic, plan.units, {"student/small": plan.products["student/small"]})
    open_output(out, plan)
    for unit, sizes in enumerate(lengths):
        table = targets_table(rng, sizes[:rows], top_k=top_k, vocab_size=151_936, first_row=unit * rows)
        publish_unit(out, plan, unit, {"student/small": table}, [], {})
    finish(out, plan, engine_version="benchmark", describe=describe)


def write_sample(out: Path, files: int, positions: int) -> None:
    """The sample codec, 50 draws from Zipf-like distributions: about 12 unique ids a position."""
    rng = np.random.default_rng(7)
    kept, first = [], 0
    for unit in range(files):
        sizes = np.array(document_lengths(rng, positions))
        table = targets_table(rng, sizes.tolist(), top_k=1, vocab_size=151_936, first_row=first)
        table = table.drop_columns(list(CODECS["topk"]))
        draws = np.sort(rng.zipf(rng.uniform(1.3, 2.6, (int(sizes.sum()), 1)), (int(sizes.sum()), 50)) % 2**17, axis=1)
        draws[~table["scored"].combine_chunks().flatten().to_numpy(zero_copy_only=False)] = -1
        new = np.ones_like(draws, bool)
        new[:, 1:] = draws[:, 1:] != draws[:, :-1]
        new &= draws >= 0
        unique = new.sum(1)
        starts = np.flatnonzero(new)
        counts = np.diff(np.append(starts, draws.size)).clip(max=50).astype(np.uint8)
        of_document = np.add.reduceat(unique, np.cumsum([0, *sizes[:-1]]))
        for name, values, width in (
            ("sample_sizes", unique.astype(np.uint8), sizes),
            ("sample_ids", draws[new].astype(np.int32), of_document),
            ("sample_counts", counts, of_document),
        ):
            array = lists(values, width)
            table = table.append_column(pa.field(name, array.type, nullable=False), array)
        name = f"data/student/drawn/train-{unit:05d}-of-{files:05d}.parquet"
        record = write_shard(out, name, table, "student/drawn", unit, 64, encoding=encoding(table))
        kept.append({"unit": unit, "quarantined": 0, "files": {"student/drawn": record}})
        first += len(sizes)
    (out / "_engine").mkdir()
    manifest = {
        "schema_name": "targetsmith.targets", "schema_version": 3, "fingerprint": "f" * 64,
        "products": {"student/drawn": {**FACTS["student/drawn"], "vocab_size": 151_936}}, "shards": kept,
    }  # fmt: skip
    (out / "_engine/manifest.json").write_text(json.dumps(manifest))


def encoding(table: pa.Table) -> dict[str, Any]:
    """As the project's writer encodes, for `write_table`."""
    return {**encodings(table.schema), "compression_level": 3, "write_page_index": True}


# ---- the readers: each goes once over all files and returns the positions that it saw --------------------------------


def ours(out: Path, **how: Any) -> int:
    return sum(int(batch["lengths"].sum()) for batch in Targets(out).batches(8, seed=0, **how))


def arrow_only(out: Path) -> int:
    """What our reader spends in Arrow: read and flatten the same columns, nothing else."""
    seen = 0
    targets = Targets(out)
    for index in range(len(targets.files)):
        for group in range(targets._main.open(index).num_row_groups):
            seen += int(targets._group(targets._main, index, group, BATCH_COLUMNS).bounds[-1])
    return seen


def datasets_stream(out: Path, columns: list[str]) -> int:
    from datasets import load_dataset

    files = [str(path) for path in Targets(out).files]
    stream = load_dataset("parquet", data_files=files, split="train", streaming=True, columns=columns)
    return sum(len(row["token_ids"]) for row in stream.with_format("numpy"))


def polars_scan(out: Path, columns: list[str]) -> int:
    """Columns of all files, file by file, as numpy arrays."""
    seen = 0
    for path in Targets(out).files:
        frame = pl.scan_parquet(path).select(columns).collect()
        seen += [frame[name].explode().to_numpy() for name in columns][0].size
    return seen


def cpu_seconds(read: Callable[[], int], passes: int) -> tuple[int, float]:
    """(positions, CPU seconds of the best pass)."""
    best, seen = np.inf, 0
    for _ in range(passes):
        start = time.process_time()
        seen = read()
        best = min(best, time.process_time() - start)
    return seen, best


def cases(out: Path, codec: str) -> Iterator[tuple[str, Callable[[], int]]]:
    columns = [*COMMON, *CODECS[codec]]
    yield "padded batches of 8", lambda: ours(out)
    yield "packed, 8 x 2,048", lambda: ours(out, pack_length=2048)
    yield "  Arrow's part of both", lambda: arrow_only(out)
    yield "datasets, numpy", lambda: datasets_stream(out, columns)
    yield "polars, numpy", lambda: polars_scan(out, columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=3)
    parser.add_argument("--positions", type=int, default=150_000, help="of each file, about")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder to keep the files in (default: a temporary one)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.out or Path(temporary)
        for name, codec, write in (
            ("top-16", "topk", lambda out: write_topk(out, 16, arguments.files, arguments.positions)),
            ("top-64", "topk", lambda out: write_topk(out, 64, arguments.files, arguments.positions)),
            ("sample", "sample", lambda out: write_sample(out, arguments.files, arguments.positions)),
        ):
            out = root / name
            if not out.exists():
                write(out)
            targets = Targets(out)
            size = sum(path.stat().st_size for path in targets.files)
            print(
                f"{name}: {targets.positions:,} positions, {targets.rows:,} documents, {size / targets.positions:.0f} B each"
            )
            first = 0.0
            for label, read in cases(out, codec):
                seen, seconds = cpu_seconds(read, arguments.passes)
                assert seen == targets.positions, f"{label}: {seen} positions, wanted {targets.positions}"
                first = first or seen / seconds
                print(
                    f"  {label:24} {seen / seconds:12,.0f} positions/s   padded is {first / (seen / seconds):5.1f} x this"
                )


if __name__ == "__main__":
    main()
