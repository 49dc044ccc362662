"""Contexts of small weight left out: the trunk is evaluated first, branches in rounds after it, each only if it may matter.

In: windows of context trees. Out: hidden states of the contexts that were kept, and which these are.

A branch b that ends at byte p is worth its evaluation when its share of the text's own probability, w(b) / F(x[:p]), is at
least eps (definition 12). F(x[:p]) is at least what the evaluated ancestors of b give to tokens that reach p along the text, and
that is known before b is evaluated; so the share is bounded from above, and nothing of a share of eps or more is left out. What
is left out is accounted for where rows are made (`pruned_mass`), by the weight of the topmost pruned context (lemma 14).

Letters: N nodes of a window, P (ancestor, branch) pairs, R contexts of a chunk, Vt teacher ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.alignment.token_trie import Trie
from engine.contexts.tree import ContextTree
from engine.teacher.group import rows_at_once
from engine.teacher.incremental import IncrementalTrees
from engine.teacher.kept_logits import KeptLogits
from engine.teacher.model import Teacher
from engine.teacher.packing import Window
from engine.teacher.softmax import interval_sums
from engine.teacher.windows import OwnedWindow


@dataclass(slots=True)
class _WindowState:
    """One window of a passage between rounds. Numbers of nodes are places in the window; given and trunk nodes are those before
    `spine`.

    parent: int64 [N], -1 at the root.
    above, branch: int64 [P], all pairs of a branch node and an ancestor of it, up to and with the trunk node that it hangs off.
    lo, hi: int64 [P], for each pair the interval (in the trie's order) of the tokens that, behind the ancestor, go along the text
    to the branch's end or past it.
    weight: float64 [N], w(b) of definition 4; reach: float64 [N], the lower bound of F at the branch's end, summed over the
    ancestors evaluated so far (definition 12). Both relative to w of the trunk node that the branch hangs off, since only their
    quotient counts; on the trunk weight is 1.
    evaluated: bool [N]. number: int64 [N], place of a node in the order of evaluation, -1 while it is not evaluated; count: their
    number so far.
    """

    owned: OwnedWindow
    passage: int
    spine: int
    parent: np.ndarray
    above: np.ndarray
    branch: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    weight: np.ndarray
    reach: np.ndarray
    evaluated: np.ndarray
    number: np.ndarray
    count: int


class Pruner:
    """Evaluates windows with pruning. trie: of the teacher's tokens as bytes; real: bool [Vt], ids that are tokens; eps: share
    below which a branch is left out."""

    def __init__(self, teacher: Teacher, trie: Trie, real: torch.Tensor, eps: float) -> None:
        self.teacher, self.trie, self.real, self.eps = teacher, trie, real, eps
        self.order = torch.from_numpy(trie.order).to(real.device)

    def with_teacher(self, teacher: Teacher) -> Pruner:
        """The same pruning with another teacher object, such as one that is run with less memory."""
        return self if teacher is self.teacher else Pruner(teacher, self.trie, self.real, self.eps)

    def hidden(
        self,
        windows: list[OwnedWindow],
        trees: list[ContextTree],
        data: list[bytes],
        passages: list[int],
        logits: KeptLogits,
    ) -> tuple[list[torch.Tensor], list[np.ndarray], IncrementalTrees, list[np.ndarray]]:
        """For every window: last hidden states [N, D] (zeros where a context was pruned), and bool [N], which were not;
        the trees over whose cache they were made, and their numbers in there (int64 [N], -1 where pruned).

        trees, data: the context tree of each window's passage, and its prefix and text as bytes. passages: their numbers, by
        which logits are kept for the rows.
        """
        windows_state = [self._start(*one) for one in zip(windows, trees, data, passages, strict=True)]
        spines = [
            Window(g.owned.window.token[: g.spine], g.owned.window.parent[: g.spine], g.owned.window.depth[: g.spine])
            for g in windows_state
        ]
        open_trees = self.teacher.open_trees(spines)
        out = []
        for g, states in zip(windows_state, open_trees.hidden, strict=True):
            made = states.new_zeros((len(g.parent), states.shape[1]))
            made[: g.spine] = states
            out.append(made)
        fresh = [np.arange(g.spine) for g in windows_state]
        while True:
            self._weigh(windows_state, fresh, out, logits)
            fresh = [self._chosen(g) for g in windows_state]
            if not sum(map(len, fresh)):
                break
            more = open_trees.add([self._round(g, nodes) for g, nodes in zip(windows_state, fresh, strict=True)])
            for made, nodes, states in zip(out, fresh, more, strict=True):
                made[torch.from_numpy(nodes).to(made.device)] = states
        return out, [g.evaluated for g in windows_state], open_trees, [g.number for g in windows_state]

    def _start(self, owned: OwnedWindow, tree: ContextTree, data: bytes, passage: int) -> _WindowState:
        parent = np.asarray(owned.window.parent, np.int64)
        size = len(parent)
        spine = int(np.searchsorted(owned.nodes, int(tree.trunk[-1]), side="right"))  # BOS, trunk, then branches
        end = np.asarray(tree.end, np.int64)[owned.nodes]
        branches = np.arange(spine, size)
        above, branch, current = [], [], parent[branches]
        while len(branches):  # one step up for all branches at once, until each has met its trunk node
            above.append(current)
            branch.append(branches)
            deeper = current >= spine
            branches, current = branches[deeper], parent[current[deeper]]
        pair_above = np.concatenate([np.empty(0, np.int64), *above])
        pair_branch = np.concatenate([np.empty(0, np.int64), *branch])
        lo, hi = self._interval(np.frombuffer(data, np.uint8), end[pair_above], end[pair_branch])
        weight = np.ones(size)
        number = np.full(size, -1, np.int64)
        number[:spine] = np.arange(spine)
        return _WindowState(
            owned,
            passage,
            spine,
            parent,
            pair_above,
            pair_branch,
            lo,
            hi,
            weight,
            np.zeros(size),
            np.arange(size) < spine,
            number,
            spine,
        )

    def _interval(self, data: np.ndarray, begin_P: np.ndarray, end_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[P] interval in the trie's order of the tokens that begin with data[begin:end]; empty where there are none."""
        child, at = np.full(len(begin_P), -1, np.int64), begin_P.copy()
        state = np.zeros(len(begin_P), np.int64)
        live = np.flatnonzero(at < end_P)
        while len(live):
            child[live] = self.trie.step(state[live], data[at[live]])
            at[live] += 1
            live = live[child[live] >= 0]
            live = live[at[live] < end_P[live]]
            state[live] = self.trie.state[child[live]]
            dead = state[live] < 0
            child[live[dead]] = -1
            live = live[~dead]
        here = child >= 0
        return np.where(here, self.trie.lo[child], 0), np.where(here, self.trie.hi[child], 0)

    @torch.inference_mode()
    def _weigh(
        self, windows_state: list[_WindowState], fresh: list[np.ndarray], out: list[torch.Tensor], logits: KeptLogits
    ) -> None:
        """What the contexts that were just evaluated say: the weights of their children, and what they add to `reach` of all
        branches below them. fresh: for each window the nodes; out: the hidden states so far."""
        step = rows_at_once(len(self.real))
        rows = []  # (window, node) of contexts with something below them
        for i, (g, nodes) in enumerate(zip(windows_state, fresh, strict=True)):
            needed = np.intersect1d(nodes, g.above)
            rows += [(i, int(n)) for n in needed]
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            states = torch.stack([out[i][n] for i, n in part])
            passage_R = np.array([windows_state[i].passage for i, _ in part])
            # a context that two windows hold has its row from the one that owns it; of the other only weights are wanted
            owned_R = np.array([windows_state[i].owned.owned[n] for i, n in part])
            local_R = np.array([windows_state[i].owned.nodes[n] for i, n in part])
            x = logits.of(passage_R, np.where(owned_R, local_R, -1), states)
            x = x[:, : len(self.real)].masked_fill(~self.real, -torch.inf)
            prob = torch.softmax(x, 1).double()
            place = {key: row for row, key in enumerate(part)}
            for i in sorted({i for i, _ in part}):
                self._spread(windows_state[i], i, prob, place)

    def _spread(self, g: _WindowState, i: int, prob: torch.Tensor, place: dict[tuple[int, int], int]) -> None:
        """One window's share of a chunk. i: its number; prob: float64 [R, Vt]; place: (window, node) -> row."""
        row_of = np.full(len(g.parent), -1, np.int64)
        for (j, node), row in place.items():
            if j == i:
                row_of[node] = row
        here = np.flatnonzero(row_of[g.above] >= 0)
        rows = row_of[g.above[here]]
        # definition 12: w(c) times the mass of the tokens that lead from c's end along the text to the branch's end or past it;
        # texts through different contexts c that do so are different texts, so their masses add up to at most F
        sums = interval_sums(prob, self.order, rows, g.lo[here], g.hi[here]).cpu().numpy()
        np.add.at(g.reach, g.branch[here], g.weight[g.above[here]] * sums)
        child = np.flatnonzero((np.arange(len(g.parent)) >= g.spine) & (row_of[g.parent] >= 0))
        token = torch.from_numpy(np.asarray(g.owned.window.token, np.int64)[child]).to(prob.device)
        # definition 4: w(child) = w(parent) p(token | parent)
        p = prob[torch.from_numpy(row_of[g.parent[child]]).to(prob.device), token].cpu().numpy()
        g.weight[child] = g.weight[g.parent[child]] * p

    def _chosen(self, g: _WindowState) -> np.ndarray:
        """Branches not evaluated yet whose parent is, and whose share may be eps or more: w(b) / reach is at least the share. All
        ancestors of such a branch are evaluated, so its `reach` is complete."""
        below = np.arange(len(g.parent)) >= g.spine
        candidate = np.flatnonzero(below & ~g.evaluated & g.evaluated[g.parent])
        return candidate[(g.weight[candidate] >= self.eps * g.reach[candidate]) & (g.weight[candidate] > 0)]

    def _round(self, g: _WindowState, nodes: np.ndarray) -> Window:
        """The next nodes of a window as a round of its own, parents by their numbers in the order of evaluation."""
        g.evaluated[nodes] = True
        g.number[nodes] = g.count + np.arange(len(nodes))
        g.count += len(nodes)
        window = g.owned.window
        token, depth = np.asarray(window.token)[nodes], np.asarray(window.depth)[nodes]
        return Window(token, g.number[g.parent[nodes]], depth)
