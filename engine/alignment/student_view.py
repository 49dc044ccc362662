"""The boundaries of one passage for one student as plain arrays: compiled/walk.py makes them, push/compiled_rows.py takes
them.

They say what a list of `Boundary` (alignment/boundaries.py) says, but that a boundary has the number of a compiled state
(compiled/pair.py) in the place of its rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.alignment.boundaries import Boundary

NO_STATE = -1


@dataclass(frozen=True, eq=False)
class StudentView:
    """Boundaries of one passage for one student. K = n + 1, one for each student token and one behind the last.

    place_K: int32, byte of prefix + text. last_K: int32, student token before it, -1 for none. begin_K: int64, byte
    where the student's pending part begins there. state_K: int32, number of the
    state in `states`, -1 where slow. slow_K: bool. end_counts_K: bool, as `Boundary.end_counts`.
    Leaves (definition 6) of boundary k: leaf_start[k] .. leaf_start[k + 1] (int64 [K+1]) of leaf_node, the context; leaf_lo,
    leaf_hi, the ranks of the teacher tokens that start with the bytes from there to the boundary and are longer; leaf_depth,
    how many bytes these are; all int32 [L]. In the same way at_start, at_node: contexts that end at the place; fringe_start,
    fringe_node, fringe_token: the fringe.
    node_state_N: int32, number of the state at the byte where each context ends, -1 where none holds; perhaps one with cuts
    inside the pending part (`State.simple`). node_begin_N: int64, byte of prefix + text where the student's pending part begins
    there.
    slow: the boundaries without a state, by k.
    """

    place_K: np.ndarray
    last_K: np.ndarray
    begin_K: np.ndarray
    state_K: np.ndarray
    slow_K: np.ndarray
    end_counts_K: np.ndarray
    leaf_start: np.ndarray
    leaf_node: np.ndarray
    leaf_lo: np.ndarray
    leaf_hi: np.ndarray
    leaf_depth: np.ndarray
    at_start: np.ndarray
    at_node: np.ndarray
    fringe_start: np.ndarray
    fringe_node: np.ndarray
    fringe_token: np.ndarray
    node_state_N: np.ndarray
    node_begin_N: np.ndarray
    states: list[Any]
    slow: dict[int, Boundary]
