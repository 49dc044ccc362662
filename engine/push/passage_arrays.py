"""One passage and one student's view of it -> the arrays that compiled push-forwards take, and how far the passage is done.

In: a group's passage (teacher/group.py) and its `StudentView`. Out: `PassageArrays`.

Letters: N contexts of a passage, K boundaries of a passage, X its leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.alignment.passage import HungContexts
from engine.alignment.student_view import StudentView
from engine.push.push_arrays import Bounds, Nodes
from engine.push.push_tables import TableStore
from engine.targets.positions import TargetRows
from engine.teacher.group import Group
from schemas.errors import IdentityError

OWN_ROW, UNKNOWN = -1, -2
HORIZON_BYTES = 256
"""A leaf whose string is longer than this stays open."""


@dataclass(eq=False)
class PassageArrays:
    """One passage's arrays, and how far it is done. order: its evaluated contexts by end; need_K, from_K: places in that
    order, of the last and the first context that a boundary may need; place_N: int64, each context's place in it.

    inside: int64, the leaves that are contexts before their boundary, by context, and inside_start_N: int64 [N+1]. at_X: int64,
    from where on `pool` (float64) has the probabilities of such a leaf's range; OWN_ROW for other leaves, UNKNOWN before its
    context's row came."""

    nodes: Nodes
    bounds: Bounds
    order: np.ndarray
    need_K: np.ndarray
    from_K: np.ndarray
    place_N: np.ndarray
    inside: np.ndarray
    inside_start_N: np.ndarray
    at_X: np.ndarray
    pool: np.ndarray
    given: int = 0
    next_k: int = 0

    def add_inside(self, x: np.ndarray, size: np.ndarray, values: np.ndarray) -> None:
        """Keep the ranges of leaves `x`, and forget those of boundaries that are done."""
        bounds = self.bounds
        known = self.inside[(self.at_X[self.inside] >= 0) & (self.inside >= bounds.leaf_start[self.next_k])]
        kept = bounds.leaf_hi[known].astype(np.int64) - bounds.leaf_lo[known]
        self.pool = np.concatenate([self.pool[ranges(self.at_X[known], self.at_X[known] + kept)], values])
        at = np.concatenate([kept, size])
        self.at_X[np.concatenate([known, x])] = np.cumsum(at) - at

    def check_inside(self, begin: int, end: int) -> None:
        """Raises IdentityError when the row of a leaf of boundaries begin .. end came and its range was not kept."""
        a, b = self.bounds.leaf_start[begin], self.bounds.leaf_start[end]
        lost = (self.at_X[a:b] == UNKNOWN) & (self.nodes.row_N[self.bounds.leaf_node[a:b]] >= 0)
        lost &= np.repeat(self.bounds.table_K[begin:end] >= 0, np.diff(self.bounds.leaf_start[begin : end + 1]))
        if lost.any():
            raise IdentityError(f"push-forward: {int(lost.sum())} ranges of rows that came are not there; want all")


def passage_arrays(store: TableStore, group: Group, i: int, view: StudentView, out: TargetRows) -> PassageArrays:
    """The arrays of passage i, for rows `out`."""
    first = int(group.first_node[i])
    last = int(group.first_node[i + 1])
    number = np.array([*(store.number_of(state) for state in view.states), -1], np.int32)  # the last for NO_STATE
    table_K = np.where(view.slow_K, -1, number[view.state_K])
    table_N = number[view.node_state_N]
    evaluated = np.flatnonzero(group.evaluated[first:last])
    end_N = group.end[first:last]
    order = evaluated[np.argsort(end_N[evaluated], kind="stable")]
    ends, place = end_N[order], view.place_K
    place_in_order = np.full(last - first, len(order), np.int64)
    place_in_order[order] = np.arange(len(order))
    need = _needed(group.passages[i].hung, view, order, place_in_order, end_N)
    longest = np.concatenate([view.leaf_node, view.at_node])
    owner = np.concatenate(
        [
            np.repeat(np.arange(len(place)), np.diff(view.leaf_start)),
            np.repeat(np.arange(len(place)), np.diff(view.at_start)),
        ]
    )
    from_K = np.full(len(place), len(order), np.int64)
    np.minimum.at(from_K, owner, place_in_order[longest])
    # without an evaluated context nothing is said of a boundary: it stays unscored, as it was
    table_K[from_K == len(order)] = -1
    parent = np.where(group.parent[first:last] < 0, -1, group.parent[first:last] - first)
    kid = evaluated[parent[evaluated] >= 0]
    kid = kid[group.evaluated[first + parent[kid]]]
    kid = kid[np.lexsort((group.token[first + kid], parent[kid]))]
    kid_start = np.searchsorted(parent[kid], np.arange(last - first + 1)).astype(np.int64)
    at, hung = slice(first, last), group.passages[i].hung
    text, shift = np.frombuffer(group.passages[i].data or b"\0", np.uint8), np.zeros(last - first, np.int64)
    if hung is not None:
        shift[len(shift) - len(hung.shift) :] = hung.shift + len(text)
        text = np.concatenate([text, hung.text])
    nodes = Nodes(
        row_N=np.full(last - first, -1, np.int32),
        end_N=end_N.astype(np.int32),
        token_N=group.token[at].astype(np.int32),
        logw_N=group.weights.logw[at],
        table_N=table_N.astype(np.int32),
        begin_N=view.node_begin_N.astype(np.int32),
        kid_start=kid_start,
        kid_node=kid.astype(np.int32),
        noncanonical_N=group.weights.noncanonical[at],
        text=text.copy(),
        shift_N=shift,
    )
    positions = out.start[i + 1] - out.start[i]
    bounds = Bounds(
        place_K=place.astype(np.int32),
        last_K=view.last_K.astype(np.int32),
        table_K=table_K.astype(np.int32),
        leaf_start=view.leaf_start.astype(np.int64),
        leaf_node=view.leaf_node.astype(np.int32),
        leaf_lo=view.leaf_lo.astype(np.int32),
        leaf_hi=view.leaf_hi.astype(np.int32),
        leaf_depth=view.leaf_depth.astype(np.int32),
        at_start=view.at_start.astype(np.int64),
        at_node=view.at_node.astype(np.int32),
        end_counts_K=view.end_counts_K.astype(np.uint8),
        pruned_K=np.full(len(place), -np.inf),
        horizon_K=ends[np.maximum(need, 0)].astype(np.int32) if len(order) else place.astype(np.int32),
        gold_K=out.gold[out.start[i] : out.start[i] + positions].astype(np.int64),
        lead=np.frombuffer(bytearray(store.pair.vocabulary.prefix_bytes), np.uint8),
        begin_K=view.begin_K.astype(np.int32),
    )
    of_leaf = np.repeat(np.arange(len(place)), np.diff(view.leaf_start))
    own = (view.leaf_depth == 0) & (table_N[view.leaf_node] == table_K[of_leaf])
    inside = np.flatnonzero(~own & (table_K[of_leaf] >= 0))
    inside = inside[np.argsort(view.leaf_node[inside], kind="stable")]
    starts = np.searchsorted(view.leaf_node[inside], np.arange(last - first + 1)).astype(np.int64)
    at_X = np.where(own, OWN_ROW, UNKNOWN).astype(np.int64)
    return PassageArrays(
        nodes,
        bounds,
        order,
        need[:positions],
        from_K[:positions],
        place_in_order,
        inside,
        starts,
        at_X,
        np.empty(0),
    )


def _needed(
    hung: HungContexts | None, view: StudentView, order: np.ndarray, place_in_order: np.ndarray, end_N: np.ndarray
) -> np.ndarray:
    """int64 [K], place in `order` of the last context that each boundary may need: its own, those of the text behind its open
    leaves, and those hung off these. -1 for none."""
    place, count = view.place_K, len(end_N) - (0 if hung is None else len(hung.shift))
    own = order[order < count]  # of the text
    ends, begin = end_N[own], np.maximum.accumulate(view.node_begin_N[own]) if len(own) else own
    follow = np.minimum(
        np.searchsorted(begin, place, side="right"), np.searchsorted(ends, place + HORIZON_BYTES, side="right")
    )
    last = np.maximum(np.searchsorted(ends, place, side="right"), follow) - 1
    need = np.where(last < 0, -1, place_in_order[own[last]]) if len(own) else last
    for node in range(count, len(end_N)):
        if view.node_state_N[node] >= 0 and place_in_order[node] < len(order):
            end = int(end_N[node])
            a, b = np.searchsorted(place, [max(int(view.node_begin_N[node]), end - HORIZON_BYTES), end])
            need[a:b] = np.maximum(need[a:b], place_in_order[node])
    return need


def ranges(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int64: begin[0] .. end[0], begin[1] .. end[1] and so on."""
    size = end - begin
    return np.repeat(begin - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))
