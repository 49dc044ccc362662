"""Two outputs compared, for a terminal."""

from __future__ import annotations

from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from engine.dataset.store import Out
from engine.figures import open_published
from engine.figures.compare import Comparison, Side, compare
from engine.figures.models import Spread
from engine.figures.sample import Output
from jobs.look.document_view import CONTROLS, tokens_of
from jobs.look.figure_tables import console_for, number
from jobs.look.options import View
from jobs.look.products import choose
from schemas.counts import counted
from schemas.errors import RunFileError
from schemas.products import student_product

_QUANTILES = ("p50", "p75", "p95", "p99")
_BY = {
    "tokens": "token by token (the same vocabulary). What one of the two does not store counts as one outcome, the rest.",
    "first bytes": "by the next byte (other vocabularies): the first byte of each stored token. What is not stored, and bytes "
    "that only one of the two gives mass, count as one outcome, the rest; byte 0 is left out (some tokenizers put a space before "
    "it). Differences are to be expected: that a token ends at a place says what does not follow, and each tokenizer says "
    "it otherwise.",
    "nothing": "not at all: drawn tokens are no distributions. Costs only.",
}


def compare_outputs(
    a: Out, b: Out, *, student: str | None, view: View | None, to: str | None, documents: int, seed: int
) -> Comparison:
    """Open both and compare a product of each. Raises OutputError, RunFileError."""
    one, other = open_published(a), open_published(b)
    product = choose(one.store, list(one.plan.products), student, view, first=one.store.url != other.store.url)
    wanted = to or product
    if to is not None and to not in other.plan.products and student_product(to) in other.plan.products:
        wanted = student_product(to)
    if wanted not in other.plan.products:
        listed = ", ".join(sorted(other.plan.products))
        raise RunFileError(
            f"{other.store}: no product {wanted!r} here, this run has {listed}; say which by --to PRODUCT"
        )
    if (str(one.store), product) == (str(other.store), wanted):
        raise RunFileError(f"{one.store}, {product}: compared with itself; name another product by --to PRODUCT")
    return compare(_side(one, product), _side(other, wanted), seed=seed, documents=documents)


def _side(output: Output, product: str) -> Side:
    return Side(output, product, tokens_of(output.store, product, output.plan.products[product]))


def print_comparison(found: Comparison, stream: TextIO) -> None:
    """All tables."""
    console = console_for(stream)
    drawn = f"{counted(found.drawn, 'document')} of A, {found.found:,} of them in B"
    other = f", {found.other_text:,} in B with another text" if found.other_text else ""
    console.print(
        f"A: {found.one} ({found.one_facts.regime})\nB: {found.other} ({found.other_facts.regime})", markup=False
    )
    console.print(
        f"{drawn}{other} (seed {found.seed}); {found.positions:,} positions at the same place, {found.only_one:,} only in A, "
        f"{found.only_other:,} only in B",
        markup=False,
    )
    console.print(f"Compared {_BY[found.by]}", markup=False)
    if found.same_bytes:
        console.print("Every stored number of these positions is the same.", markup=False)
    if found.least_tv is not None:
        console.print(_spreads(found))
    if found.same_top is not None:
        infinite = f"; KL infinite at {found.infinite_kl:,} (A, B) and {found.infinite_kl_back:,} (B, A) positions"
        many = infinite if found.infinite_kl or found.infinite_kl_back else ""
        console.print(f"The likeliest is the same at {found.same_top:.2%} of the positions{many}.", markup=False)
    if found.by == "tokens":
        told = (
            f"At {found.beyond_width:,} positions they are farther apart than both widths allow: not the same teacher, meaning "
            "(semantics) or text, or a bug."
            if found.beyond_width
            else "Nowhere are they farther apart than their certified widths allow: both can be right."
        )
        console.print(told, markup=False)
    if (cost := found.cost) is not None and cost.documents:
        console.print(
            f"Bits per byte: A {number(cost.bits_per_byte, '.4f')}, B {number(cost.against_bits_per_byte, '.4f')}, "
            f"difference {number(cost.difference_bits_per_byte, '+.4f')} ({counted(cost.documents, 'document')} with "
            "the same scored bytes"
            f"{f', {cost.left_out:,} left out' if cost.left_out else ''})",
            markup=False,
        )
    elif "imported" in (found.one_facts.regime, found.other_facts.regime):
        console.print(
            "Bits per byte are not compared: what mass an imported product excludes is not known.", markup=False
        )
    if found.worst:
        console.print(_worst(found))


def _spreads(found: Comparison) -> Table:
    table = Table(Column("a position", min_width=34), box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("mean", *_QUANTILES, "largest"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=9)
    rows: list[tuple[str, Spread | None]] = [
        ("total variation, at least", found.least_tv),
        ("total variation, at most", found.most_tv),
        ("KL(A, B), bits", found.kl),
        ("KL(B, A), bits", found.kl_back),
    ]
    for title, spread in rows:
        if spread is not None:
            values = (spread.mean, *(spread.quantiles[name] for name in _QUANTILES), spread.largest)
            table.add_row(title, *(number(value) for value in values))
    return table


def _worst(found: Comparison) -> Table:
    table = Table(Column("documents that differ most", overflow="fold", min_width=34), box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("positions", "mean TV", "largest TV", "at byte"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found.worst:
        values = (f"{one.positions:,}", number(one.mean_tv), number(one.largest_tv), f"{one.largest_at_bytes:,}")
        table.add_row(escape(one.doc_id.translate(CONTROLS)), *values)
    return table
