"""Chunks of the teacher's probabilities in, rows of a student with any other tokenizer out (regimes fast and beam).

A boundary is pushed forward (engine/targets/pushforward.py) when the last of its contexts is known; probabilities of contexts
that a later boundary still needs are carried to the next chunk.

Letters: R contexts at hand (carried and new), Vt teacher ids, J boundaries pushed at once.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from engine.alignment.boundaries import Boundary, Extra
from engine.targets.positions import TargetRows
from engine.targets.pushforward import Job, PushForward
from engine.teacher.group import MOST_ROWS, Group, pruned_bounds, rows_at_once
from engine.teacher.softmax import Chunk
from schemas.target import FLAG_BOUNDED, FLAG_BUDGET, FLAG_EXACT, FLAG_NO_MASS

AtHand = dict[int, tuple[int, float, float, int]]
"""Context -> its row of probabilities, log-weight, mass on non-canonical tokens, byte where it ends."""


class BeamRows:
    """One product of one group. Call `take` with every chunk in order; then all its rows are written.

    boundaries: of each passage, by k; positions without one are left alone. todo: chunk -> boundaries whose last context it
    has, as (passage, k, contexts). last_use: int64 [N], the last chunk at which a context is still needed, -1 for none.
    nodes, prob: the contexts that are carried, and their rows [., Vt] in float64.
    """

    def __init__(
        self, product: str, push: PushForward, group: Group, boundaries: list[dict[int, Boundary]], rows: TargetRows
    ) -> None:
        self.product, self.push, self.group, self.rows = product, push, group, rows
        self.boundaries = boundaries
        self.todo: dict[int, list[tuple[int, int, list[int]]]] = {}
        self.first_node = group.first_node.tolist()
        self.chunk_of = chunk_of = group.chunk_of.tolist()
        last_use = [-1] * len(chunk_of)
        for i, found in enumerate(boundaries):
            for k, boundary in found.items():
                if k >= rows.start[i + 1] - rows.start[i]:
                    continue  # the end, where the passage has no row for it
                nodes = self._nodes(i, boundary)
                chunk = max([chunk_of[n] for n in nodes], default=-1)
                if chunk >= 0:
                    self.todo.setdefault(chunk, []).append((i, k, nodes))
                    for n in nodes:
                        last_use[n] = max(last_use[n], chunk)
        self.last_use = np.array(last_use, np.int64)
        self.nodes = np.empty(0, np.int64)
        self.prob: torch.Tensor | None = None

    def _nodes(self, i: int, boundary: Boundary) -> list[int]:
        base = self.first_node[i]
        return [base + n for n in {*[n for n, _ in boundary.leaves], *boundary.at}]

    def take(self, chunk: Chunk) -> None:
        """Push the boundaries whose contexts are now all known."""
        carried = self.prob if self.prob is not None and len(self.nodes) else None
        new = chunk.prob.double()
        prob = new if carried is None else torch.cat([carried, new])
        nodes = np.concatenate([self.nodes, chunk.nodes])
        weights = self.group.weights
        known = (weights.logw[nodes], weights.noncanonical[nodes], self.group.end[nodes])
        at_hand = dict(
            zip(nodes.tolist(), zip(range(len(nodes)), *(v.tolist() for v in known), strict=True), strict=True)
        )
        todo = [t for t in self.todo.pop(chunk.index, ()) if self.group.passages[t[0]].bad is None]
        step = rows_at_once(self.push.student_size, MOST_ROWS)
        for begin in range(0, len(todo), step):
            self._write(todo[begin : begin + step], prob, at_hand)
        stay = np.flatnonzero(self.last_use[nodes] > chunk.index)
        self.nodes, self.prob = nodes[stay], prob[torch.from_numpy(stay).to(prob.device)]

    def _write(self, todo: list[tuple[int, int, list[int]]], prob: torch.Tensor, at_hand: AtHand) -> None:
        """Push some boundaries forward and store their rows, with the masses of definition 8 as shares."""
        jobs = [self._job(i, self.boundaries[i][k], nodes, at_hand) for i, k, nodes in todo]
        pushed = self.push.push(prob, jobs, self.product)
        rows, alive = self.rows, pushed.valid > 0
        at = np.array([rows.start[i] + k for i, k, _ in todo])
        rows.flags[at[~alive]] = FLAG_NO_MASS  # the teacher gives this boundary no mass at all: unscored, not guessed
        if not alive.any():
            return
        at, mass = at[alive], pushed.mass
        if not alive.all():
            mass = mass[torch.from_numpy(alive).to(mass.device)]
        rows.write(self.product, at, mass, pushed.valid[alive], pushed.ids)
        open_, pruned, decided = pushed.open[alive], pushed.pruned[alive], pushed.decided[alive]
        live = pushed.valid[alive] + pushed.excluded[alive] + pruned  # L of definition 8
        rows.err[at] = (open_ + pruned) / (decided + open_ + pruned)  # definition 9
        rows.open_mass[at] = open_ / live
        rows.excluded_mass[at] = pushed.excluded[alive] / live
        rows.pruned_mass[at] = pruned / live
        noncanonical = np.array([job.noncanonical for job in jobs])
        rows.noncanonical_mass[at] = noncanonical[alive] / live
        rows.flags[at] = np.where(rows.err[at] == 0.0, FLAG_EXACT, FLAG_BOUNDED)
        if self.push.tolerance is not None:
            rows.flags[at] |= np.where(rows.err[at] > self.push.tolerance, FLAG_BUDGET, 0).astype(np.uint8)

    def _job(self, i: int, boundary: Boundary, nodes: list[int], at_hand: AtHand) -> Job:
        """A boundary with what is at hand of its contexts; weights relative to the heaviest of them, or of what bounds the
        pruned."""
        base = self.first_node[i]
        logw = {n: at_hand[n][1] for n in nodes if n in at_hand}
        bounds = pruned_bounds(self.group, i, boundary) if boundary.fringe or len(logw) < len(nodes) else []
        top = max([*logw.values(), *bounds])
        possible = top > -math.inf
        weight = {n: math.exp(w - top) if possible else 0.0 for n, w in logw.items()}
        at = [m for n in boundary.at if (m := base + n) in logw]
        return Job(
            leaves=[(at_hand[m][0], weight[m], rule) for n, rule in boundary.leaves if (m := base + n) in logw],
            at=[(at_hand[m][0], weight[m]) for m in at],
            pruned=sum([math.exp(b - top) for b in bounds]) if possible else 0.0,
            boundary=boundary,
            skip={at_hand[m][0]: tokens for n, tokens in boundary.skip.items() if (m := base + n) in logw},
            extra=None if boundary.extra is None else _weighted(boundary.extra, weight, base),
            noncanonical=sum([weight[m] * at_hand[m][2] for m in at if at_hand[m][3] == boundary.place]),
        )


def _weighted(extra: Extra, weight: dict[int, float], base: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the beam has put in the place of split leaves, with the weights of its contexts: (student id or -1, mass, open)."""
    scale = np.array([weight.get(base + n, 0.0) for n in extra.node.tolist()])
    return extra.first, extra.mass * scale, extra.open
