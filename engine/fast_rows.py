"""Stage 9b (fast): probability rows of contexts -> rows of a student with any other tokenizer.

A boundary is pushed forward when the last of its contexts is known; rows that a later boundary still needs are carried to
the next chunk. Letters: R probability rows at hand (carried and new), Vt teacher ids, J boundaries pushed at once.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from engine.boundaries import Boundary
from engine.positions import Rows
from engine.pushforward import Job, PushForward
from engine.softmax import Chunk, Softmax
from schemas.target import FLAG_BOUNDED, FLAG_EXACT, FLAG_NO_MASS

_STEP_CELLS = 6_000_000  # J x Vs
_MOST_ROWS = 512


class FastRows:
    """One product of one group. Call `take` with every chunk in order; then all its rows are written."""

    def __init__(
        self, product: str, push: PushForward, softmax: Softmax, boundaries: list[list[Boundary]], rows: Rows
    ) -> None:
        self.product, self.push, self.softmax, self.rows = product, push, softmax, rows
        self.boundaries = boundaries
        self.todo: dict[int, list[tuple[int, int]]] = {}  # chunk -> (document, k)
        self.last_use = np.full(len(softmax.chunk_of), -1, np.int64)
        for i, found in enumerate(boundaries):
            for k in range(rows.start[i + 1] - rows.start[i]):
                nodes = [n for n in self._nodes(i, found[k]) if softmax.chunk_of[n] >= 0]
                if nodes:
                    chunk = int(softmax.chunk_of[nodes].max())
                    self.last_use[nodes] = np.maximum(self.last_use[nodes], chunk)
                    self.todo.setdefault(chunk, []).append((i, k))
        self.nodes = np.empty(0, np.int64)
        self.prob: torch.Tensor | None = None

    def _nodes(self, i: int, boundary: Boundary) -> list[int]:
        base = int(self.softmax.base[i])
        return [base + n for n in {*(n for n, _ in boundary.leaves), *boundary.at}]

    def take(self, chunk: Chunk) -> None:
        """Push the boundaries whose contexts are now all known."""
        carried = self.prob if self.prob is not None and len(self.nodes) else None
        new = chunk.prob.double()
        prob = new if carried is None else torch.cat([carried, new])
        nodes = np.concatenate([self.nodes, chunk.nodes])
        row_of = dict(zip(nodes.tolist(), range(len(nodes)), strict=True))
        todo = [(i, k) for i, k in self.todo.get(chunk.index, ()) if self.softmax.group.bad[i] is None]
        step = int(np.clip(_STEP_CELLS // self.push.student_size, 1, _MOST_ROWS))
        for begin in range(0, len(todo), step):
            self._write(todo[begin : begin + step], prob, row_of)
        stay = np.flatnonzero(self.last_use[nodes] > chunk.index)
        self.nodes, self.prob = nodes[stay], prob[torch.from_numpy(stay).to(prob.device)]

    def _write(self, todo: list[tuple[int, int]], prob: torch.Tensor, row_of: dict[int, int]) -> None:
        jobs = [self._job(i, self.boundaries[i][k], row_of) for i, k in todo]
        pushed = self.push.push(prob, jobs, self.product)
        rows, alive = self.rows, pushed.valid > 0
        at = np.array([rows.start[i] + k for i, k in todo])
        rows.flags[at[~alive]] = FLAG_NO_MASS  # the teacher gives this boundary no mass at all: unscored, not guessed
        if not alive.any():
            return
        at, mass = at[alive], pushed.mass
        if not alive.all():
            mass = mass[torch.from_numpy(alive).to(mass.device)]
        rows.write(self.product, at, mass, pushed.valid[alive], pushed.ids)
        open_, pruned, decided = pushed.open[alive], pushed.pruned[alive], pushed.decided[alive]
        live = pushed.valid[alive] + pushed.excluded[alive] + pruned
        rows.err[at] = (open_ + pruned) / (decided + open_ + pruned)
        rows.open_mass[at] = open_ / live
        rows.excluded_mass[at] = pushed.excluded[alive] / live
        rows.pruned_mass[at] = pruned / live
        noncanonical = np.array([job.noncanonical for job in jobs])
        rows.noncanonical_mass[at] = noncanonical[alive] / live
        rows.flags[at] = np.where(rows.err[at] == 0.0, FLAG_EXACT, FLAG_BOUNDED)

    def _job(self, i: int, boundary: Boundary, row_of: dict[int, int]) -> Job:
        softmax, base = self.softmax, int(self.softmax.base[i])
        logw, everything = softmax.logw, self._nodes(i, boundary)
        alive = {n for n in everything if n in row_of}
        hanging = [(base + n, t) for n, t in boundary.fringe]
        gone = {int(softmax.top_pruned[n]) for n in (*everything, *(n for n, _ in hanging)) if softmax.chunk_of[n] < 0}
        bounds = [logw[n] for n in gone]
        bounds += [logw[n] + softmax.fringe_logp[n, t] for n, t in hanging if softmax.chunk_of[n] >= 0]
        top = max([*(logw[n] for n in alive), *bounds])
        weight = {n: math.exp(logw[n] - top) for n in alive} if top > -math.inf else dict.fromkeys(alive, 0.0)
        at = [(row_of[base + n], weight[base + n]) for n in boundary.at if base + n in alive]
        here = [base + n for n in boundary.at if base + n in alive and softmax.end[base + n] == boundary.place]
        return Job(
            leaves=[(row_of[base + n], weight[base + n], rule) for n, rule in boundary.leaves if base + n in alive],
            at=at,
            pruned=sum(math.exp(b - top) for b in bounds) if top > -math.inf else 0.0,
            boundary=boundary,
            skip={row_of[base + n]: tokens for n, tokens in boundary.skip.items() if base + n in alive},
            inner=[(row_of[base + n], weight[base + n], first) for n, first in boundary.inner if base + n in alive],
            noncanonical=sum(weight[n] * softmax.noncanonical[n] for n in here),
        )
