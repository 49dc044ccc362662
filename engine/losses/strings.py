"""Tokens as byte strings: equal ones of two vocabularies, edit distances, and the warped alignment of two sequences.

Letters: T teacher tokens, S student tokens, N strings, L the longest of them in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def ids_of(token_bytes: Sequence[bytes]) -> dict[bytes, int]:
    """bytes -> id, the lowest where several tokens have the same; tokens without bytes are left out."""
    return {token: i for i, token in reversed(list(enumerate(token_bytes))) if token}


def edit_distances(a: bytes, others: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Levenshtein distance in bytes between `a` and each of the others, [N].

    The usual table, row by row over the bytes of `a` for all others at once: about 5 numpy passes over [N, L + 1] per
    byte. Insertions, which run along a row, are the running minimum of (cost - column).
    """
    lengths = np.array([len(other) for other in others], np.int64)
    if not len(others):
        return lengths
    width = int(lengths.max())
    bytes_NL = np.full((len(others), width), -1, np.int64)  # -1: behind the end, equal to no byte
    for i, other in enumerate(others):
        bytes_NL[i, : len(other)] = np.frombuffer(other, np.uint8)
    column = np.arange(width + 1)
    table = np.broadcast_to(column, (len(others), width + 1))
    for i, byte in enumerate(a):
        row = np.empty_like(table)
        row[:, 0] = i + 1
        row[:, 1:] = np.minimum(table[:, 1:] + 1, table[:, :-1] + (bytes_NL != byte))
        table = np.minimum.accumulate(row - column, axis=1) + column
    return table[np.arange(len(others)), lengths]


def cost_matrix(teacher: Sequence[bytes], student: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Edit distance of every pair, [T, S]; each pair of distinct strings is worked out once."""
    distinct_t, distinct_s = (list(dict.fromkeys(side)) for side in (teacher, student))
    place_t, place_s = ({string: i for i, string in enumerate(side)} for side in (distinct_t, distinct_s))
    distances = np.array([edit_distances(string, distinct_s) for string in distinct_t], np.int64)
    return distances[np.ix_([place_t[string] for string in teacher], [place_s[string] for string in student])]


def warp(cost_TS: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Dynamic time warping: the group of each teacher row [T] and of each student row [S], numbered from 0.

    The cheapest path of steps (1, 1), (1, 0), (0, 1) from corner to corner; of equal ways back the first of this order is
    taken. A group is a stretch of the path without a (1, 1) step: one row on one side at least, in most cases. Whole
    numbers only, so that ties are ties. One numpy row per teacher row: steps along a row are a running minimum of
    (cost so far - sum of the row's costs). Needs T >= 1 and S >= 1.
    """
    teachers, students = cost_TS.shape
    total = np.empty_like(cost_TS)
    above = np.full(students + 1, np.iinfo(np.int64).max // 2)  # of the row before, with a column in front
    above[0] = 0
    for i in range(teachers):
        along = np.cumsum(cost_TS[i])
        enter = np.minimum(above[1:], above[:-1])
        total[i] = along + np.minimum.accumulate(enter - (along - cost_TS[i]))
        above[1:], above[0] = total[i], np.iinfo(np.int64).max // 2
    group_t, group_s = np.zeros(teachers, np.int64), np.zeros(students, np.int64)
    i, j, group = teachers - 1, students - 1, 0
    while i or j:
        best = min(
            total[i - 1, j - 1] if i and j else np.inf,
            total[i - 1, j] if i else np.inf,
            total[i, j - 1] if j else np.inf,
        )
        diagonal = i > 0 and j > 0 and total[i - 1, j - 1] == best
        up = i > 0 and not diagonal and total[i - 1, j] == best
        group += diagonal
        i, j = i - (diagonal or up), j - (diagonal or not up)
        group_t[i], group_s[j] = group, group
    return group - group_t, group - group_s
