"""Tokens drawn from each position's distribution, with their counts, in place of its top-k: the codec `sample`.

Random sampling distillation (arXiv 2503.16870): with n independent draws from t, counts c, the target c / n has the
expectation t, so that -sum c/n log p is an unbiased cross-entropy, with about a dozen ids where a top-k needs hundreds.

The draws of a position depend on the run's seed, the product, the document and the row, and on nothing else: not on the
batch, the actor or the order. Where two machines differ in the last bits of a probability, a draw that falls on the very
border of two tokens may differ.

Letters: N positions of a group, n draws, J positions written at once, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.targets.positions import TargetRows, check_total
from engine.teacher.group import rows_at_once
from schemas.target import PAD_ID

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Sample(TargetRows):
    """ids int32, counts uint8 [N, n]: the different tokens of each position by falling count, then rising id; -1 and 0
    fill. keys: uint64 [N], what the draws of each position hang on."""

    def __init__(self, golds: Sequence[np.ndarray], draws: int, keys_N: np.ndarray) -> None:
        super().__init__(golds)
        n = len(self.gold)
        self.keys = keys_N
        self.ids = np.full((n, draws), PAD_ID, np.int32)
        self.counts = np.zeros((n, draws), np.uint8)

    def _keep(
        self, product: str, at_J: np.ndarray, mass_JV: torch.Tensor, total_J: np.ndarray, ids_V: np.ndarray | None
    ) -> None:
        step = rows_at_once(mass_JV.shape[1])
        for begin in range(0, len(at_J), step):
            part = slice(begin, begin + step)
            at_j, mass_jV = at_J[part], mass_JV[part].double()
            cdf_jV = mass_jV.cumsum(1)
            sum_j = cdf_jV[:, -1].cpu().numpy()
            check_total(product, "masses", sum_j, total_J[part])
            wanted_jn = uniforms(self.keys[at_j], self.ids.shape[1]) * sum_j[:, None]
            # u < 1, but u * sum may round up to the sum, where no token lies
            wanted_jn = np.minimum(wanted_jn, np.nextafter(sum_j, 0.0)[:, None])
            drawn = torch.searchsorted(cdf_jV, torch.from_numpy(wanted_jn).to(cdf_jV.device), right=True)
            column_jn, counts_jn = counted(drawn.cpu().numpy())
            mass_jn = mass_jV.gather(1, torch.from_numpy(np.maximum(column_jn, 0)).to(mass_jV.device)).cpu().numpy()
            self.stored_mass[at_j] = (mass_jn * (counts_jn > 0)).sum(1) / sum_j
            token_jn = column_jn if ids_V is None else ids_V[column_jn]
            self.ids[at_j], self.counts[at_j] = np.where(counts_jn > 0, token_jn, PAD_ID), counts_jn

    def columns(self, place_P: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """sample_sizes, sample_ids, sample_counts."""
        known = place_P >= 0
        ids, counts = self.ids[place_P[known]], self.counts[place_P[known]]
        sizes = np.zeros(len(place_P), np.int64)
        sizes[known] = (counts > 0).sum(1)
        return {
            "sample_sizes": (sizes, np.ones(len(place_P), np.int64)),
            "sample_ids": (ids[counts > 0], sizes),
            "sample_counts": (counts[counts > 0], sizes),
        }


def counted(drawn_Jn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of each row and how often they occur: int64 [J, n] by falling count, then rising value, padded
    with -1; and uint8 [J, n], padded with 0."""
    rows, n = drawn_Jn.shape
    ordered = np.sort(drawn_Jn, 1)
    first = np.ones((rows, n), bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    row, column = np.nonzero(first)
    stop = np.append(row[1:] * n + column[1:], rows * n)
    counts = np.zeros((rows, n), np.uint8)
    counts[row, column] = stop - (row * n + column)
    by = np.argsort(-counts.astype(np.int16), axis=1, kind="stable")
    counts = np.take_along_axis(counts, by, 1)
    return np.where(counts > 0, np.take_along_axis(ordered, by, 1), PAD_ID), counts


def uniforms(keys_J: np.ndarray, n: int) -> np.ndarray:
    """n numbers in [0, 1) per key, float64 [J, n] with 53 random bits: SplitMix64 (Steele, Lea, Flood 2014) from the key."""
    state = keys_J[:, None] + np.arange(1, n + 1, dtype=np.uint64)[None] * _GOLDEN  # uint64: wraps around
    return (_mixed(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def key_of(*parts: int) -> np.uint64:
    """One key from several numbers (seed, hash of a name, document, part)."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mixed(key + np.uint64(part % 2**64) + _GOLDEN)
    return key[0]


def row_keys(key: np.uint64, rows: int) -> np.ndarray:
    """A key for each row of a document, uint64 [rows]."""
    return _mixed(_mixed(np.full(rows, key)) + np.arange(rows, dtype=np.uint64) * _GOLDEN)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
