"""Stage 9a: hidden states of a group of documents -> probability rows, chunk by chunk, and the weights of all contexts.

The lm_head runs over chunks of contexts in reading order (by the byte where they end), so that only one chunk of [R, Vt]
probabilities exists. Every context's log weight is known by the time its own row is made: its parent came before it.

Probabilities have the logits' own precision (float32 from a model); log-probabilities, weights and all sums that products
make are float64, or of so few float32 terms that 1e-6 holds.
Letters: R contexts of a chunk, N nodes of the whole group, E tree edges that begin in a chunk, Vt teacher ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.alignment.boundaries import Boundary
from engine.contexts.canonical import CanonicalNext
from engine.contexts.tree import ContextTree

_CHUNK_CELLS = 6_000_000  # R x Vt: about 20 bytes each at the peak, so 0.12 GiB
_MOST_ROWS = 512

Logits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class Scored:
    """What a group is made of, for this stage. kept: bool [nodes] per document, False for pruned contexts; None: all.
    states: per document and node, what `canonical` needs; bad: per document (reason, detail) when not finite; lead: bytes
    before each document's text (a prefix of the tokenizer), none when not given."""

    trees: list[ContextTree]
    kept: list[np.ndarray | None]
    states: list[list[Any]] | None
    bad: list[tuple[str, str] | None]
    lead: Sequence[int] = ()


def not_finite(end: int, lead: int, depth: int) -> tuple[str, str]:
    """(reason, detail) of a document whose teacher gave NaN or infinity. end: byte where the context ends, `lead` included."""
    place = max(0, end - lead)
    return (
        "nonfinite_logprob",
        f"the teacher's distribution after byte {place} of the text (depth {depth}) is not finite",
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """nodes: int64 [R], global numbers of the contexts. prob: [R, Vt] in the logits' precision; rows sum to 1 (or are 0: no
    canonical continuation has mass, or the document is bad)."""

    index: int
    nodes: np.ndarray
    prob: torch.Tensor


class Softmax:
    """One group's chunks. After all of them, `logw` [N] and `noncanonical` [N] are complete.

    base: int64 [documents+1], global number of each document's first node. chunk_of: int64 [N], -1 for contexts that are
    not evaluated (before the given one, or pruned). top_pruned: int64 [N], the pruned ancestor nearest to the root, or -1.
    fringe_logp: (global node, token) -> log-probability of contexts that hang off the tree.
    measures: after `measure`, of the contexts asked for, float64 [N]: logz, logit_std, logz_scaled (schemas/target.py).
    """

    def __init__(self, group: Scored, real_V: torch.Tensor, canonical: CanonicalNext | None, *, masked: bool) -> None:
        self.group, self.real, self.canonical, self.masked = group, real_V, canonical, masked
        sizes = [len(t.token) for t in group.trees]
        self.base = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.doc_of = np.repeat(np.arange(len(sizes)), sizes)
        self.end = np.concatenate([np.asarray(t.end, np.int64) for t in group.trees])
        parent, used, given = [], [], []
        for i, tree in enumerate(group.trees):
            above = np.asarray(tree.parent, np.int64)
            parent.append(np.where(above >= 0, above + self.base[i], -1))
            here = np.arange(sizes[i]) >= tree.given
            given.append(self.base[i] + tree.given)
            kept = group.kept[i]
            used.append(here if kept is None else here & kept)
        self.parent, self.used = np.concatenate(parent), np.concatenate(used)
        self.token = np.concatenate([np.asarray(t.token, np.int64) for t in group.trees])
        self.step = int(np.clip(_CHUNK_CELLS // len(real_V), 1, _MOST_ROWS))
        order = np.lexsort((self.end, self.doc_of))
        self.order = order[self.used[order]]
        self.chunk_of = np.full(self.base[-1], -1, np.int64)
        self.chunk_of[self.order] = np.arange(len(self.order)) // self.step
        self.top_pruned = self._top_pruned(np.array(given))
        self.logw = np.full(self.base[-1], -np.inf)
        self.logw[given] = 0.0
        self.noncanonical = np.zeros(self.base[-1])
        self.fringe_logp: dict[tuple[int, int], float] = {}
        self.measured = np.zeros(self.base[-1], bool)
        self.measures: dict[str, np.ndarray] = {}
        self._edges = self._collect_edges(np.array(given))
        self._all_real = bool(real_V.all())

    def _top_pruned(self, given: np.ndarray) -> np.ndarray:
        """Parents come first, so that one pass down finds each pruned context's topmost pruned ancestor."""
        top = np.full(self.base[-1], -1, np.int64)
        after = np.arange(self.base[-1]) > given[self.doc_of]
        for node in np.flatnonzero(after & ~self.used):
            above = top[self.parent[node]]
            top[node] = node if above < 0 else above
        return top

    def _collect_edges(self, given: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per chunk: (parent, token, child or -1 for the fringe), parents in reading order."""
        child = np.flatnonzero(np.arange(self.base[-1]) > given[self.doc_of])
        child = child[(self.parent[child] >= 0) & (self.chunk_of[self.parent[child]] >= 0)]
        parent, token = self.parent[child], self.token[child]
        hanging = [
            np.stack([tree.fringe_node + self.base[i], tree.fringe_token]).astype(np.int64)
            for i, tree in enumerate(self.group.trees)
        ]
        more = np.unique(np.concatenate(hanging, axis=1), axis=1).T
        more = more[self.chunk_of[more[:, 0]] >= 0]
        if len(more):
            parent, token = np.concatenate([parent, more[:, 0]]), np.concatenate([token, more[:, 1]])
            child = np.concatenate([child, np.full(len(more), -1)])
        place = np.empty(self.base[-1], np.int64)
        place[self.order] = np.arange(len(self.order))
        by = np.argsort(place[parent], kind="stable")
        parent, token, child = parent[by], token[by], child[by]
        cuts = np.searchsorted(self.chunk_of[parent], np.arange(self.chunks + 1))
        return [(parent[a:b], token[a:b], child[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]

    def measure(self, nodes_N: np.ndarray) -> None:
        """Ask for the measures of the logits of these contexts, bool [N]; before `run`."""
        self.measured |= nodes_N
        self.measures = {name: np.zeros(self.base[-1]) for name in ("logz", "logit_std", "logz_scaled")}

    @property
    def chunks(self) -> int:
        return math.ceil(len(self.order) / self.step)

    def run(self, hidden_ND: torch.Tensor, logits: Logits) -> Iterator[Chunk]:
        """Yields every chunk once."""
        for index in range(self.chunks):
            nodes = self.order[index * self.step : (index + 1) * self.step]
            states_RD = hidden_ND[torch.from_numpy(nodes).to(hidden_ND.device)]
            yield Chunk(index, nodes, self._probabilities(logits(states_RD), nodes, index))

    def _probabilities(self, logits_RV: torch.Tensor, nodes: np.ndarray, index: int) -> torch.Tensor:
        x = logits_RV[:, : len(self.real)]
        if not self._all_real:
            x = x.masked_fill(~self.real, -torch.inf)
        top = x.amax(1, keepdim=True)
        x = x.sub_(top)
        asked = np.flatnonzero(self.measured[nodes])
        picked = torch.from_numpy(asked).to(x.device)
        if len(asked):
            self._measure_spread(x[picked], top[picked, 0], nodes[asked])
        place = {int(node): row for row, node in enumerate(nodes)}
        parent, token, child = self._edges[index]
        rows = torch.tensor([place[p] for p in parent.tolist()], dtype=torch.long, device=x.device)
        edge_E = x[rows, torch.from_numpy(token).to(x.device)].double()
        total = x.exp_().sum(1)
        wrong = torch.isnan(total)
        prob = x.mul_((1.0 / total)[:, None])
        if wrong.any():
            prob[wrong] = 0.0
            self._note_bad(nodes[wrong.cpu().numpy()])
        log_total = torch.log(total.double())
        if self.canonical is not None:
            log_total += self._handle_noncanonical(prob, nodes)
        if len(asked):  # with what was taken out: a logit is a log-probability + logz, also in canonical-masked
            self.measures["logz"][nodes[asked]] = (log_total + top[:, 0].double())[picked].cpu().numpy()
        self._weigh(parent, token, child, (edge_E - log_total[rows]).cpu().tolist())
        return prob

    def _measure_spread(self, x_rV: torch.Tensor, top_r: torch.Tensor, nodes_r: np.ndarray) -> None:
        """logit_std and logz_scaled from logits less their maximum, -inf for rows of the lm_head without a token."""
        x = (x_rV if self._all_real else x_rV[:, self.real]).double()
        std = x.std(1, correction=0)
        self.measures["logit_std"][nodes_r] = std.cpu().numpy()
        scaled = torch.logsumexp(x / std[:, None], 1) + top_r.double() / std
        self.measures["logz_scaled"][nodes_r] = scaled.cpu().numpy()
        self._note_bad(nodes_r[~(std > 0).cpu().numpy()])  # NaN, or a teacher that gives all tokens one logit

    def _handle_noncanonical(self, prob: torch.Tensor, nodes: np.ndarray) -> torch.Tensor:
        """Notes each row's mass on tokens that no text has there. Masked: takes it out; returns log of what remains [R]."""
        assert self.canonical is not None and self.group.states is not None
        states = [self.group.states[self.doc_of[n]][n - self.base[self.doc_of[n]]] for n in nodes.tolist()]
        if not self.masked:
            self.noncanonical[nodes] = self.canonical.noncanonical_mass(prob, states).cpu().numpy()
            return torch.zeros(len(nodes), dtype=torch.float64, device=prob.device)
        taken = self.canonical.mask_(prob, states)
        left = prob.sum(1)
        self.noncanonical[nodes] = (
            torch.where(left > 0, taken, 0.0).cpu().numpy()
        )  # without a continuation: no part in it
        prob.div_(torch.where(left > 0, left, 1.0)[:, None])
        return torch.where(left > 0, torch.log(left.double()), torch.inf)  # nothing left: no child has weight

    def _note_bad(self, nodes: np.ndarray) -> None:
        for node in nodes:
            i = int(self.doc_of[node])
            if self.group.bad[i] is None:
                tree, local = self.group.trees[i], int(node - self.base[i])
                lead = self.group.lead[i] if self.group.lead else 0
                self.group.bad[i] = not_finite(int(tree.end[local]), lead, int(tree.depth[local]))

    def _weigh(self, parent: np.ndarray, token: np.ndarray, child: np.ndarray, logp_E: list[float]) -> None:
        """Context weights along the tree's edges: log w(child) = log w(parent) + log p(token | parent)."""
        logw = self.logw
        for above, t, below, logp in zip(parent.tolist(), token.tolist(), child.tolist(), logp_E, strict=True):
            if below >= 0:
                logw[below] = logw[above] + logp
            else:
                self.fringe_logp[above, t] = logp


def interval_sums(
    prob_RV: torch.Tensor, order: torch.Tensor, row_F: np.ndarray, lo_F: np.ndarray, hi_F: np.ndarray
) -> torch.Tensor:
    """float64 [F] sums of prob[row, order[lo:hi]]."""
    device = prob_RV.device
    size = torch.from_numpy(hi_F - lo_F).to(device)
    which = torch.repeat_interleave(size)
    offset = torch.from_numpy(lo_F).to(device) - (torch.cumsum(size, 0) - size)
    token = order[torch.arange(len(which), device=device) + offset[which]]
    value = prob_RV[torch.from_numpy(row_F).to(device)[which], token].double()
    return torch.zeros(len(size), dtype=torch.float64, device=device).index_add_(0, which, value)


def pruned_bounds(softmax: Softmax, base: int, boundary: Boundary) -> list[float]:
    """Log weights that bound the mass of a boundary in contexts that were not evaluated: the fringe, and what `eps` left out.
    base: global number of the document's first node."""
    nodes = {base + n for n in {*(n for n, _ in boundary.leaves), *boundary.at}}
    hanging = [(base + n, t) for n, t in boundary.fringe]
    gone = {int(softmax.top_pruned[n]) for n in (*nodes, *(n for n, _ in hanging)) if softmax.chunk_of[n] < 0}
    bounds = [softmax.logw[n] for n in gone]
    return bounds + [softmax.logw[n] + softmax.fringe_logp[n, t] for n, t in hanging if softmax.chunk_of[n] >= 0]
