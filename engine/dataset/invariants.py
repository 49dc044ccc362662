"""Whether the rows of a product keep what docs/format.md, section 3, promises: sums of probabilities, signs, orders, ranges.

A table at stored precision goes in, broken invariants come out. `check_rows` refuses rows before they are published;
engine/verify/rows.py lists all that is wrong with published ones.

Letters: N positions of the table (sum of T over its documents), K = top_k, S = stored samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.dataset.parquet import flat, lengths_of
from schemas.errors import IdentityError
from schemas.manifest import ProductFacts
from schemas.target import (
    BOUND_COLUMNS,
    FLAG_CONTEXT,
    FLAG_GIVEN,
    FLAG_NO_MASS,
    MANTISSA_BITS,
    PAD_ID,
    ROLES,
    SHARE_COLUMNS,
)

SIGN_TOLERANCE = 1e-6
"""A log-probability may exceed 0, and a share may exceed 1, by this much: float32 sums. Nothing is clamped."""
_MOST = {name: 1.0 if name in BOUND_COLUMNS else 1 + SIGN_TOLERANCE for name in ("err", *SHARE_COLUMNS)}
"""The largest value of a column. Upper bounds were limited to 1 where they were made; the others are float32 sums."""


def mass_tolerance(top_k: int) -> float:
    """How far stored mass + tail may lie from 1.

    Rounding moves each log-probability by at most 2**-11 of itself, so the sum of p by at most 2**-11 * H with H the
    entropy of the K + 1 parts, H <= ln(K + 1): 2.0e-3 at K = 64. 2 % for the second order, 1e-6 for the arithmetic.
    """
    return 1.02 * 2.0 ** -(MANTISSA_BITS + 1) * float(np.log(top_k + 1)) + 1e-6


@dataclass(frozen=True, slots=True)
class BrokenInvariant:
    """An invariant that does not hold: where it first breaks (over the whole table, 0 <= position < N), at how many positions,
    and the column, the finding and the wish in words."""

    position: int
    count: int
    column: str
    found: str
    wanted: str

    @property
    def text(self) -> str:
        return f"{self.found}, wanted {self.wanted}"


def check_rows(table: pa.Table, facts: ProductFacts, *, where: str) -> None:
    """Raises ValueError when the table has another schema or list lengths than the product (the caller is wrong),
    IdentityError with document, position and numbers when an invariant is broken."""
    schema = facts.schema_of_rows
    if not table.schema.equals(schema, check_metadata=False):
        raise ValueError(f"{where}: got schema\n{table.schema}\nwanted\n{schema}")
    if wrong := misfit(table, facts):
        raise ValueError(f"{where}: {wrong} ({facts})")
    broken = next(broken_invariants(table, facts), None)
    if broken is not None:
        row, position = place_of(lengths_of(table), broken.position)
        raise IdentityError(
            f"{where}: document {table.column('doc_id')[row].as_py()!r}, position {position}: {broken.text}; "
            "nothing of this unit was published. This is a bug or a broken teacher: please report it with the run file"
        )


def misfit(table: pa.Table, facts: ProductFacts) -> str | None:
    """Why the lists of a table with the product's schema do not fit each other; None: they do. Then, and only then, the
    invariants can be looked at."""
    lengths = lengths_of(table)
    if wrong := next(_wrong_lengths(table, facts, lengths), None):
        return f"{wrong} has other list lengths than token_ids and the codec ask for"
    if table.num_rows and not lengths.all():
        return "a document without positions; such a document belongs in quarantine"
    return None


def place_of(lengths: np.ndarray, position: int) -> tuple[int, int]:
    """(number of the document in the table, position in the document) of a position of the table."""
    row = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
    return row, position - int(lengths[:row].sum())


def _wrong_lengths(table: pa.Table, facts: ProductFacts, lengths: np.ndarray) -> Iterator[str]:
    width = {"topk_ids": facts.top_k, "topk_logps": facts.top_k, "hidden": facts.hidden_size}
    wanted = {name: lengths * size for name, size in width.items()}
    if facts.codec == "sample":
        row = np.repeat(np.arange(len(lengths)), lengths)
        if len(sizes := flat(table, "sample_sizes")) != len(row):
            yield "sample_sizes"
            return
        drawn = np.bincount(row, weights=sizes, minlength=len(lengths)).astype(np.int64)
        wanted |= {"sample_ids": drawn, "sample_counts": drawn}
    for field in table.schema:
        if pa.types.is_list(field.type):
            if not np.array_equal(lengths_of(table, field.name), wanted.get(field.name, lengths)):
                yield field.name


def first_broken(bad_N: Any, column: str, found: str, wanted: str, *numbers: np.ndarray) -> Iterator[BrokenInvariant]:
    """The first position where `bad` [N], with its numbers in `found`."""
    if count := int(np.count_nonzero(bad_N)):
        at = int(np.argmax(bad_N))
        yield BrokenInvariant(at, count, column, found.format(*(values[at] for values in numbers)), wanted)


def broken_invariants(table: pa.Table, facts: ProductFacts) -> Iterator[BrokenInvariant]:
    """Broken invariants, the first position of each kind. The table has the product's schema and no misfit."""
    token_N, byte_N, scored_N = flat(table, "token_ids"), flat(table, "byte_end"), flat(table, "scored")
    size = facts.vocab_size
    yield from first_broken((token_N < 0) | (token_N >= size), "token_ids", "token id {}", f"[0, {size})", token_N)
    if facts.codec == "topk":
        yield from _topk(table, facts, token_N, scored_N)
    elif facts.codec == "sample":
        yield from _sample(table, facts, scored_N)
    else:
        yield from _hidden(table, facts, scored_N)
    if facts.codec != "hidden":
        gold_N = flat(table, "gold_logp")
        yield from first_broken(~(gold_N <= SIGN_TOLERANCE), "gold_logp", "gold log-probability {}", "<= 0", gold_N)
        unscored = ~scored_N & (gold_N > -np.inf)
        yield from first_broken(
            unscored, "gold_logp", "an unscored position has a gold log-probability {}", "-inf", gold_N
        )
        for name, most in _MOST.items():
            share = flat(table, name)
            yield from first_broken(~((share >= 0) & (share <= most)), name, f"{name} {{}}", "within [0, 1]", share)
    unasked_N = (flat(table, "flags") & (FLAG_GIVEN | FLAG_NO_MASS | FLAG_CONTEXT)) != 0
    text = "a given, empty or context position (flag 8, 32 or 64) is marked as scored"
    yield from first_broken(scored_N & unasked_N, "flags", text, "scored = false there")
    falls = np.zeros(len(byte_N), bool)
    falls[1:] = np.diff(byte_N) < 0
    falls[np.cumsum(lengths_of(table))[:-1]] = False
    text, wanted = "byte_end {} lies before its predecessor", "byte ends that never fall"
    yield from first_broken(falls | (byte_N < 0), "byte_end", text, wanted, byte_N)
    if facts.statistics:
        yield from _statistics(table, scored_N)


def _topk(table: pa.Table, facts: ProductFacts, token_N: np.ndarray, scored_N: np.ndarray) -> Iterator[BrokenInvariant]:
    k, size = facts.top_k, facts.vocab_size
    ids_NK, logps_NK = flat(table, "topk_ids").reshape(-1, k), flat(table, "topk_logps").reshape(-1, k)
    tail_N, gold_N = flat(table, "tail_logp"), flat(table, "gold_logp")
    inside = (ids_NK >= 0) & (ids_NK < size)
    wanted = f"[0, {size}) or {PAD_ID}"
    yield from first_broken(~(inside | (ids_NK == PAD_ID)).all(1), "topk_ids", "top-k ids {}", wanted, ids_NK)
    ranked = np.sort(ids_NK, axis=1)
    twice = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != PAD_ID)
    yield from first_broken(twice.any(1), "topk_ids", "an id stands twice in the top-k: {}", "each id once", ids_NK)
    live = logps_NK > -np.inf
    text, wanted = (
        "an id without mass, or mass without an id: ids {}, logps {}",
        f"-inf beside {PAD_ID} and nowhere else",
    )
    yield from first_broken((live != inside).any(1), "topk_logps", text, wanted, ids_NK, logps_NK)
    falling = (logps_NK[:, 1:] <= logps_NK[:, :-1]).all(1)
    text, wanted = "top-k log-probabilities do not fall: {}", "falling order"
    yield from first_broken(~falling, "topk_logps", text, wanted, logps_NK)
    for name, column, values in (("top-1", "topk_logps", logps_NK[:, 0]), ("tail", "tail_logp", tail_N)):
        yield from first_broken(~(values <= SIGN_TOLERANCE), column, f"{name} log-probability {{}}", "<= 0", values)
    mass_N = np.exp(logps_NK, dtype=np.float32).sum(1, dtype=np.float64) + np.exp(tail_N.astype(np.float64))
    off = ~(np.abs(mass_N - 1) <= mass_tolerance(k))
    yield from first_broken(off, "tail_logp", "stored mass + tail = {}", f"1 within {mass_tolerance(k):.2e}", mass_N)
    text, wanted = "an unscored position has a distribution: {}", f"{PAD_ID} and -inf only"
    yield from first_broken(~scored_N & live.any(1), "topk_logps", text, wanted, logps_NK)
    hit_NK = ids_NK == token_N[:, None]
    hit_N = hit_NK.any(1)
    stored_N = np.where(hit_N, logps_NK[np.arange(len(hit_N)), hit_NK.argmax(1)], gold_N)
    close = np.isclose(stored_N, gold_N, rtol=2.0**-MANTISSA_BITS, atol=SIGN_TOLERANCE)
    text, wanted = "gold log-probability {}, but {} stands in the top-k", "the same number"
    yield from first_broken(scored_N & ~close, "gold_logp", text, wanted, gold_N, stored_N)


def _sample(table: pa.Table, facts: ProductFacts, scored_N: np.ndarray) -> Iterator[BrokenInvariant]:
    sizes_N = flat(table, "sample_sizes").astype(np.int64)
    ids_S, counts_S = flat(table, "sample_ids").astype(np.int64), flat(table, "sample_counts").astype(np.int64)
    position_S = np.repeat(np.arange(len(sizes_N)), sizes_N)

    def of(bad_S: np.ndarray) -> np.ndarray:
        """Positions that have a bad sample, [N]."""
        return np.bincount(position_S[bad_S], minlength=len(sizes_N)) > 0

    outside, wanted = (ids_S < 0) | (ids_S >= facts.vocab_size), f"[0, {facts.vocab_size})"
    yield from first_broken(of(outside), "sample_ids", "a drawn id is outside the vocabulary", wanted)
    total_N = np.bincount(position_S, weights=counts_S, minlength=len(sizes_N)).astype(np.int64)
    wanted_N = np.where(scored_N, facts.draws, 0)
    wrong_N = total_N != wanted_N
    if wrong_N.any():
        yield from first_broken(wrong_N, "sample_counts", "{} tokens drawn", str(wanted_N[np.argmax(wrong_N)]), total_N)
    order = counts_S * 2**32 - ids_S  # must fall within a position: by falling count, then rising id; no id twice
    same = position_S[1:] == position_S[:-1]
    wrong = np.zeros(len(ids_S), bool)
    wrong[1:] = same & (order[1:] >= order[:-1])
    by = np.lexsort((ids_S, position_S))
    twice = np.zeros(len(ids_S), bool)
    twice[by[1:]] = (ids_S[by][1:] == ids_S[by][:-1]) & (position_S[by][1:] == position_S[by][:-1])
    text, wanted = "drawn tokens are not in order, or one stands twice", "falling counts, then rising ids, each id once"
    yield from first_broken(of(wrong | twice | (counts_S < 1)), "sample_ids", text, wanted)


def _hidden(table: pa.Table, facts: ProductFacts, scored_N: np.ndarray) -> Iterator[BrokenInvariant]:
    bits_ND = flat(table, "hidden").reshape(-1, facts.hidden_size)
    infinite = (bits_ND & 0x7F80) == 0x7F80  # all bits of the exponent: infinity or NaN
    yield from first_broken(infinite.any(1), "hidden", "a hidden state is not finite", "no infinity, no NaN")
    yield from first_broken(~scored_N & bits_ND.any(1), "hidden", "an unscored position has a hidden state", "zeros")


def _statistics(table: pa.Table, scored_N: np.ndarray) -> Iterator[BrokenInvariant]:
    for name in ("space_logp", "end_logp"):
        values = flat(table, name)
        yield from first_broken(~(values <= SIGN_TOLERANCE), name, f"{name} {{}}", "<= 0", values)
    for name in ("logz", "entropy", "logit_std", "logz_scaled"):
        values = flat(table, name)
        yield from first_broken(~np.isfinite(values), name, f"{name} {{}}", "a finite number", values)
    std_N, entropy_N = flat(table, "logit_std"), flat(table, "entropy")
    yield from first_broken(scored_N & ~(std_N > 0), "logit_std", "logit_std {}", "> 0", std_N)
    yield from first_broken(~(entropy_N >= -SIGN_TOLERANCE), "entropy", "entropy {}", ">= 0", entropy_N)
    roles_N = flat(table, "roles")
    yield from first_broken(roles_N > max(ROLES.values()), "roles", "role {}", "a number of docs/format.md", roles_N)
