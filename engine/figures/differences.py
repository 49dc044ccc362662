"""Two products of the same document, position by position: which positions stand at the same place of the text, and how far their
distributions are from each other.

P positions that both have, C outcomes that both give mass at a position, as flat lists beside the number of the position.
Outcomes are the tokens where both have the same vocabulary, else the first bytes of tokens: what the text goes on with, whatever
the tokens are. What is not stored (the tail) and outcomes that only one of the two gives mass are one outcome, "the rest".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.dataset.token_tables import TokenTable
from engine.figures.rows import NATS_PER_BIT, Rows
from schemas.target import FLAG_ANEW, PAD_ID

END, OTHER = 256, 257
"""Outcomes behind the bytes 0 .. 255: the text or turn ends; a special or a token without bytes."""

_DUST = 1e-6
"""What sums of probabilities are held to: a rest below it may be no mass at all."""

Key = tuple[int, int, bool, int]


@dataclass(frozen=True, slots=True)
class Apart:
    """How far two distributions are from each other at P positions. Total variation is known within bounds, since the tails are
    not stored; KL of the outcomes above, bits, inf where one gives no mass to what the other does."""

    least_tv_P: npt.NDArray[np.float64]
    most_tv_P: npt.NDArray[np.float64]
    kl_P: npt.NDArray[np.float64]  # of the first, with the second as its model
    kl_back_P: npt.NDArray[np.float64]
    same_top_P: npt.NDArray[np.bool_]  # the likeliest outcome is the same


def places_of(rows: Rows, document: int) -> dict[Key, int]:
    """Where each scored position of a document stands -> its number in the row group. A place: which reading of a conversation,
    the byte where its token begins, whether it is an end, and how many came before at that very place."""
    here = rows.positions(document)
    scored = np.flatnonzero(rows.scored_N[here])
    reading = np.cumsum((rows.flags_N[here] & FLAG_ANEW) != 0)
    start, end = rows.start_N[here], rows.is_end_N[here]
    found: dict[Key, int] = {}
    seen: dict[tuple[int, int, bool], int] = {}
    for i in scored.tolist():
        place = (int(reading[i]), int(start[i]), bool(end[i]))
        nth = seen.get(place, 0)
        seen[place] = nth + 1
        found[(*place, nth)] = here.start + i
    return found


def first_bytes(tokens: TokenTable) -> npt.NDArray[np.int64]:
    """Token -> the outcome that it is where vocabularies differ: its first byte, END or OTHER. [vocabulary]"""
    return np.array(
        [
            piece[0] if piece else END if role == "end" else OTHER
            for piece, role in zip(tokens.pieces, tokens.roles, strict=True)
        ],
        np.int64,
    )


def by_token(ours: Rows, mine_P: npt.NDArray[np.int64], theirs: Rows, other_P: npt.NDArray[np.int64]) -> Apart:
    """Positions of two products with the same vocabulary. Both of codec topk."""
    ids, probs, tail = _stored(ours, mine_P)
    ids2, probs2, tail2 = _stored(theirs, other_P)
    number = int(max(ids.max(initial=0), ids2.max(initial=0))) + 1
    keys, keys2 = (_keys(found, number) for found in (ids, ids2))
    _, at, at2 = np.intersect1d(keys, keys2, return_indices=True)
    at, at2 = at[keys[at] >= 0], at2[keys2[at2] >= 0]  # beside padding
    width = ids.shape[1]
    position, p, q = at // width, probs.ravel()[at], probs2.ravel()[at2]
    rest, rest2 = (
        _rest(mass, where, one, left) for mass, where, one, left in ((probs, at, p, tail), (probs2, at2, q, tail2))
    )
    same = ids[:, 0] == ids2[:, 0]
    common = _sum(np.abs(p - q), position, len(same))
    least, most = (common + np.abs(rest - rest2)) / 2, (common + rest + rest2) / 2
    return Apart(least, most, *_kl_both(p, q, position, rest, rest2), same)


def by_first_byte(
    ours: Rows,
    mine_P: npt.NDArray[np.int64],
    first_V: npt.NDArray[np.int64],
    theirs: Rows,
    other_P: npt.NDArray[np.int64],
    first2_V: npt.NDArray[np.int64],
) -> Apart:
    """Positions of two products with different vocabularies: `first_bytes` of each. Both of codec topk."""
    p_PO, tail = _by_outcome(*_stored(ours, mine_P), first_V)
    q_PO, tail2 = _by_outcome(*_stored(theirs, other_P), first2_V)
    above, below = (np.maximum(difference, 0).sum(1) for difference in (p_PO - q_PO, q_PO - p_PO))
    least = np.maximum(0, np.maximum(above - tail2, below - tail))  # the tail may make up for what is missing
    most = (above + below + tail + tail2) / 2
    position, outcome = np.nonzero((p_PO > 0) & (q_PO > 0))
    p, q = p_PO[position, outcome], q_PO[position, outcome]
    rest, rest2 = (
        tail + np.where((p_PO > 0) & (q_PO > 0), 0, mass).sum(1) for mass, tail in ((p_PO, tail), (q_PO, tail2))
    )
    return Apart(least, most, *_kl_both(p, q, position, rest, rest2), p_PO.argmax(1) == q_PO.argmax(1))


def _stored(rows: Rows, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """(ids [P, K], probabilities [P, K], tail masses [P]) of some positions."""
    assert rows.ids_NK is not None and rows.logps_NK is not None and rows.tail_logp_N is not None
    probs = np.exp(rows.logps_NK[positions].astype(np.float64))
    return rows.ids_NK[positions].astype(np.int64), probs, np.exp(rows.tail_logp_N[positions].astype(np.float64))


def _keys(ids_PK: npt.NDArray, number: int) -> npt.NDArray:
    """Position and token as one number each, flat; different negative ones for padding."""
    flat = (np.arange(len(ids_PK))[:, None] * number + ids_PK).ravel()
    padding = ids_PK.ravel() == PAD_ID
    return np.where(padding, -1 - np.arange(flat.size), flat)


def _rest(probs_PK: npt.NDArray, at: npt.NDArray, common: npt.NDArray, tail: npt.NDArray) -> npt.NDArray:
    """The mass outside the common tokens, added up from what is stored there, so that it is never below 0."""
    alone = probs_PK.copy().ravel()
    alone[at] = 0
    return alone.reshape(probs_PK.shape).sum(1) + tail


def _by_outcome(
    ids_PK: npt.NDArray, probs_PK: npt.NDArray, tail: npt.NDArray, first_V: npt.NDArray
) -> tuple[npt.NDArray, npt.NDArray]:
    made = np.zeros((len(ids_PK), OTHER + 1))
    outcome = np.where(ids_PK == PAD_ID, OTHER, first_V[ids_PK])  # padding has no mass
    np.add.at(made, (np.arange(len(ids_PK))[:, None], outcome), probs_PK)
    return made, tail


def _kl_both(
    p: npt.NDArray, q: npt.NDArray, position: npt.NDArray, rest: npt.NDArray, rest2: npt.NDArray
) -> tuple[npt.NDArray, npt.NDArray]:
    return _kl(p, q, position, rest, rest2), _kl(q, p, position, rest2, rest)


def _kl(p: npt.NDArray, q: npt.NDArray, position: npt.NDArray, rest: npt.NDArray, rest2: npt.NDArray) -> npt.NDArray:
    """Sum of p log(p / q) - p + q, in bits: KL where both sum up to 1, and never below 0 where rounding makes them miss it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        known = (rest > 0) & (rest2 > 0)
        last = np.where(known, rest * np.log(rest / rest2), 0.0) - rest + rest2
        last = np.where((rest > _DUST) & (rest2 == 0), np.inf, last)
    return (_sum(p * np.log(p / q) - p + q, position, len(rest)) + last) / NATS_PER_BIT


def _sum(values: npt.NDArray, position: npt.NDArray, count: int) -> npt.NDArray:
    return np.bincount(position, values, count)
