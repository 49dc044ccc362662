"""Stage 5b: cut context trees into windows that fit the teacher, and batch windows of like length.

A document longer than the teacher's context is read in windows of trunk tokens that overlap by `overlap`; every node's
distribution comes from the one window that owns it, in which it has at least `overlap` tokens before it (the first
window owns from its start). Nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.contexts import NO_NODE, ContextTree
from engine.forest import Window
from engine.forward import MASK_CELLS


@dataclass(frozen=True, slots=True)
class OwnedWindow:
    """A window and which of its nodes it owns: `nodes[i]` is the tree node of the window's i-th node if `owned[i]`."""

    window: Window
    nodes: list[int]
    owned: list[bool]


def windows_of(tree: ContextTree, *, max_length: int, overlap: int) -> list[OwnedWindow]:
    """Windows of one tree; together they own every node once. Raises ValueError when max_length leaves no room."""
    if max(tree.depth) < max_length:
        window = Window(tree.token, tree.parent, tree.depth)
        return [OwnedWindow(window, list(range(len(tree.token))), [True] * len(tree.token))]
    trunk_index = {node: i for i, node in enumerate(tree.trunk)}
    anchor = [-1] * len(tree.token)
    hanging = [0] * len(tree.token)  # tokens between a branch node and the trunk
    for node in range(len(tree.token)):
        if node in trunk_index:
            anchor[node] = trunk_index[node]
        elif tree.parent[node] != NO_NODE and node > tree.given:
            anchor[node] = anchor[tree.parent[node]]
            hanging[node] = hanging[tree.parent[node]] + 1
    head = [n for n in range(len(tree.token)) if anchor[n] < 0 and hanging[n] == 0]  # BOS tokens
    room = max_length - len(head) - max(hanging)
    if room <= overlap:
        raise ValueError(
            f"max_length {max_length} leaves room for {room} trunk tokens, not more than the overlap of {overlap}"
        )
    by_anchor: dict[int, list[int]] = {}
    for node in range(len(tree.token)):
        if hanging[node]:
            by_anchor.setdefault(anchor[node], []).append(node)
    out, start = [], 0
    while True:
        stop = min(len(tree.trunk), start + room)
        first_owned = -1 if start == 0 else start + overlap
        trunk = tree.trunk[start:stop]
        branches = [n for a in range(first_owned, stop) for n in by_anchor.get(a, [])]
        nodes = [*head, *trunk, *sorted(branches)]
        at = {node: i for i, node in enumerate(nodes)}
        parent = [at.get(tree.parent[n], -1) if n not in trunk_index else i - 1 for i, n in enumerate(nodes)]
        depth: list[int] = []
        for p in parent:
            depth.append(depth[p] + 1 if p >= 0 else 0)
        owned = [anchor[n] >= first_owned if n not in head else start == 0 for n in nodes]
        out.append(OwnedWindow(Window([tree.token[n] for n in nodes], parent, depth), nodes, owned))
        if stop == len(tree.trunk):
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
