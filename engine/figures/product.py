"""One product -> its figures: totals from the seals, distributions and places from the rows that are read.

K = top_k, N = positions of a row group. Memory: some numbers of each scored position, and one row group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.dataset.token_tables import TokenTable
from engine.figures.costs import CostOfDocument, add_cost, costs_of
from engine.figures.models import Place, ProductFigures
from engine.figures.rows import Rows, entropy_bits
from engine.figures.spreads import bits_edges, count_edges, probability_edges, spread_of
from engine.figures.texts import around, token_name
from schemas.manifest import ProductFacts, ShardRecord

SHOWN_PLACES = 20
_AROUND_BYTES = 60
_MEANS = ("err", "stored_mass", "open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass")


@dataclass
class _Sums:
    """What is gathered group by group. Each list has an array for a row group, of its scored positions."""

    documents: int = 0
    positions: int = 0
    widths: list[Any] = field(default_factory=list)
    tails: list[Any] = field(default_factory=list)
    entropies: list[Any] = field(default_factory=list)
    surprises: list[Any] = field(default_factory=list)
    sizes: list[Any] = field(default_factory=list)
    mass_K: Any = 0.0
    agreed: int = 0
    widest: list[Place] = field(default_factory=list)
    surprising: list[Place] = field(default_factory=list)


def product_figures(
    product: str,
    facts: ProductFacts,
    shards: Sequence[ShardRecord],
    stats: Mapping[str, float],
    groups: Iterable[Rows],
    tokens: TokenTable | None,
) -> tuple[ProductFigures, dict[int, CostOfDocument]]:
    """(figures, doc_row -> what its text costs). shards, stats: of all that is published; groups: what is read of it.

    Raises IdentityError for values that no sound output has, and OutputError with `groups`.
    """
    sums, costs = _Sums(), {}
    for rows in groups:
        _add(sums, rows, tokens)
        costs |= costs_of(rows)
    sized = [file for shard in shards if (file := shard.files[product]) is not None]
    scored = int(stats.get(f"{product}.scored", 0))
    means = {name: stats.get(f"{product}.{name}_sum", 0.0) / scored if scored else None for name in _MEANS}
    if facts.codec != "topk":
        means["stored_mass"] = None
    widths, tails, entropies = (_joined(values) for values in (sums.widths, sums.tails, sums.entropies))
    surprises, sizes = _joined(sums.surprises), _joined(sums.sizes)
    count = len(widths)
    return ProductFigures(
        facts=facts,
        files=len(sized),
        documents=sum(file.rows for file in sized),
        positions=sum(file.positions for file in sized),
        scored=scored,
        disk_bytes=sum(file.bytes for file in sized),
        mean_width=means["err"],
        mean_stored_mass=means["stored_mass"],
        mean_open_mass=means["open_mass"],
        mean_excluded_mass=means["excluded_mass"],
        mean_pruned_mass=means["pruned_mass"],
        mean_noncanonical_mass=means["noncanonical_mass"],
        impossible=int(stats.get(f"{product}.gold_impossible", 0)),
        read_documents=sums.documents,
        read_positions=sums.positions,
        width=spread_of(widths, probability_edges(widths)),
        tail_mass=spread_of(tails, probability_edges(tails)),
        entropy=spread_of(entropies, bits_edges(entropies)),
        surprise=spread_of(surprises, bits_edges(surprises)),
        token_bytes=spread_of(sizes, count_edges(sizes)),
        mass_by_rank=tuple((np.asarray(sums.mass_K) / count).tolist()) if count and facts.codec == "topk" else (),
        agreement=sums.agreed / count if count and facts.codec == "topk" else None,
        cost=add_cost(costs.values()),
        widest=tuple(place for place in sums.widest if place.width > 0),
        most_surprising=tuple(sums.surprising),
        disk_bytes_per_position=tuple(file.bytes / file.positions for file in sized),
    ), costs


def sizes_only(
    product: str, facts: ProductFacts, shards: Sequence[ShardRecord], stats: Mapping[str, float]
) -> ProductFigures:
    """The figures of hidden states, which have no distributions."""
    made, _ = product_figures(product, facts, shards, stats, (), None)
    empty = dict.fromkeys(f"mean_{'width' if name == 'err' else name}" for name in _MEANS)
    return made.model_copy(update={**empty, "cost": None})


def _add(sums: _Sums, rows: Rows, tokens: TokenTable | None) -> None:
    scored = rows.scored_N
    sums.documents += len(rows.doc_ids)
    sums.positions += len(scored)
    sums.widths.append(rows.width_N[scored])
    surprise_N = rows.surprise_N
    sums.surprises.append(surprise_N[scored & np.isfinite(surprise_N)].astype(np.float32))
    sums.sizes.append((rows.end_N - rows.start_N)[scored & ~rows.is_end_N].astype(np.int32))
    if rows.ids_NK is not None and rows.logps_NK is not None and rows.tail_logp_N is not None:
        logps_NK, tail_N = rows.logps_NK[scored], rows.tail_logp_N[scored]
        sums.tails.append(np.exp(tail_N))
        sums.entropies.append(entropy_bits(logps_NK, tail_N).astype(np.float32))
        sums.mass_K = sums.mass_K + np.exp(logps_NK.astype(np.float64)).sum(0)
        sums.agreed += int((rows.ids_NK[:, 0] == rows.token_ids_N)[scored].sum())
    positions = np.flatnonzero(scored)
    sums.widest = _worst(sums.widest, rows, positions, rows.width_N.astype(np.float64), tokens, lambda p: p.width)
    sums.surprising = _worst(sums.surprising, rows, positions, surprise_N, tokens, _bits)


def _worst(known: list[Place], rows: Rows, positions: Any, badness_N: Any, tokens: Any, of: Any) -> list[Place]:
    """The SHOWN_PLACES worst of those that are known and those of this group, the worst first, then in corpus order."""
    least = of(known[-1]) if len(known) == SHOWN_PLACES else -np.inf
    worth = positions[badness_N[positions] > least]
    order = worth[np.argsort(-badness_N[worth], kind="stable")[:SHOWN_PLACES]]
    found = [_place(rows, int(n), tokens) for n in order]
    return sorted([*known, *found], key=lambda place: (-of(place), place.doc_row, place.position))[:SHOWN_PLACES]


def _bits(place: Place) -> float:
    return np.inf if place.surprise_bits is None else place.surprise_bits


def _place(rows: Rows, n: int, tokens: TokenTable | None) -> Place:
    document = int(np.searchsorted(rows.first_D1, n, side="right")) - 1
    start, end = int(rows.start_N[n]), int(rows.end_N[n])
    before, _, after = around(rows.texts[document], start, end, _AROUND_BYTES)
    bits = float(rows.surprise_N[n])
    return Place(
        doc_row=rows.doc_rows[document],
        doc_id=rows.doc_ids[document],
        position=n - int(rows.first_D1[document]),
        start_bytes=start,
        end_bytes=end,
        token=token_name(tokens, int(rows.token_ids_N[n])),
        before=before,
        after=after,
        width=float(rows.width_N[n]),
        surprise_bits=bits if np.isfinite(bits) else None,
        likeliest=token_name(tokens, int(rows.ids_NK[n, 0])) if rows.ids_NK is not None else "",
    )


def _joined(parts: list[Any]) -> Any:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
