"""Context trees cut into windows that fit the teacher, and windows of like length put into batches.

A document longer than the teacher's context is read in windows of trunk tokens that overlap by `overlap`; every node's
distribution comes from the one window that owns it, in which it has at least `overlap` tokens before it (the first
window owns from its start). Nothing is cut off.

Letters: N nodes of a tree, W nodes of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.contexts.tree import ContextTree
from engine.teacher.decoder import MASK_CELLS
from engine.teacher.packing import Window


@dataclass(frozen=True, slots=True)
class OwnedWindow:
    """A window and which of its nodes it owns: `nodes[i]` is the tree node of the window's i-th node if `owned[i]`.

    nodes: int64 [W], owned: bool [W].
    """

    window: Window
    nodes: np.ndarray
    owned: np.ndarray


def windows_of(tree: ContextTree, *, max_length: int, overlap: int) -> list[OwnedWindow]:
    """Windows of one tree; together they own every node once. Raises ValueError when max_length leaves no room."""
    size, trunk = len(tree.token), tree.trunk.astype(np.int64)
    if tree.depth.max() < max_length:
        return [OwnedWindow(Window(tree.token, tree.parent, tree.depth), np.arange(size), np.ones(size, bool))]
    given = int(trunk[0])  # nodes before the trunk: the given tokens, such as BOS
    first_branch = given + len(trunk)
    branches = np.arange(first_branch, size)
    root = tree.parent[branches]  # of each branch: the trunk or BOS node that it hangs off
    while (deep := root >= first_branch).any():
        root[deep] = tree.parent[root[deep]]
    hanging = tree.depth[branches] - tree.depth[root]  # tokens between a branch node and the trunk
    anchor = np.maximum(root - given, -1)  # its place in the trunk; -1 off a BOS
    room = max_length - given - int(hanging.max(initial=0))
    if room <= overlap:
        raise ValueError(
            f"max_length {max_length} leaves room for {room} trunk tokens, not more than the overlap of {overlap}"
        )
    out, start = [], 0
    at = np.empty(size, np.int64)  # tree node -> its place in the window
    while True:
        stop = min(len(trunk), start + room)
        first_owned = -1 if start == 0 else start + overlap
        mine = (anchor >= first_owned) & (anchor < stop)
        spine = np.concatenate([np.arange(given), trunk[start:stop]])
        nodes = np.concatenate([spine, branches[mine]])
        at[nodes] = np.arange(len(nodes))
        parent = np.concatenate([np.arange(-1, len(spine) - 1), at[tree.parent[branches[mine]]]])
        depth = np.concatenate([np.arange(len(spine)), at[root[mine]] + hanging[mine]])
        owned = np.ones(len(nodes), bool)
        if start:
            owned[: given + overlap] = False
        out.append(OwnedWindow(Window(tree.token[nodes], parent, depth), nodes, owned))
        if stop == len(trunk):
            return out
        start = stop - overlap


def batches(windows: list[OwnedWindow], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of windows to score together, the longest first: at most batch_tokens with padding, a bounded mask.

    Windows without branches stay apart, one to a row; the others are packed into rows as the teacher will pack them.
    """
    order = sorted(range(len(windows)), key=lambda i: -len(windows[i].nodes))
    branched = [w.window.branched for w in windows]
    for packed in (False, True):
        batch: list[int] = []
        room: list[int] = []  # places left in each row
        width = 0
        for index in (i for i in order if branched[i] is packed):
            size = len(windows[index].nodes)
            row = next((r for r, free in enumerate(room) if packed and free >= size), None)
            places = (len(room) + 1) * width
            if row is None and batch and (places > batch_tokens or places * width > MASK_CELLS):
                yield batch
                batch, room = [], []
            if not batch:
                width = size
            if row is None:
                room.append(width - size)
            else:
                room[row] -= size
            batch.append(index)
        if batch:
            yield batch
