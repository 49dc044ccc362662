"""The figures of a run that its card shows: those of `targetsmith stats`, of some units where the run is large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.card.markdown import code, table
from engine.dataset.store import Store
from engine.dataset.token_tables import read_tokens
from engine.figures.collect import is_sample, products_of
from engine.figures.models import ProductFigures
from engine.figures.sample import Output, choose_shards
from schemas.counts import counted
from schemas.manifest import Manifest, Plan

MOST_POSITIONS = 500_000
"""Positions of the largest product that the end of a run reads at most, for its card; one unit at least."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Headline:
    """units_read: of `units` with documents; fewer where `sampled`."""

    products: Mapping[str, ProductFigures]
    units_read: int
    sampled: bool


def headline(store: Store, plan: Plan, manifest: Manifest, most_positions: int = MOST_POSITIONS) -> Headline:
    """Of a run whose units are all sealed. Raises OutputError for a damaged file, IdentityError for impossible values."""
    output = Output(store, plan, True, manifest.engine_version, manifest.shards, manifest.stats)
    read = choose_shards(output.shards, most_positions, SEED)
    products, _ = products_of(output, read, lambda product: read_tokens(store, product, plan.products[product]))
    return Headline(products, len(read), is_sample(output, read))


def figures_table(found: Headline, names: Mapping[str, str]) -> str:
    """names: product -> its configuration."""
    head = (
        "configuration",
        "scored",
        "mean width",
        "95 % below",
        "stored mass",
        "top-1 true",
        "bits/byte",
        "bytes/token",
    )
    rows = []
    for product, figures in found.products.items():
        cost = figures.cost
        each = None if cost is None or not cost.tokens_per_byte else 1 / cost.tokens_per_byte
        rows.append(
            (
                code(names[product]),
                f"{figures.scored:,}",
                _number(figures.mean_width, ".2e"),
                _number(figures.width.quantiles["p95"] if figures.width else None, ".2e"),
                _number(figures.mean_stored_mass, ".4f"),
                _number(figures.agreement, ".3f"),
                _number(None if cost is None else cost.bits_per_byte, ".3f"),
                _number(each, ".2f"),
            )
        )
    return table(head, rows)


def sample_note(found: Headline) -> str:
    """What the distributions are of."""
    if not found.sampled:
        return "All figures are of all documents. "
    return (
        f"Means of width and stored mass are of all documents, the other figures of {counted(found.units_read, 'unit')}, "
        f"drawn with the seed {SEED}. "
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
