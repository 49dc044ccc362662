"""Token trees laid side by side in the rows of a batch, and who is whose ancestor there, as intervals.

In: windows (token, parent, depth). Out: rows of one width, in which every place has an interval [enter, leave) of the order
in which a walk enters the nodes: j is i or an ancestor of i exactly when enter[j] <= enter[i] < leave[j] (section 3 of
docs/design.md, below lemma 8). Several documents in a row, and the padding at its end, are trees of their own: their
intervals are disjoint, so nothing attends across them.

Letters: B rows, N places of a row, n nodes of one window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Window:
    """Nodes that one pass scores together: parents before children, -1 for the first; depth is the position id."""

    token: Sequence[int] | np.ndarray
    parent: Sequence[int] | np.ndarray
    depth: Sequence[int] | np.ndarray

    @property
    def branched(self) -> bool:
        """Whether some node's parent is not simply the node before it."""
        return bool(np.any(np.asarray(self.parent) != np.arange(-1, len(self.parent) - 1)))


def chain_length(window: Window) -> int:
    """How many nodes from the first one on are a chain, each the child of the one before."""
    broken = np.flatnonzero(np.asarray(window.parent) != np.arange(-1, len(window.parent) - 1))
    return int(broken[0]) if len(broken) else len(window.parent)


@dataclass(frozen=True, slots=True)
class PackedTrees:
    """Windows in rows. Arrays int64 [B, N]; parents are places of the same row, -1 for a root. Padding: roots of depth 0.

    start: for each window its row and the place of its first node there.
    """

    token: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    start: list[tuple[int, int]]


def pack(sizes: Sequence[int]) -> list[list[int]]:
    """Indices by rows, no row longer than the longest of all: largest first, each into the first row with room."""
    if not len(sizes):
        return []
    width, rows, room = max(sizes), [], []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, free in enumerate(room) if free >= sizes[index]), None)
        if row is None:
            rows.append([])
            room.append(width)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= sizes[index]
    return rows


def lay_out(windows: Sequence[Window], rows: Sequence[Sequence[int]]) -> PackedTrees:
    """Put windows into the given rows (indices of `windows`, each once). Padding repeats the row's first token: any
    token will do, and libraries warn about the one that a model calls padding."""
    width = max(sum(len(windows[i].token) for i in row) for row in rows)
    token, depth = (np.zeros((len(rows), width), np.int64) for _ in range(2))
    parent = np.full((len(rows), width), -1, np.int64)
    start = [(0, 0)] * len(windows)
    for at, row in enumerate(rows):
        here = 0
        for index in row:
            window, there = windows[index], here + len(windows[index].token)
            above = np.asarray(window.parent)
            token[at, here:there], depth[at, here:there] = window.token, window.depth
            parent[at, here:there] = np.where(above >= 0, above + here, -1)
            start[index] = (at, here)
            here = there
        token[at, here:] = token[at, :1]
    return PackedTrees(token, parent, depth, start)


def intervals(parent_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(enter, leave), int32 [B, N], for rows of trees with parents before children. O(B N).

    enter: when a walk that visits each node before its children enters the node. leave: enter + the size of its subtree, which
    is when the walk leaves the subtree. All descendants of a node are entered between the two, and nothing else is.
    """
    enter, leave = (np.empty(parent_BN.shape, np.int32) for _ in range(2))
    for row, parents in enumerate(parent_BN.tolist()):
        size = [1] * len(parents)  # nodes of each subtree: children come later, so they are complete when added up
        for node in range(len(parents) - 1, -1, -1):
            if parents[node] >= 0:
                size[parents[node]] += size[node]
        # free: the next number that a child of this node gets; roots: the next that a tree of its own gets
        entered, free, roots = [0] * len(parents), [0] * len(parents), 0
        for node, above in enumerate(parents):
            if above < 0:
                entered[node] = roots
                roots += size[node]
            else:
                entered[node] = free[above]
                free[above] += size[node]
            free[node] = entered[node] + 1
        enter[row] = entered
        leave[row] = enter[row] + np.asarray(size, np.int32)
    return enter, leave


def ancestors_too(parent: Sequence[int] | np.ndarray, nodes: Sequence[int] | np.ndarray) -> np.ndarray:
    """The given nodes and all above them, rising."""
    seen: set[int] = set()
    for node in nodes:
        at = int(node)
        while at >= 0 and at not in seen:
            seen.add(at)
            at = int(parent[at])
    return np.asarray(sorted(seen), np.int64)
