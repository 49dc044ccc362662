"""Values of positions -> how they are distributed: mean, quantiles and a histogram with edges that suit the quantity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from engine.figures.models import Spread
from schemas.errors import IdentityError

QUANTILES = {"p01": 0.01, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
_BITS_BINS = 48
_MOST_TOKEN_BYTES = 16

PROBABILITY_EDGES: tuple[float, ...] = (0.0, *(10 ** (power / 4) for power in range(-24, 0)), 1.0)
"""For widths and tails: everything below 1e-6, then four bins a power of ten, up to 1."""


def probability_edges(values: npt.NDArray[np.floating]) -> tuple[float, ...]:
    """PROBABILITY_EDGES; a mass that rounding has put a little above 1 is in the last bin."""
    return (*PROBABILITY_EDGES[:-1], max(1.0, float(values.max(initial=0.0))))


def bits_edges(values: npt.NDArray[np.floating]) -> tuple[float, ...]:
    """Equal bins from 0 to a whole number of bits. An entropy may be a rounding below 0."""
    top = float(np.ceil(values.max(initial=1.0)))
    return (min(0.0, float(values.min(initial=0.0))), *np.linspace(0, top, _BITS_BINS + 1)[1:].tolist())


def count_edges(values: npt.NDArray[np.integer]) -> tuple[float, ...]:
    """One bin for 0, 1, 2 ... and one for all that is larger."""
    top = min(int(values.max(initial=1)), _MOST_TOKEN_BYTES)
    return (*(float(n) for n in range(top + 1)), float(max(top + 1, values.max(initial=0))))


def spread_of(values: npt.NDArray[np.floating] | npt.NDArray[np.integer], edges: tuple[float, ...]) -> Spread | None:
    """None for no values. Raises IdentityError where a value is not finite or lies in no bin."""
    if not len(values):
        return None
    column = pl.Series(values, dtype=pl.Float64)
    counts, _ = np.histogram(values.astype(np.float64), edges)
    if counts.sum() != len(values):
        raise IdentityError(
            f"{len(values) - counts.sum():,} of {len(values):,} values are outside [{edges[0]}, {edges[-1]}] or NaN: "
            "`targetsmith verify` tells what is wrong with the output"
        )
    quantiles = pl.select(*(pl.lit(column).quantile(at, "nearest").alias(name) for name, at in QUANTILES.items()))
    return Spread(
        count=len(values),
        mean=float(column.mean()),  # pyright: ignore[reportArgumentType] - of numbers
        least=float(column.min()),  # pyright: ignore[reportArgumentType]
        largest=float(column.max()),  # pyright: ignore[reportArgumentType]
        quantiles=quantiles.row(0, named=True),
        edges=edges,
        counts=tuple(counts.tolist()),
    )
