"""An output -> its figures (`Figures`), computed once for all who show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np

from engine.dataset.layout import own_seal, read_quarantine, seal_name, sealed_quarantine
from engine.dataset.token_tables import TokenTable, read_tokens
from engine.figures.costs import CostOfDocument, difference_of
from engine.figures.models import Difference, Figures, ProductFigures, Published, Refusal, Refused
from engine.figures.product import product_figures, sizes_only
from engine.figures.rows import read_rows
from engine.figures.sample import MOST_POSITIONS, Output, choose_shards
from schemas.manifest import ShardRecord
from schemas.products import BYTES, TEACHER
from schemas.reasons import REASONS, REMEDIES

SHOWN_REFUSALS = 5

Tokens = Callable[[str], TokenTable | None]
"""A product's name -> its tokens, None where they are not known."""


def collect(
    output: Output, *, seed: int = 0, most_positions: int = MOST_POSITIONS, tokens_of: Tokens | None = None
) -> Figures:
    """The figures of an output, finished or not.

    seed: which units are read of an output with more than `most_positions`; which documents of the quarantine are named.
    tokens_of: default, the tokens in the output. Raises OutputError for a damaged file, IdentityError for impossible values.
    """
    store, plan, stats = output.store, output.plan, output.stats
    known = tokens_of or (lambda product: read_tokens(store, product, plan.products[product]))
    read = choose_shards(output.shards, most_positions, seed)
    products, costs = products_of(output, read, known)
    boundaries = stats.get("beam.boundaries", 0)
    tokens, evaluations = stats.get("teacher_tokens", 0), stats.get("teacher_evaluations", 0)
    return Figures(
        out=str(store),
        fingerprint=plan.fingerprint,
        engine_version=output.engine_version,
        finished=output.finished,
        units=len(plan.units),
        sealed=len(output.shards),
        documents=sum(plan.units[shard.unit].n_rows for shard in output.shards),
        quarantined=sum(shard.quarantined for shard in output.shards),
        sources=_sources(output),
        text_bytes=int(stats.get("text_bytes", 0)),
        teacher_tokens=int(tokens),
        teacher_evaluations=int(evaluations),
        evaluations_per_token=evaluations / tokens if tokens else None,
        expected_tv=stats["beam.expected_tv_sum"] / boundaries if boundaries else None,
        target_error=plan.target_error,
        seed=seed,
        read_units=len(read),
        sampled=is_sample(output, read),
        products=products,
        differences=_differences(costs),
        quarantine=_quarantine(output, seed),
        published=_published(output),
    )


def products_of(
    output: Output, read: Sequence[ShardRecord], tokens_of: Tokens
) -> tuple[dict[str, ProductFigures], dict[str, dict[int, CostOfDocument]]]:
    """(figures of each product, product -> doc_row -> what its text costs), distributions and costs of the units that are read.
    Raises as `collect`."""
    products: dict[str, ProductFigures] = {}
    costs: dict[str, dict[int, CostOfDocument]] = {}
    for product, facts in output.plan.products.items():
        if facts.codec == "hidden":
            products[product] = sizes_only(product, facts, output.shards, output.stats)
            continue
        groups = read_rows(output.store, output.plan, product, read)
        products[product], costs[product] = product_figures(
            product, facts, output.shards, output.stats, groups, tokens_of(product)
        )
    return products, costs


def is_sample(output: Output, read: Sequence[ShardRecord]) -> bool:
    """Whether units with documents are left out."""
    return len(read) < sum(any(shard.files.values()) for shard in output.shards)


def _differences(costs: dict[str, dict[int, CostOfDocument]]) -> tuple[Difference, ...]:
    """All products beside the teacher's own; in a run without it, beside the bytes, else beside the first."""
    if len(costs) < 2:
        return ()
    against = next((name for name in (TEACHER, BYTES) if name in costs), next(iter(costs)))
    return tuple(
        difference_of(product, ours, against, costs[against]) for product, ours in costs.items() if product != against
    )


def _sources(output: Output) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for shard in output.shards:
        unit = output.plan.units[shard.unit]
        counts[output.plan.source_of(unit)] += unit.n_rows
    return {name: count for name, count in counts.items() if name}


def _quarantine(output: Output, seed: int) -> tuple[Refused, ...]:
    """By reason, the most frequent first, each with some documents drawn by the seed (of a stream, by algorithm R)."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    samples: dict[str, list[Refusal]] = {}
    for shard in output.shards:
        if not shard.quarantined:
            continue
        records = (
            sealed_quarantine(output.store, shard) if output.finished else read_quarantine(output.store, shard.unit)
        )
        for record in records:
            reason = record["reason"]
            counts[reason] += 1
            taken = samples.setdefault(reason, [])
            words = (str(record.get(key, "")) for key in ("doc_id", "source", "place", "detail"))
            refusal = Refusal(**dict(zip(("doc_id", "source", "place", "detail"), words, strict=True)))
            if len(taken) < SHOWN_REFUSALS:
                taken.append(refusal)
            elif (at := int(rng.integers(counts[reason]))) < SHOWN_REFUSALS:
                taken[at] = refusal
    return tuple(
        Refused(
            reason=reason, meaning=REASONS[reason], remedy=REMEDIES[reason], count=count, samples=tuple(samples[reason])
        )
        for reason, count in counts.most_common()
    )


def _published(output: Output) -> Published | None:
    """An output says nowhere when it was made; the times of its seals on a disk do, as long as it is not copied."""
    store = output.store
    times = {shard.unit: store.published_s(seal_name(shard.unit)) for shard in output.shards}
    known = sorted((time, unit) for unit, time in times.items() if time is not None)
    if len(known) < max(2, len(output.shards)):
        return None
    first = known[0][0]
    tokens = [own_seal(store, output.plan, unit).stats.get("teacher_tokens", 0.0) for _, unit in known]
    return Published(
        first=datetime.fromtimestamp(first, UTC).isoformat(timespec="seconds"),
        seconds=tuple(time - first for time, _ in known),
        teacher_tokens=tuple(tokens),
    )
