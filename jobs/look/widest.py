"""Where a product is least certain: its scored positions by certified width, and the documents whose mean width is largest.

Goes through all shards of the product once, one row group at a time. What it is for: choosing `[targets] tolerance`, a reader's
`max_width`, and which documents to look at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TextIO

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.dataset.layout import load_plan, load_seals
from engine.dataset.parquet import open_shard
from engine.dataset.store import Out, Store, open_store
from jobs.look.document_view import CONTROLS
from jobs.look.options import View
from jobs.look.products import choose
from schemas.errors import OutputError
from schemas.manifest import Plan

WIDTHS = (0.0, 1e-4, 1e-3, 1e-2, 0.05, 0.2, 1.0)
_PIPE_WIDTH = 110  # columns where the output is not a terminal
_SHARES = ("err", "open_mass", "pruned_mass")
_DOCUMENT: Any = {"doc_row": pl.Int64, "doc_id": pl.String, "scored": pl.Int64} | dict.fromkeys(
    ("width", "largest", "open", "pruned"), pl.Float64
)


def show_widest(out: Out, *, count: int, student: str | None, view: View | None, stream: TextIO) -> None:
    """Print the table of the `count` documents with the largest mean width, and how many positions are how wide."""
    store = open_store(out)
    plan = load_plan(store)
    product = choose(store, list(plan.products), student, view, first=True)
    if plan.products[product].codec == "hidden":
        raise OutputError(f"{store}: hidden states have no width; --view or --student names a product that has")
    below, documents = widths_of(store, plan, product)
    console = Console(file=stream, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    total = int(documents["scored"].sum())
    console.print(f"{product}: {total:,} scored positions by certified width", markup=False)
    for width, count_below in below.items():
        console.print(f"  at most {width:<6g} {count_below / max(1, total):8.2%}  {count_below:,}", markup=False)
    table = Table("document", "doc_id", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("scored", "mean width", "largest", "open", "pruned"):
        table.add_column(name, justify="right", no_wrap=True)
    widest = documents.sort("width", "doc_row", descending=[True, False]).head(count)
    for row in widest.iter_rows(named=True):
        shares = (f"{row[name]:.2e}" for name in ("width", "largest", "open", "pruned"))
        table.add_row(str(row["doc_row"]), escape(row["doc_id"].translate(CONTROLS)), f"{row['scored']:,}", *shares)
    console.print(table)


def widths_of(store: Store, plan: Plan, product: str) -> tuple[dict[float, int], pl.DataFrame]:
    """What is published of a product: (width -> scored positions with at most this width, a row for each document).

    Columns of the rows: doc_row, doc_id, scored (positions), width and largest (mean and maximum of the certified width), open
    and pruned (mean masses). Documents without a scored position are left out. Raises OutputError for a damaged file.
    """
    below = dict.fromkeys(WIDTHS, 0)
    documents = [pl.DataFrame(schema=_DOCUMENT)]
    for rows in _row_groups(store, plan, product):
        scored = rows.explode("scored", *_SHARES).filter("scored")
        for width in WIDTHS:
            below[width] += int((scored["err"] <= width).sum())
        made = scored.group_by("doc_row", "doc_id").agg(
            pl.len().cast(pl.Int64).alias("scored"),
            pl.col("err").mean().alias("width"),
            pl.col("err").max().alias("largest"),
            pl.col("open_mass").mean().alias("open"),
            pl.col("pruned_mass").mean().alias("pruned"),
        )
        documents.append(made.cast(_DOCUMENT))
    return below, pl.concat(documents)


def _row_groups(store: Store, plan: Plan, product: str) -> Iterator[pl.DataFrame]:
    """Documents with their lists of widths and masses, float64."""
    for seal in load_seals(store, plan):
        record = seal.files[product]
        if record is None:
            continue
        with store.open(record.name) as data, open_shard(data, store.place(record.name)) as shard:
            for group in range(shard.file.num_row_groups):
                frame = pl.from_arrow(shard.file.read_row_group(group, ["doc_row", "doc_id", "scored", *_SHARES]))
                assert isinstance(frame, pl.DataFrame)
                yield frame.with_columns(pl.col(_SHARES).cast(pl.List(pl.Float64)))
