"""The invariants of docs/format.md, section 3, on the rows of one product at stored precision. Vectorised.

Letters: N positions of the table (sum of T over its documents), K = top_k, S = stored samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from engine.rows import flat, lengths_of
from schemas.errors import IdentityError
from schemas.manifest import ProductFacts
from schemas.target import FLAG_CONTEXT, FLAG_GIVEN, FLAG_NO_MASS, MANTISSA_BITS, PAD_ID, ROLES

SIGN_TOLERANCE = 1e-6
"""A log-probability may exceed 0, and a share may exceed 1, by this much: float32 sums. Nothing is clamped."""
_SHARES = ("open_mass", "excluded_mass", "pruned_mass", "noncanonical_mass")


def mass_tolerance(top_k: int) -> float:
    """How far stored mass + tail may lie from 1.

    Rounding moves each log-probability by at most 2**-11 of itself, so the sum of p by at most 2**-11 * H with H the
    entropy of the K + 1 parts, H <= ln(K + 1): 2.0e-3 at K = 64. 2 % for the second order, 1e-6 for the arithmetic.
    """
    return 1.02 * 2.0 ** -(MANTISSA_BITS + 1) * float(np.log(top_k + 1)) + 1e-6


def check_rows(table: pa.Table, facts: ProductFacts, *, where: str) -> None:
    """Raises ValueError when the table has another schema or list lengths than the product (the caller is wrong),
    IdentityError with document, position and numbers when an invariant is broken."""
    schema = facts.schema_of_rows
    if not table.schema.equals(schema, check_metadata=False):
        raise ValueError(f"{where}: got schema\n{table.schema}\nwanted\n{schema}")
    lengths = lengths_of(table)
    if wrong := next(_wrong_lengths(table, facts, lengths), None):
        raise ValueError(f"{where}: {wrong} has other list lengths than token_ids and the codec ask for ({facts})")
    if table.num_rows and not lengths.all():
        raise ValueError(f"{where}: a document without positions; such a document belongs in quarantine")
    problem = next(_problems(table, lengths, facts), None)
    if problem is not None:
        row = int(np.searchsorted(np.cumsum(lengths), problem.position, side="right"))
        position = problem.position - int(lengths[:row].sum())
        raise IdentityError(
            f"{where}: document {table.column('doc_id')[row].as_py()!r}, position {position}: {problem.text}; "
            "nothing of this unit was published. This is a bug or a broken teacher: please report it with the run file"
        )


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


@dataclass(frozen=True, slots=True)
class _Problem:
    position: int  # over the whole table, 0 <= position < N
    text: str


def _first(bad: Any, text: str, *numbers: np.ndarray) -> Iterator[_Problem]:
    """The first position where `bad` [N], with its numbers in the text."""
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        yield _Problem(at, text.format(*(values[at] for values in numbers)))


def _problems(table: pa.Table, lengths: np.ndarray, facts: ProductFacts) -> Iterator[_Problem]:
    """Broken identities, the first position of each kind."""
    token_N, byte_N, scored_N = flat(table, "token_ids"), flat(table, "byte_end"), flat(table, "scored")
    size = facts.vocab_size
    yield from _first((token_N < 0) | (token_N >= size), f"token id {{}}, wanted [0, {size})", token_N)
    if facts.codec == "topk":
        yield from _topk_problems(table, facts, token_N, scored_N)
    elif facts.codec == "sample":
        yield from _sample_problems(table, facts, scored_N)
    else:
        yield from _hidden_problems(table, facts, scored_N)
    if facts.codec != "hidden":
        gold_N = flat(table, "gold_logp")
        yield from _first(~(gold_N <= SIGN_TOLERANCE), "gold log-probability {}, wanted <= 0", gold_N)
        yield from _first(~scored_N & (gold_N > -np.inf), "an unscored position has a gold log-probability {}", gold_N)
        for name in _SHARES:
            share = flat(table, name)
            wrong = ~((share >= 0) & (share <= 1 + SIGN_TOLERANCE))
            yield from _first(wrong, f"{name} {{}}, wanted within [0, 1]", share)
    unasked_N = (flat(table, "flags") & (FLAG_GIVEN | FLAG_NO_MASS | FLAG_CONTEXT)) != 0
    yield from _first(scored_N & unasked_N, "a given, empty or context position (flag 8, 32 or 64) is marked as scored")
    falls = np.zeros(len(byte_N), bool)
    falls[1:] = np.diff(byte_N) < 0
    falls[np.cumsum(lengths)[:-1]] = False
    yield from _first(falls | (byte_N < 0), "byte_end {} lies before its predecessor", byte_N)
    if facts.statistics:
        yield from _statistics_problems(table, scored_N)


def _topk_problems(
    table: pa.Table, facts: ProductFacts, token_N: np.ndarray, scored_N: np.ndarray
) -> Iterator[_Problem]:
    k, size = facts.top_k, facts.vocab_size
    ids_NK, logps_NK = flat(table, "topk_ids").reshape(-1, k), flat(table, "topk_logps").reshape(-1, k)
    tail_N, gold_N = flat(table, "tail_logp"), flat(table, "gold_logp")
    inside = (ids_NK >= 0) & (ids_NK < size)
    wanted = f"wanted [0, {size}) or {PAD_ID}"
    yield from _first(~(inside | (ids_NK == PAD_ID)).all(1), f"top-k ids {{}}, {wanted}", ids_NK)
    ranked = np.sort(ids_NK, axis=1)
    twice = (ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != PAD_ID)
    yield from _first(twice.any(1), "an id stands twice in the top-k: {}", ids_NK)
    live = logps_NK > -np.inf
    text = "an id without mass, or mass without an id: ids {}, logps {}"
    yield from _first((live != inside).any(1), text, ids_NK, logps_NK)
    falling = (logps_NK[:, 1:] <= logps_NK[:, :-1]).all(1)
    yield from _first(~falling, "top-k log-probabilities do not fall: {}", logps_NK)
    for name, values in (("top-1", logps_NK[:, 0]), ("tail", tail_N)):
        yield from _first(~(values <= SIGN_TOLERANCE), f"{name} log-probability {{}}, wanted <= 0", values)
    mass_N = np.exp(logps_NK, dtype=np.float32).sum(1, dtype=np.float64) + np.exp(tail_N.astype(np.float64))
    off = ~(np.abs(mass_N - 1) <= mass_tolerance(k))
    yield from _first(off, f"stored mass + tail = {{}}, wanted 1 within {mass_tolerance(k):.2e}", mass_N)
    yield from _first(~scored_N & live.any(1), "an unscored position has a distribution: {}", logps_NK)
    hit_NK = ids_NK == token_N[:, None]
    hit_N = hit_NK.any(1)
    stored_N = np.where(hit_N, logps_NK[np.arange(len(hit_N)), hit_NK.argmax(1)], gold_N)
    close = np.isclose(stored_N, gold_N, rtol=2.0**-MANTISSA_BITS, atol=SIGN_TOLERANCE)
    yield from _first(scored_N & ~close, "gold log-probability {}, but {} stands in the top-k", gold_N, stored_N)


def _sample_problems(table: pa.Table, facts: ProductFacts, scored_N: np.ndarray) -> Iterator[_Problem]:
    sizes_N = flat(table, "sample_sizes").astype(np.int64)
    ids_S, counts_S = flat(table, "sample_ids").astype(np.int64), flat(table, "sample_counts").astype(np.int64)
    position_S = np.repeat(np.arange(len(sizes_N)), sizes_N)

    def of(bad_S: np.ndarray) -> np.ndarray:
        """Positions that have a bad sample, [N]."""
        return np.bincount(position_S[bad_S], minlength=len(sizes_N)) > 0

    outside = (ids_S < 0) | (ids_S >= facts.vocab_size)
    yield from _first(of(outside), f"a drawn id is outside [0, {facts.vocab_size})")
    total_N = np.bincount(position_S, weights=counts_S, minlength=len(sizes_N)).astype(np.int64)
    wanted_N = np.where(scored_N, facts.draws, 0)
    yield from _first(total_N != wanted_N, "{} tokens drawn, wanted {}", total_N, wanted_N)
    order = counts_S * 2**32 - ids_S  # must fall within a position: by falling count, then rising id; no id twice
    same = position_S[1:] == position_S[:-1]
    wrong = np.zeros(len(ids_S), bool)
    wrong[1:] = same & (order[1:] >= order[:-1])
    by = np.lexsort((ids_S, position_S))
    twice = np.zeros(len(ids_S), bool)
    twice[by[1:]] = (ids_S[by][1:] == ids_S[by][:-1]) & (position_S[by][1:] == position_S[by][:-1])
    yield from _first(of(wrong | twice | (counts_S < 1)), "drawn tokens are not in order, or one stands twice")


def _hidden_problems(table: pa.Table, facts: ProductFacts, scored_N: np.ndarray) -> Iterator[_Problem]:
    bits_ND = flat(table, "hidden").reshape(-1, facts.hidden_size)
    infinite = (bits_ND & 0x7F80) == 0x7F80  # all bits of the exponent: infinity or NaN
    yield from _first(infinite.any(1), "a hidden state is not finite")
    yield from _first(~scored_N & bits_ND.any(1), "an unscored position has a hidden state")


def _statistics_problems(table: pa.Table, scored_N: np.ndarray) -> Iterator[_Problem]:
    for name in ("space_logp", "end_logp"):
        values = flat(table, name)
        yield from _first(~(values <= SIGN_TOLERANCE), f"{name} {{}}, wanted <= 0", values)
    for name in ("logz", "entropy", "logz_scaled"):
        values = flat(table, name)
        yield from _first(~np.isfinite(values), f"{name} {{}}, wanted a finite number", values)
    std_N, entropy_N = flat(table, "logit_std"), flat(table, "entropy")
    yield from _first(scored_N & ~(std_N > 0), "logit_std {}, wanted > 0", std_N)
    yield from _first(~(entropy_N >= -SIGN_TOLERANCE), "entropy {}, wanted >= 0", entropy_N)
    roles_N = flat(table, "roles")
    yield from _first(roles_N > max(ROLES.values()), "role {}, wanted a number of docs/format.md", roles_N)
