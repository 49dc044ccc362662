"""Two distributions whose tops are stored: what is said of them holds of the whole ones, and is what a slow twin finds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.dataset.token_tables import TokenTable
from engine.figures.differences import END, OTHER, by_first_byte, by_token, first_bytes, places_of
from engine.figures.rows import Rows
from schemas.target import FLAG_ANEW, FLAG_CONTEXT, FLAG_END

VOCABULARY, TOP = 12, 5
EVERY = np.arange(40)


def rows_of_probs(probs_PV: np.ndarray, top: int) -> Rows:
    """Rows with the `top` likeliest tokens of these distributions; a token without mass is padding."""
    order = np.argsort(-probs_PV, 1, kind="stable")[:, :top]
    kept = np.take_along_axis(probs_PV, order, 1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.maximum(0, 1 - kept.sum(1)))
        logps = np.log(kept)
    count = len(probs_PV)
    zeros = np.zeros(count, np.float32)
    return Rows(
        ["d"],
        [0],
        ["x" * count],
        np.array([0, count]),
        np.zeros(count, np.int32),
        np.arange(count),
        np.arange(count) + 1,
        np.ones(count, bool),
        np.zeros(count, np.uint8),
        zeros,
        zeros,
        zeros,
        zeros,
        np.where(kept > 0, order, -1).astype(np.int32),
        logps.astype(np.float32),
        tail.astype(np.float32),
    )


def distributions(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two lists of distributions [P, V]: alike, unlike, with zeros, and the same."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(VOCABULARY, 0.4), len(EVERY))
    q = p * np.exp(rng.normal(0, 1, p.shape))
    q[10:20] = rng.dirichlet(np.full(VOCABULARY, 0.4), 10)
    q[20:25] = p[20:25]
    p[25:30, 3:], q[30:35, :9] = 0, 0
    return p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)


def variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.abs(p - q).sum(1) / 2


def divergence(p: dict[int, float], q: dict[int, float]) -> float:
    return sum(v * math.log2(v / q[k]) if q[k] > 0 else math.inf for k, v in p.items() if v > 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tops", [(TOP, TOP), (TOP, 7), (VOCABULARY, VOCABULARY)])
def test_by_token(seed: int, tops: tuple[int, int]) -> None:
    p, q = distributions(seed)
    ours, theirs = rows_of_probs(p, tops[0]), rows_of_probs(q, tops[1])
    apart = by_token(ours, EVERY, theirs, EVERY)
    true = variation(p, q)
    assert (apart.least_tv_P <= true + 1e-6).all() and (true <= apart.most_tv_P + 1e-6).all()
    assert (apart.same_top_P == (p.argmax(1) == q.argmax(1))).all()
    for n in EVERY:  # the twin: outcomes as dictionaries
        one, other = (
            {int(t): math.exp(logp) for t, logp in zip(rows.ids_NK[n], rows.logps_NK[n], strict=True) if t >= 0}
            for rows in (ours, theirs)
            if rows.ids_NK is not None and rows.logps_NK is not None
        )
        both = one.keys() & other.keys()
        a = {t: one[t] for t in both} | {-1: 1 - sum(one[t] for t in both)}
        b = {t: other[t] for t in both} | {-1: 1 - sum(other[t] for t in both)}
        assert apart.least_tv_P[n] == pytest.approx(sum(abs(a[t] - b[t]) for t in a) / 2, abs=1e-6)
        if min(a[-1], b[-1]) > 1e-5:
            assert apart.kl_P[n] == pytest.approx(divergence(a, b), abs=1e-4)
            assert apart.kl_back_P[n] == pytest.approx(divergence(b, a), abs=1e-4)
        assert apart.kl_P[n] <= divergence(dict(enumerate(p[n])), dict(enumerate(q[n]))) + 1e-4  # coarser, so not more
    if tops[0] == VOCABULARY:
        assert apart.least_tv_P == pytest.approx(true, abs=1e-6) and apart.most_tv_P == pytest.approx(true, abs=1e-5)


def test_the_same_rows_are_not_apart() -> None:
    rows = rows_of_probs(distributions(0)[0], TOP)
    apart = by_token(rows, EVERY, rows, EVERY)
    assert not apart.least_tv_P.any() and apart.kl_P == pytest.approx(0) and apart.same_top_P.all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("top", [TOP, VOCABULARY])
def test_by_first_byte(seed: int, top: int) -> None:
    """Other ids for other strings: what is said of the next byte holds of the whole distributions."""
    pieces = [b"a", b"ab", b"b", b"bc", b"c", b"\xc3", b"\xc3\xa9", b" a", b" ", None, None, b"d"]
    roles = ["text"] * 9 + ["end", "special", "text"]
    order = np.random.default_rng(seed).permutation(VOCABULARY)
    tables = [
        TokenTable([pieces[i] for i in ids], [""] * VOCABULARY, [roles[i] for i in ids])
        for ids in (range(VOCABULARY), order)
    ]
    first, first2 = (first_bytes(table) for table in tables)
    assert first.tolist() == [97, 97, 98, 98, 99, 195, 195, 32, 32, END, OTHER, 100]
    p, q = distributions(seed)
    apart = by_first_byte(rows_of_probs(p, top), EVERY, first, rows_of_probs(q[:, order], top), EVERY, first2)
    bytes_p, bytes_q = (np.stack([m[:, first == o].sum(1) for o in range(OTHER + 1)], 1) for m in (p, q))
    true = variation(bytes_p, bytes_q)
    assert (apart.least_tv_P <= true + 1e-6).all() and (true <= apart.most_tv_P + 1e-6).all()
    if top == VOCABULARY:
        assert apart.least_tv_P == pytest.approx(true, abs=1e-6)
        assert (apart.same_top_P == (bytes_p.argmax(1) == bytes_q.argmax(1))).all()


def test_places() -> None:
    """A text of two readings: what is read anew stands at other places, empty tokens at one byte are told apart."""
    rows = rows_of_probs(np.full((6, VOCABULARY), 1 / VOCABULARY), TOP)
    rows.start_N[:] = [0, 1, 1, 3, 3, 3]
    rows.flags_N[:] = [0, 0, 0, FLAG_CONTEXT, FLAG_ANEW, FLAG_END]
    rows.scored_N[3] = False
    assert places_of(rows, 0) == {
        (0, 0, False, 0): 0, (0, 1, False, 0): 1, (0, 1, False, 1): 2, (1, 3, False, 0): 4, (1, 3, True, 0): 5,
    }  # fmt: skip
