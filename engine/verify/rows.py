"""The rows of one row group against docs/format.md: the invariants of section 3, and what section 2 promises beside.

Letters: N positions of the table, K top_k, D documents. A table that is looked at here has the schema of its product and
lists that fit each other (engine/dataset/invariants.py, `misfit`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.dataset.invariants import SIGN_TOLERANCE, BrokenInvariant, broken_invariants, first_broken, mass_tolerance
from engine.dataset.parquet import flat, lengths_of, rounded
from schemas.errors import IdentityError
from schemas.manifest import ProductFacts
from schemas.products import BYTES, BYTES_END
from schemas.target import (
    COARSER,
    FLAG_ANEW,
    FLAG_BOUNDED,
    FLAG_BUDGET,
    FLAG_CONTEXT,
    FLAG_END,
    FLAG_EXACT,
    FLAG_GIVEN,
    FLAG_NO_MASS,
    MANTISSA_BITS,
    SHARE_COLUMNS,
    WHOLE_COLUMNS,
)

SHARES = ("err", *SHARE_COLUMNS)
_KNOWN_FLAGS = FLAG_EXACT | FLAG_BOUNDED | FLAG_BUDGET | FLAG_GIVEN | FLAG_END | FLAG_NO_MASS | FLAG_CONTEXT | FLAG_ANEW
_ZERO = {  # regime -> columns that are 0 there: nothing is open, excluded or left out by construction
    "own": ("err", "open_mass", "excluded_mass", "pruned_mass"),
    "same": ("err", "open_mass", "excluded_mass", "pruned_mass"),
    "subset": ("open_mass",),
    "bytes": ("open_mass",),
    "imported": SHARE_COLUMNS,
}


def broken_in(
    product: str, table: pa.Table, facts: ProductFacts, text_stored: bool | None
) -> Iterator[BrokenInvariant]:
    """All that is wrong with the rows, the first position of each kind. text_stored: None where the plan does not say."""
    yield from broken_invariants(table, facts)
    yield from _precision(table)
    yield from _flags(table, facts)
    if facts.codec == "topk":
        yield from _outside_top_k(table, facts)
    if facts.statistics:
        scored_N = flat(table, "scored")
        for name in ("space_logp", "end_logp"):
            values = flat(table, name)
            yield from first_broken(~scored_N & (values > -np.inf), name, f"{name} {{}} where unscored", "-inf", values)
    yield from _texts(product, table, text_stored)


def _precision(table: pa.Table) -> Iterator[BrokenInvariant]:
    """Floats hold rounded values: rounding them again changes nothing."""
    for column in table.schema:
        stored, name = column.type, column.name
        if not pa.types.is_list(stored) or not pa.types.is_floating(stored.value_type) or name in WHOLE_COLUMNS:
            continue
        values = flat(table, name)
        try:
            again = rounded(name, values)
        except IdentityError:  # NaN, or outside [0, 1]: an invariant that is reported already
            continue
        if not np.array_equal(again, values):
            wrong = again != values
            width = len(values) // max(1, len(flat(table, "token_ids")))
            at = int(np.argmax(wrong))
            bits = COARSER.get(name, MANTISSA_BITS)
            wanted = f"values rounded to {bits} mantissa bits"
            text = f"{name} {values[at]!r}, which rounds to {again[at]!r}"
            yield BrokenInvariant(at // width, int(wrong.reshape(-1, width).any(1).sum()), name, text, wanted)


def _flags(table: pa.Table, facts: ProductFacts) -> Iterator[BrokenInvariant]:
    flags_N, scored_N = flat(table, "flags"), flat(table, "scored")
    text = "flags {}"
    yield from first_broken(flags_N & ~np.uint8(_KNOWN_FLAGS), "flags", text, "known bits only", flags_N)
    exact_N, bounded_N = (flags_N & FLAG_EXACT) != 0, (flags_N & FLAG_BOUNDED) != 0
    if facts.regime == "imported":
        certified = scored_N & (exact_N | bounded_N)
        yield from first_broken(
            certified, "flags", text, "neither 1 nor 2: rows of another program have no certificate", flags_N
        )
    else:
        neither = scored_N & (exact_N == bounded_N)
        yield from first_broken(neither, "flags", text, "1 (exact) or 2 (bounded) where scored, not both", flags_N)
    budget_N = (flags_N & FLAG_BUDGET) != 0
    yield from first_broken(budget_N & ~bounded_N, "flags", text, "4 (budget) only beside 2 (bounded)", flags_N)
    why_N = (flags_N & (FLAG_GIVEN | FLAG_NO_MASS | FLAG_CONTEXT)) != 0
    yield from first_broken(
        ~scored_N & ~why_N, "flags", text, "8, 32 or 64, which say why a position is unscored", flags_N
    )
    if facts.codec != "hidden":
        err_N = flat(table, "err")
        yield from first_broken(scored_N & exact_N & (err_N != 0), "err", "err {} where exact (flag 1)", "0", err_N)
        if facts.regime == "imported":
            wanted = "1, which any distribution keeps"
            yield from first_broken(scored_N & (err_N != 1), "err", "err {} in the regime imported", wanted, err_N)
        for name in _ZERO.get(facts.regime, ()):
            values = flat(table, name)
            wrong = scored_N & (values != 0)
            yield from first_broken(wrong, name, f"{name} {{}}", f"0 in the regime {facts.regime}", values)


def _outside_top_k(table: pa.Table, facts: ProductFacts) -> Iterator[BrokenInvariant]:
    """The K likeliest are stored: no other token is likelier than the last of them, nor than the tail as a whole."""
    scored_N, gold_N, tail_N = flat(table, "scored"), flat(table, "gold_logp"), flat(table, "tail_logp")
    yield from first_broken(~scored_N & (tail_N != 0), "tail_logp", "tail {} where unscored", "0", tail_N)
    ids_NK = flat(table, "topk_ids").reshape(-1, facts.top_k)
    last_N = flat(table, "topk_logps").reshape(-1, facts.top_k)[:, -1]
    most_N = np.minimum(last_N, tail_N)
    slack_N = SIGN_TOLERANCE + 2.0**-MANTISSA_BITS * np.where(np.isfinite(most_N), np.abs(most_N), 0)
    out_N = scored_N & ~(ids_NK == flat(table, "token_ids")[:, None]).any(1)
    text = "gold log-probability {} of a token that is not in the top-k, whose last has {} and whose tail {}"
    wanted = "no more than both"
    yield from first_broken(out_N & (gold_N > most_N + slack_N), "gold_logp", text, wanted, gold_N, last_N, tail_N)


def _texts(product: str, table: pa.Table, stored: bool | None) -> Iterator[BrokenInvariant]:
    lengths_D, ends_N = lengths_of(table), flat(table, "byte_end")
    sizes_D = pc.call_function("binary_length", [table.column("text")]).to_numpy().astype(np.int64)
    last_D = np.cumsum(lengths_D) - 1
    first_N = np.zeros(len(ends_N), bool)  # what is wrong with a document is told at its first position
    if stored is False or (stored is None and not sizes_D.any()):
        first_N[last_D - lengths_D + 1] = sizes_D != 0
        yield from first_broken(first_N, "text", "a text", "none, the run stores no texts")
        return
    ends_D = np.zeros(len(ends_N), np.int64)
    ends_D[last_D] = sizes_D
    wrong = np.zeros(len(ends_N), bool)
    wrong[last_D] = ends_N[last_D] != sizes_D
    text = "the last byte_end is {}, the text has {} bytes"
    yield from first_broken(wrong, "byte_end", text, "the end of the text", ends_N, ends_D)
    if product == BYTES:
        token_N = flat(table, "token_ids")
        byte_N = token_N != BYTES_END
        count_N = np.cumsum(byte_N)
        before_D = count_N[last_D - lengths_D + 1] - byte_N[last_D - lengths_D + 1]
        yield from first_broken(
            ends_N != count_N - np.repeat(before_D, lengths_D), "byte_end", "byte_end {}", "1, 2 ..", ends_N
        )
        data = np.frombuffer("".join(table.column("text").to_pylist()).encode(), np.uint8)
        if not wrong.any() and len(data) == int(byte_N.sum()):
            other = np.zeros(len(ends_N), bool)
            other[byte_N] = token_N[byte_N] != data
            yield from first_broken(other, "token_ids", "byte {}", "the byte of the text", token_N)


def sums_of(table: pa.Table, facts: ProductFacts) -> dict[str, float]:
    """The statistics of the seal, from stored values: name behind `<product>.` -> sum over the scored positions."""
    scored_N = flat(table, "scored")
    sums = {"documents": table.num_rows, "positions": len(scored_N), "scored": int(scored_N.sum())}
    if facts.codec == "hidden":
        return sums
    gold = flat(table, "gold_logp")[scored_N].astype(np.float64)
    sums |= {f"{name}_sum": float(flat(table, name)[scored_N].sum(dtype=np.float64)) for name in SHARES}
    sums |= {"gold_nats_sum": -float(gold[np.isfinite(gold)].sum()), "gold_impossible": int(np.isneginf(gold).sum())}
    if facts.codec == "topk":
        tail = flat(table, "tail_logp")[scored_N]
        sums["stored_mass_sum"] = float((1 - np.exp(tail.astype(np.float64))).sum())
    return sums


def sum_slack(name: str, value: float, scored: float, facts: ProductFacts) -> float:
    """How far a sum over stored values may lie from the one that was counted before rounding; a hundredth more, since two
    attempts at a unit may have counted and stored."""
    if name in ("documents", "positions", "scored", "gold_impossible"):
        return 0.0
    if name == "stored_mass_sum":
        return mass_tolerance(facts.top_k) * scored + 0.01 * scored**0.5
    if name == "gold_nats_sum":
        return 0.011 * abs(value) + 1e-3
    return (0.01 + 2.0 ** -COARSER.get(name.removesuffix("_sum"), MANTISSA_BITS)) * abs(value) + 1e-3
