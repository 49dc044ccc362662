"""Hidden states in, next-token probabilities out, a chunk of contexts at a time, and with them the weights of all contexts.

The lm_head runs over chunks of contexts in the order of the text (by the byte where they end), so that only one table
[R, Vt] of probabilities exists. The log-weight of every context is known by the time its own row is made: its parent came
before it.

Probabilities have the logits' own precision (float32 from a model); log-probabilities, weights and all sums that products
make are float64, or of so few float32 terms (16) that 1e-6 holds.
Letters: R contexts of a chunk, N contexts of the whole group, E tree edges that begin in a chunk, Vt teacher ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from engine.contexts.illegal import IllegalLists
from engine.teacher.group import Group, not_finite
from engine.teacher.kept_logits import KeptLogits
from engine.teacher.weight_kernels import weigh_edges

_TERMS = 16
Logits = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [R, D] -> logits [R, >= Vt]."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Next-token distributions of some contexts. nodes: int64 [R], global numbers of the contexts (teacher/group.py).
    prob: [R, Vt] in the logits' precision; rows sum to 1 (or are 0: no canonical continuation has mass, or the passage is bad).
    """

    index: int
    nodes: np.ndarray
    prob: torch.Tensor


class Softmax:
    """Makes the chunks of one group and fills its `weights`.

    real_V: bool [Vt], ids that are tokens; others get probability 0. noncanonical: mass on non-canonical tokens
    is found (the passages have `illegal`); masked: it is taken out, too. measured: bool [N], contexts whose logits are measured
    (`Weights.logit_measures`), None for none.
    """

    def __init__(
        self,
        group: Group,
        real_V: torch.Tensor,
        *,
        noncanonical: bool,
        masked: bool,
        measured: np.ndarray | None = None,
    ) -> None:
        self._group, self._real, self._masked, self._measured = group, real_V, masked, measured
        self._illegal = _illegal_lists(group) if noncanonical else None
        self._all_real = bool(real_V.all())
        if measured is not None:
            names = ("logz", "logit_std", "logz_scaled")
            group.weights.logit_measures.update({name: np.zeros(group.size) for name in names})

    def run(self, hidden_ND: torch.Tensor, logits: Logits) -> Iterator[Chunk]:
        """Yields every chunk once, in order. Sets `bad` of passages with a distribution that is not finite.

        hidden_ND: last hidden states of all contexts (those that are not evaluated are not read), on the teacher's device.
        """
        group = self._group
        for index in range(group.chunks):
            nodes = group.order[index * group.chunk_rows : (index + 1) * group.chunk_rows]
            if isinstance(logits, KeptLogits):
                logits_RV = logits.rows(group, nodes, hidden_ND)
            else:
                logits_RV = logits(hidden_ND[torch.from_numpy(nodes).to(hidden_ND.device)])
            yield Chunk(index, nodes, self._probabilities(logits_RV, nodes, index))

    def _probabilities(self, logits_RV: torch.Tensor, nodes: np.ndarray, index: int) -> torch.Tensor:
        """The softmax of a chunk, in place; notes what the chunk says of its contexts' children."""
        x = logits_RV[:, : len(self._real)]
        if not self._all_real:
            x = x.masked_fill(~self._real, -torch.inf)
        top = x.amax(1, keepdim=True)
        x = x.sub_(top)
        asked = np.empty(0, np.int64) if self._measured is None else np.flatnonzero(self._measured[nodes])
        picked = torch.from_numpy(asked).to(x.device)
        if len(asked):
            self._measure_spread(x[picked], top[picked, 0], nodes[asked])
        parent, token, child = self._group.edges[index]
        by_number = np.argsort(nodes)
        rows = torch.from_numpy(by_number[np.searchsorted(nodes, parent, sorter=by_number)]).to(x.device)
        edge_E = x[rows, torch.from_numpy(token).to(x.device)].double()  # logits of the tree's edges, less the maximum
        total = row_sums(x.exp_())
        wrong = torch.isnan(total)
        prob = x.mul_((1.0 / total).to(x.dtype)[:, None])
        if wrong.any():
            prob[wrong] = 0.0
            self._note_bad(nodes[wrong.cpu().numpy()])
        log_total = torch.log(total)
        if self._illegal is not None:
            log_total += self._handle_noncanonical(prob, nodes, self._illegal.take(nodes))
        if len(asked):  # with what was taken out: a logit is a log-probability + logz, also in canonical-masked
            logz = (log_total + top[:, 0].double())[picked]
            self._group.weights.logit_measures["logz"][nodes[asked]] = logz.cpu().numpy()
        self._weigh(parent, token, child, (edge_E - log_total[rows]).cpu().numpy())
        return prob

    def _measure_spread(self, x_rV: torch.Tensor, top_r: torch.Tensor, nodes_r: np.ndarray) -> None:
        """logit_std and logz_scaled from logits less their maximum, -inf for rows of the lm_head without a token."""
        measures = self._group.weights.logit_measures
        x = (x_rV if self._all_real else x_rV[:, self._real]).double()
        std = x.std(1, correction=0)
        measures["logit_std"][nodes_r] = std.cpu().numpy()
        scaled = torch.logsumexp(x / std[:, None], 1) + top_r.double() / std
        measures["logz_scaled"][nodes_r] = scaled.cpu().numpy()
        self._note_bad(nodes_r[~(std > 0).cpu().numpy()])  # NaN, or a teacher that gives all tokens one logit

    def _handle_noncanonical(self, prob: torch.Tensor, nodes: np.ndarray, illegal: IllegalLists) -> torch.Tensor:
        """Notes each row's mass on tokens that no text has there (definition 10). Masked: takes it out; returns the log of what
        remains, float64 [R]."""
        group = self._group
        if not self._masked:
            group.weights.noncanonical[nodes] = illegal.mass(prob).cpu().numpy()
            return torch.zeros(len(nodes), dtype=torch.float64, device=prob.device)
        taken = illegal.clear_(prob)
        left = row_sums(prob)
        # a context without any canonical continuation has no row, hence no part in the stored share either
        group.weights.noncanonical[nodes] = torch.where(left > 0, taken, 0.0).cpu().numpy()
        prob.div_(torch.where(left > 0, left, 1.0).to(prob.dtype)[:, None])
        return torch.where(left > 0, torch.log(left), torch.inf)  # nothing left: no child has weight

    def _note_bad(self, nodes: np.ndarray) -> None:
        group = self._group
        for node in nodes:
            i = int(group.passage_of[node])
            passage = group.passages[i]
            if passage.bad is None:
                depth = int(passage.tree.depth[node - group.first_node[i]])
                passage.bad = not_finite(passage, int(group.end[node]), depth)

    def _weigh(self, parent: np.ndarray, token: np.ndarray, child: np.ndarray, logp_E: np.ndarray) -> None:
        """Definition 4 along the tree's edges: log w(child) = log w(parent) + log p(token | parent)."""
        weights, hangs = self._group.weights, child < 0
        weights.fringe_logp[self._group.fringe_index(parent[hangs], token[hangs])] = logp_E[hangs]
        weigh_edges(parent, child, logp_E, weights.logw)


def _illegal_lists(group: Group) -> IllegalLists:
    """The lists of all contexts of the group."""
    found = [passage.illegal for passage in group.passages]
    known = [lists for lists in found if lists is not None]
    assert len(known) == len(found), "who asks for non-canonical mass prepares the passages' lists"
    return IllegalLists.join(known)


def row_sums(x_RV: torch.Tensor) -> torch.Tensor:
    """float64 [R], sums of the rows: 16 terms at a time in the rows' own precision, these sums in float64.

    A float32 sum of 152,000 probabilities, one near 1 and most below 3e-8, is wrong by 1e-6 (measured; torch.softmax: 3e-4),
    for what is added to the large one is lost. Here at most 15 terms lose half a unit in its last place, whatever the order.
    A sum in float64 throughout takes thirty times as long on a CPU.
    """
    whole = x_RV.shape[1] // _TERMS * _TERMS
    blocks = x_RV[:, :whole].unflatten(1, (-1, _TERMS)).sum(2)
    return blocks.sum(1, dtype=torch.float64) + x_RV[:, whole:].sum(1, dtype=torch.float64)


def interval_sums(
    prob_RV: torch.Tensor, order: torch.Tensor, row_F: np.ndarray, lo_F: np.ndarray, hi_F: np.ndarray
) -> torch.Tensor:
    """float64 [F] sums of prob[row, order[lo:hi]]: the mass of F intervals of the tokens in some order.

    prob_RV: [R, Vt]; order: int64 [Vt], token ids; row, lo, hi: int64 [F].
    """
    device = prob_RV.device
    size = torch.from_numpy(hi_F - lo_F).to(device)
    which = torch.repeat_interleave(size)
    offset = torch.from_numpy(lo_F).to(device) - (torch.cumsum(size, 0) - size)
    token = order[torch.arange(len(which), device=device) + offset[which]]
    value = prob_RV[torch.from_numpy(row_F).to(device)[which], token].double()
    return torch.zeros(len(size), dtype=torch.float64, device=device).index_add_(0, which, value)
