"""Open leaves of a group of passages split by rounds of teacher evaluations, until all are known well enough or paid out.

    hidden states ─ softmax ─▶ rows of all contexts ─ leaves, sketch ─▶ frontiers ─ rounds over the open batches ─▶ extras

In: passages with their boundaries, their hidden states, and the open batches that these came from. Out: `Boundary.skip` and
`Boundary.extra`. The frontiers say which leaves they want; here the nodes are made, each once for all students and boundaries
of a passage, evaluated, and their rows handed back. Rows are kept as sketches.

Letters: N nodes of the group, R rows of a chunk, Vt teacher ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.alignment.passage import Passage
from engine.alignment.strings import StringRules
from engine.beam.calibration import Calibration, CalibrationSums
from engine.beam.frontier import Frontier, Spending
from engine.beam.leaves import LeafFinder, Use
from engine.beam.sketch import RowSketch, Sketcher
from engine.contexts.canonical import CanonicalNext, Pending
from engine.teacher.group import Group, group_of, not_finite, pruned_bounds, rows_at_once
from engine.teacher.incremental import OpenBatch
from engine.teacher.packing import Window
from engine.teacher.softmax import Logits, Softmax, row_sums


@dataclass(slots=True)
class _Nodes:
    """What is known of one passage's nodes: those of its tree, then those made here.

    depth: of each node in its window, tokens. tokens: node made here -> (parent, token). rows: node -> sketch of its next-token
    row, where it is evaluated. child: (node, token) -> the node behind it. along: node of the tree -> tokens of its children
    there, with their probabilities. place: node -> (batch, window, number among the window's nodes). pending: for the canonical
    mask.
    """

    depth: list[int]
    tokens: dict[int, tuple[int, int]] = field(default_factory=dict)
    rows: dict[int, RowSketch] = field(default_factory=dict)
    child: dict[tuple[int, int], int] = field(default_factory=dict)
    along: dict[int, dict[int, float]] = field(default_factory=dict)
    place: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    pending: Pending | None = None


class BeamSearch:
    """Splits open leaves for the students of a run. finders, string_rules, spending: by product. real: bool [Vt], ids that are
    tokens. masked: rows are masked to canonical tokens. max_length: of the teacher's window, tokens."""

    def __init__(
        self,
        finders: dict[str, LeafFinder],
        string_rules: dict[str, StringRules],
        spending: dict[str, Spending],
        sketcher: Sketcher,
        real: torch.Tensor,
        canonical: CanonicalNext | None,
        *,
        masked: bool,
        max_length: int,
    ) -> None:
        self.finders, self.string_rules, self.spending, self.sketcher = finders, string_rules, spending, sketcher
        self.real, self.canonical, self.masked, self.max_length = real, canonical, masked, max_length
        self.calibration = Calibration()
        self._sums = CalibrationSums()

    @torch.inference_mode()
    def search(
        self, docs: list[Passage], hidden_ND: torch.Tensor, batches: list[OpenBatch], logits: Logits
    ) -> np.ndarray:
        """Sets `skip` and `extra` of the passages' boundaries. Returns the teacher evaluations that it took, int64 [passages].

        docs: one group, with `kept` as the forward pass set it; hidden_ND: of all their contexts; batches: as kept open by it.
        Sets `bad` of passages with a distribution that is not finite. Raises IdentityError when mass is made.
        """
        known = [_Nodes(d.tree.depth.tolist()) for d in docs]
        frontiers = self._begin(docs, known, hidden_ND, logits)
        for b, batch in enumerate(batches):
            for w, (i, nodes, numbers, depths) in enumerate(batch.windows):
                for node, number, depth in zip(nodes.tolist(), numbers.tolist(), depths.tolist(), strict=True):
                    known[i].place[node] = (b, w, number)
                    known[i].depth[node] = depth
        spent = np.zeros(len(docs), np.int64)
        counts = [batch.trees.sizes for batch in batches]
        turn = 0
        while True:
            for i, found in enumerate(frontiers):
                for frontier in found:
                    _follow(frontier, known[i])
            new = [self._choose(known[i], found, turn) for i, found in enumerate(frontiers)]
            if not any(new):
                break
            spent += [len(n) for n in new]
            self._evaluate(docs, known, new, batches, counts, logits)
            turn += 1
        for found in frontiers:  # what is still open
            for frontier in found:
                frontier.finish(self.calibration.mean_row)
        return spent

    @torch.inference_mode()
    def add_calibration(self, docs: list[Passage], hidden_ND: torch.Tensor, logits: Logits) -> None:
        """Add the rows along these documents' own tokens to the calibration; `finish_calibration` makes the means of all."""
        group = group_of(docs, len(self.real))
        token_of: dict[int, int] = {}
        for i, doc in enumerate(docs):
            trunk = doc.tree.trunk[doc.tree.trunk >= doc.tree.given]
            token_of |= zip((int(group.first_node[i]) + trunk).tolist(), doc.tree.token[trunk].tolist(), strict=True)
        found: list[tuple[int, RowSketch]] = []  # added only when all are there: memory may run out in between
        for chunk in self._softmax(group).run(hidden_ND, logits):
            for node, row in zip(chunk.nodes.tolist(), self.sketcher.rows(chunk.prob), strict=True):
                if node in token_of and row.total > 0:
                    found.append((token_of[node], row))
        for token, row in found:
            self._sums.add(token, row)

    def finish_calibration(self) -> None:
        """From here on open leaves are closed by the means of all rows that were added."""
        self.calibration, self._sums = self._sums.calibration(), CalibrationSums()

    def _softmax(self, group: Group) -> Softmax:
        return Softmax(group, self.real, noncanonical=self.masked, masked=self.masked)

    def _begin(
        self, docs: list[Passage], known: list[_Nodes], hidden_ND: torch.Tensor, logits: Logits
    ) -> list[list[Frontier]]:
        """One pass over the rows of all contexts: sketches, and the open leaves of every boundary."""
        group = group_of(docs, len(self.real))
        wanted: dict[str, dict[int, list]] = {
            p: {} for p in self.finders
        }  # product -> global node -> (document, k, rule)
        for product, nodes in wanted.items():
            for i, doc in enumerate(docs):
                base = int(group.first_node[i])
                for k, boundary in enumerate(doc.views[product].boundaries or ()):
                    for node, rule in boundary.leaves:
                        nodes.setdefault(base + node, []).append((i, k, rule))
        found: dict[tuple[str, int, int], list[Use]] = {}
        for chunk in self._softmax(group).run(hidden_ND, logits):
            for node, row in zip(chunk.nodes.tolist(), self.sketcher.rows(chunk.prob), strict=True):
                i = int(group.passage_of[node])
                known[i].rows[node - int(group.first_node[i])] = row
            for product, nodes in wanted.items():
                keys, uses = [], []
                for at, node in enumerate(chunk.nodes.tolist()):
                    for i, k, rule in nodes.get(node, ()):
                        keys.append((product, i, k))
                        boundary = (docs[i].views[product].boundaries or ())[k]
                        uses.append((at, node - int(group.first_node[i]), boundary, rule))
                for key, use in zip(keys, self.finders[product].find(chunk.prob, uses), strict=True):
                    found.setdefault(key, []).append(use)
        logw = group.weights.logw
        for i, doc in enumerate(docs):
            tree, document, base = doc.tree, known[i], int(group.first_node[i])
            for node in range(tree.given + 1, len(tree.token)):
                above, token = int(tree.parent[node]), int(tree.token[node])
                if node in document.rows and above in document.rows:
                    document.child[above, token] = node
                    here, before = float(logw[base + node]), float(logw[base + above])
                    document.along.setdefault(above, {})[token] = math.exp(here - before) if here > -math.inf else 0.0
        return [
            [] if doc.bad is not None else [self._front(p, i, doc, known[i], found, group) for p in self.finders]
            for i, doc in enumerate(docs)
        ]

    def _front(
        self,
        product: str,
        i: int,
        doc: Passage,
        known: _Nodes,
        found: dict[tuple[str, int, int], list[Use]],
        group: Group,
    ) -> Frontier:
        boundaries, base = doc.views[product].boundaries or [], int(group.first_node[i])
        frontier = Frontier(product, self.string_rules[product], self.spending[product], boundaries, doc.data)
        ends = doc.tree.end
        for k, boundary in enumerate(boundaries):
            uses = found.get((product, i, k), [])
            logw = [float(group.weights.logw[base + u.node]) for u in uses]
            bounds = pruned_bounds(group, i, boundary)
            top = max([*logw, *bounds], default=-math.inf)
            if top > -math.inf:
                weighted = [(u, math.exp(w - top), int(ends[u.node])) for u, w in zip(uses, logw, strict=True)]
                frontier.begin(
                    k, weighted, sum(math.exp(b - top) for b in bounds), lambda node: known.along.get(node, {})
                )
        return frontier

    def _choose(self, document: _Nodes, frontiers: list[Frontier], turn: int) -> list[int]:
        """New nodes for what the frontiers want most, each paid for by the first that asks."""
        made = []
        for frontier in frontiers:
            for leaf in frontier.choose(turn, lambda i: document.depth[i.parent] + 1 < self.max_length):
                key = (leaf.parent, leaf.token)
                if frontier.budget_left < 1:
                    break
                if key not in document.child:
                    node = document.child[key] = len(document.depth)
                    document.depth.append(document.depth[leaf.parent] + 1)
                    document.tokens[node] = key
                    made.append(node)
                    frontier.budget_left -= 1
        return made

    def _evaluate(
        self,
        docs: list[Passage],
        known: list[_Nodes],
        new: list[list[int]],
        batches: list[OpenBatch],
        counts: list[list[int]],
        logits: Logits,
    ) -> None:
        """One round: all new nodes of all passages, a batch at a time. counts: nodes of each window so far, by batch."""
        for b, batch in enumerate(batches):
            added: list[list[tuple[int, int]]] = [[] for _ in batch.windows]
            for i, nodes in enumerate(new):
                for node in nodes:
                    at, w, _ = known[i].place[known[i].tokens[node][0]]
                    if at == b:
                        known[i].place[node] = (b, w, counts[b][w] + len(added[w]))
                        added[w].append((i, node))
            if not any(added):
                continue
            windows = []
            for group in added:
                parents = [known[i].place[known[i].tokens[n][0]][2] for i, n in group]
                windows.append(
                    Window([known[i].tokens[n][1] for i, n in group], parents, [known[i].depth[n] for i, n in group])
                )
            states = torch.cat(batch.trees.add(windows))
            for w, group in enumerate(added):
                counts[b][w] += len(group)
            flat = [pair for group in added for pair in group]
            step = rows_at_once(len(self.real))
            for begin in range(0, len(flat), step):
                part = flat[begin : begin + step]
                prob = self._probabilities(logits(states[begin : begin + step]), docs, known, part)
                for (i, node), row in zip(part, self.sketcher.rows(prob), strict=True):
                    known[i].rows[node] = row

    def _probabilities(
        self, logits_RV: torch.Tensor, docs: list[Passage], known: list[_Nodes], nodes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """float [R, Vt] rows of new nodes, as the run's semantics have them (definition 13). nodes: (passage, node) of each
        row."""
        x = logits_RV[:, : len(self.real)].masked_fill(~self.real, -torch.inf)
        prob = torch.softmax(x, 1)
        if self.masked and self.canonical is not None:
            states = []
            for i, node in nodes:
                document, doc = known[i], docs[i]
                if document.pending is None:
                    document.pending = self.canonical.pending(doc.tree, doc.data)
                states.append(self.canonical.state_behind(doc.tree, document.pending, *_path(document, node)))
            self.canonical.lists(states).clear_(prob)
            left = row_sums(prob)
            prob.div_(torch.where(left > 0, left, 1.0).to(prob.dtype)[:, None])
        for (i, node), wrong in zip(nodes, torch.isnan(prob).any(1).tolist(), strict=True):
            if wrong and docs[i].bad is None:
                context, tokens = _path(known[i], node)
                reason, where = not_finite(docs[i], int(docs[i].tree.end[context]), known[i].depth[node])
                docs[i].bad = (reason, f"{where}, behind {len(tokens)} tokens that are not the text's")
        return torch.nan_to_num_(prob) if any(d.bad for d in docs) else prob


def _path(document: _Nodes, node: int) -> tuple[int, list[int]]:
    """(node of the tree, tokens from there to the node)."""
    tokens = []
    while node in document.tokens:
        node, token = document.tokens[node]
        tokens.append(token)
    return node, tokens[::-1]


def _follow(frontier: Frontier, document: _Nodes) -> None:
    """Split all leaves whose node is known, and what comes of them, for nothing."""
    queue, kept = frontier.leaves, []
    while queue:
        leaf = queue.pop()
        node = document.child.get((leaf.parent, leaf.token))
        row = None if node is None else document.rows.get(node)
        if node is None or row is None:
            kept.append(leaf)
        else:
            queue += frontier.split(leaf, row, node, document.along.get(node, {}))
    frontier.leaves = kept
