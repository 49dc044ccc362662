"""Stage 9: hidden states of a group of documents -> rows of every product, chunk by chunk.

The lm_head runs over chunks of contexts in reading order, so that only one chunk of [R, Vt] probabilities exists. A chunk
gives, in this order: the log-probabilities of the tree's own edges (context weights), the teacher's rows, and the student
rows whose contexts are now all known. Contexts that a later boundary still needs are carried to the next chunk.

Letters: R contexts of a chunk, Vt / Vs teacher / student ids, K top_k, T positions of a product over the whole group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.boundaries import Boundary
from engine.contexts import NO_NODE, ContextTree
from engine.pushforward import Job, PushForward
from schemas.errors import IdentityError
from schemas.target import FLAG_BOUNDED, FLAG_END, FLAG_EXACT, FLAG_GIVEN, FLAG_NO_MASS, PAD_ID

_CHUNK_CELLS = 6_000_000  # R x Vt: about 26 bytes each at the peak, so 0.16 GiB, plus [R, Vs] float64 for one student
_MOST_ROWS = 512


@dataclass(slots=True)
class Prepared:
    """One document ready to be scored. sides: product -> (token ids, byte ends, boundaries or None for the teacher's own)."""

    tree: ContextTree
    sides: dict[str, tuple[list[int], list[int], list[Boundary] | None]]
    bad: tuple[str, str] | None = None  # (reason, detail) when its log-probabilities are not finite


@dataclass(slots=True)
class Rows:
    """Positions of one product over a group, in document order. Unscored ones keep these fills."""

    ids: np.ndarray
    logps: np.ndarray
    tail_logp: np.ndarray
    gold_logp: np.ndarray
    err: np.ndarray
    open_mass: np.ndarray
    excluded_mass: np.ndarray
    pruned_mass: np.ndarray
    scored: np.ndarray
    flags: np.ndarray
    start: list[int] = field(default_factory=list)  # first position of each document, and the end

    @classmethod
    def empty(cls, lengths: list[int], top_k: int) -> Rows:
        n = sum(lengths)
        return cls(
            ids=np.full((n, top_k), PAD_ID, np.int32),
            logps=np.full((n, top_k), -np.inf),
            tail_logp=np.zeros(n),
            gold_logp=np.full(n, -np.inf),
            err=np.ones(n),
            open_mass=np.zeros(n),
            excluded_mass=np.zeros(n),
            pruned_mass=np.zeros(n),
            scored=np.zeros(n, bool),
            flags=np.full(n, FLAG_GIVEN, np.uint8),
            start=[0, *np.cumsum(lengths).tolist()],
        )


@dataclass(frozen=True, slots=True)
class Emitter:
    """Everything that stays the same between groups. `students`: product -> its push-forward (teacher's own: absent)."""

    top_k: int
    real: torch.Tensor  # bool [Vt]: ids that are tokens (padding rows of the lm_head are not)
    end_ids: tuple[int, ...]
    students: dict[str, PushForward]

    def emit(self, docs: list[Prepared], hidden_ND: torch.Tensor, logits) -> dict[str, Rows]:
        """docs' nodes lie one after another in hidden_ND. logits: [R, D] -> fp32 [R, >= Vt].

        Sets `bad` on documents with non-finite log-probabilities. Raises IdentityError when mass is lost.
        """
        return _Emission(self, docs).run(hidden_ND, logits)


class _Emission:
    def __init__(self, emitter: Emitter, docs: list[Prepared]) -> None:
        self.e, self.docs = emitter, docs
        sizes = [len(d.tree.token) for d in docs]
        self.base = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.logw = np.zeros(self.base[-1])
        width = len(emitter.real)
        self.step = int(np.clip(_CHUNK_CELLS // width, 1, _MOST_ROWS))
        order = [
            self.base[i] + node
            for i, d in enumerate(docs)
            for node in d.tree.given + np.argsort(d.tree.end[d.tree.given :], kind="stable")
        ]
        self.order = np.array(order, dtype=np.int64)
        self.chunk_of = np.full(self.base[-1], -1, dtype=np.int64)
        self.chunk_of[self.order] = np.arange(len(order)) // self.step
        self.last_use = self.chunk_of.copy()
        self.doc_of = np.repeat(np.arange(len(docs)), sizes)
        self.rows: dict[str, Rows] = {}
        self.todo: dict[str, dict[int, list[tuple[int, int]]]] = {}  # product -> chunk -> (doc, k)
        for product in docs[0].sides:
            self.rows[product] = Rows.empty([self._length(d, product) for d in docs], emitter.top_k)
            self.todo[product] = self._schedule(product)
        self.edges = self._collect_edges()
        self.fringe_logp: dict[tuple[int, int], float] = {}
        self.buffer: torch.Tensor | None = None
        self.all_real = bool(emitter.real.all())

    def _length(self, doc: Prepared, product: str) -> int:
        return len(doc.sides[product][0])

    def _schedule(self, product: str) -> dict[int, list[tuple[int, int]]]:
        """Each position goes to the chunk in which its last context is known; earlier contexts live until then."""
        todo: dict[int, list[tuple[int, int]]] = {}
        for i, doc in enumerate(self.docs):
            boundaries = doc.sides[product][2]
            for k in range(self._length(doc, product)):
                if boundaries is None:
                    node = self._teacher_context(doc.tree, k)
                    nodes = [] if node == NO_NODE else [self.base[i] + node]
                else:
                    nodes = [self.base[i] + n for n in {*(n for n, _ in boundaries[k].leaves), *boundaries[k].at}]
                if nodes:
                    chunk = int(max(self.chunk_of[n] for n in nodes))
                    for n in nodes:
                        self.last_use[n] = max(self.last_use[n], chunk)
                    todo.setdefault(chunk, []).append((i, k))
        return todo

    def _teacher_context(self, tree: ContextTree, k: int) -> int:
        """The trunk context that predicts the teacher's own token k (k = n: the end)."""
        return int(tree.parent[tree.trunk[k]] if k < len(tree.trunk) else tree.trunk[-1])

    def _collect_edges(self) -> dict[int, list[tuple[int, int, int]]]:
        """chunk -> (parent, token, child or -1 for the fringe), parents in reading order."""
        edges: dict[int, list[tuple[int, int, int]]] = {}
        for i, doc in enumerate(self.docs):
            base, tree = int(self.base[i]), doc.tree
            parents, tokens = tree.parent.tolist(), tree.token.tolist()
            for node in range(tree.given + 1, len(tokens)):
                parent = base + parents[node]
                edges.setdefault(int(self.chunk_of[parent]), []).append((parent, tokens[node], base + node))
            for parent, token in set(zip(tree.fringe_node.tolist(), tree.fringe_token.tolist(), strict=True)):
                edges.setdefault(int(self.chunk_of[base + parent]), []).append((base + parent, token, -1))
        place = np.empty(self.base[-1], dtype=np.int64)
        place[self.order] = np.arange(len(self.order))
        return {chunk: sorted(found, key=lambda e: place[e[0]]) for chunk, found in edges.items()}

    @torch.inference_mode()
    def run(self, hidden_ND: torch.Tensor, logits) -> dict[str, Rows]:
        kept = np.empty(0, np.int64)
        prob = None
        for chunk in range(math.ceil(len(self.order) / self.step)):
            new = self.order[chunk * self.step : (chunk + 1) * self.step]
            fresh = self._probabilities(logits(hidden_ND[torch.from_numpy(new).to(hidden_ND.device)]), new, chunk)
            prob = fresh if prob is None or not len(kept) else torch.cat([prob, fresh])
            nodes = np.concatenate([kept, new])
            row_of = dict(zip(nodes.tolist(), range(len(nodes)), strict=True))
            for product in self.rows:
                todo = [(i, k) for i, k in self.todo[product].get(chunk, ()) if self.docs[i].bad is None]
                push = self.e.students.get(product)
                step = int(np.clip(_CHUNK_CELLS // (push.student_size if push else len(self.e.real)), 1, _MOST_ROWS))
                for begin in range(0, len(todo), step):
                    if push:
                        self._student_rows(product, todo[begin : begin + step], prob, row_of)
                    else:
                        self._teacher_rows(product, todo[begin : begin + step], prob, row_of)
            stay = np.flatnonzero(self.last_use[nodes] > chunk)
            kept, prob = nodes[stay], prob[torch.from_numpy(stay).to(prob.device)]
        return self.rows

    def _probabilities(self, logits_RV: torch.Tensor, nodes: np.ndarray, chunk: int) -> torch.Tensor:
        """float64 [R, Vt] in one buffer that every chunk reuses; notes edge log-probabilities and rows that are not finite."""
        if self.buffer is None:
            size = (min(self.step, len(self.order)), len(self.e.real))
            self.buffer = torch.empty(size, dtype=torch.float64, device=logits_RV.device)
        prob = self.buffer[: len(nodes)]
        prob.copy_(logits_RV[:, : prob.shape[1]])
        if not self.all_real:
            prob.masked_fill_(~self.e.real, -torch.inf)
        prob.sub_(prob.amax(1, keepdim=True))
        rows, values = self._edge_values(prob, nodes, chunk)
        total = prob.exp_().sum(1)
        wrong = torch.isnan(total).cpu().numpy()
        prob.div_(total[:, None])
        if wrong.any():
            prob[torch.from_numpy(np.flatnonzero(wrong)).to(prob.device)] = 0.0
            self._note_bad(nodes[wrong])
        self._weigh((values - torch.log(total)[rows]).cpu().tolist(), chunk)
        return prob

    def _note_bad(self, nodes: np.ndarray) -> None:
        for node in nodes:
            doc = self.docs[self.doc_of[node]]
            if doc.bad is None:
                local = int(node - self.base[self.doc_of[node]])
                doc.bad = (
                    "nonfinite_logprob",
                    f"the teacher's distribution after byte {doc.tree.end[local]} (depth {doc.tree.depth[local]}) is not finite",
                )

    def _edge_values(self, x: torch.Tensor, nodes: np.ndarray, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(row, x[row, token]) of the tree's edges that begin in this chunk."""
        edges = self.edges.get(chunk, [])
        row_of = dict(zip(nodes.tolist(), range(len(nodes)), strict=True))
        rows = torch.tensor([row_of[p] for p, _, _ in edges], dtype=torch.long, device=x.device)
        tokens = torch.tensor([t for _, t, _ in edges], dtype=torch.long, device=x.device)
        return rows, x[rows, tokens]

    def _weigh(self, logps: list[float], chunk: int) -> None:
        """Context weights along the tree's edges: log w(child) = log w(parent) + log p(token | parent)."""
        for (parent, token, child), logp in zip(self.edges.get(chunk, []), logps, strict=True):
            if child >= 0:
                self.logw[child] = self.logw[parent] + logp
            else:
                self.fringe_logp[parent, token] = logp

    def _teacher_rows(
        self, product: str, todo: list[tuple[int, int]], prob: torch.Tensor, row_of: dict[int, int]
    ) -> None:
        picked = [row_of[self.base[i] + self._teacher_context(self.docs[i].tree, k)] for i, k in todo]
        in_a_row = picked == list(range(picked[0], picked[0] + len(picked)))
        mass = prob[picked[0] : picked[0] + len(picked)] if in_a_row else prob[torch.tensor(picked, device=prob.device)]
        at = self._write(product, todo, mass, mass.sum(1).cpu().numpy())
        out = self.rows[product]
        out.err[at] = 0.0
        out.flags[at] = FLAG_EXACT

    def _student_rows(
        self, product: str, todo: list[tuple[int, int]], prob: torch.Tensor, row_of: dict[int, int]
    ) -> None:
        jobs = [self._job(i, (self.docs[i].sides[product][2] or [])[k], row_of) for i, k in todo]
        pushed = self.e.students[product].push(prob, jobs, product)
        alive = np.flatnonzero(pushed.valid > 0)  # a boundary that the teacher gives no mass at all stays unscored
        mass = pushed.mass
        if len(alive) < len(todo):
            for dead in np.flatnonzero(pushed.valid <= 0):
                out = self.rows[product]
                out.flags[out.start[todo[dead][0]] + todo[dead][1]] = FLAG_NO_MASS
            todo, mass = [todo[a] for a in alive], mass[torch.from_numpy(alive).to(mass.device)]
        if not todo:
            return
        at = self._write(product, todo, mass, pushed.valid[alive])
        out = self.rows[product]
        open_, pruned, decided = pushed.open[alive], pushed.pruned[alive], pushed.decided[alive]
        live = pushed.valid[alive] + pushed.excluded[alive] + pruned
        out.err[at] = (open_ + pruned) / (decided + open_ + pruned)
        out.open_mass[at] = open_ / live
        out.excluded_mass[at] = pushed.excluded[alive] / live
        out.pruned_mass[at] = pruned / live
        out.flags[at] = np.where(out.err[at] == 0.0, FLAG_EXACT, FLAG_BOUNDED)

    def _job(self, i: int, boundary: Boundary, row_of: dict[int, int]) -> Job:
        base = self.base[i]
        nodes = {*(n for n, _ in boundary.leaves), *boundary.at}
        top = max(self.logw[base + n] for n in nodes)
        weight = (
            {n: math.exp(self.logw[base + n] - top) for n in nodes} if top > -math.inf else dict.fromkeys(nodes, 0.0)
        )
        pruned = sum(math.exp(self.logw[base + n] + self.fringe_logp[base + n, t] - top) for n, t in boundary.fringe)
        return Job(
            leaves=[(row_of[base + n], weight[n], rule) for n, rule in boundary.leaves],
            at=[(row_of[base + n], weight[n]) for n in boundary.at],
            pruned=pruned,
            boundary=boundary,
            skip={row_of[base + n]: tokens for n, tokens in boundary.skip.items()},
            inner=[(row_of[base + n], weight[n], first) for n, first in boundary.inner],
        )

    def _write(self, product: str, todo: list[tuple[int, int]], mass: torch.Tensor, total: np.ndarray) -> np.ndarray:
        """Top-k, tail and gold of rows [J, V] with the given sums; returns where they went. `mass` is as before afterwards."""
        out = self.rows[product]
        at = np.array([out.start[i] + k for i, k in todo])
        gold = torch.tensor([self.docs[i].sides[product][0][k] for i, k in todo], device=mass.device)
        gold_mass = mass.gather(1, gold[:, None])[:, 0].cpu().numpy()
        k = min(self.e.top_k, mass.shape[1])
        best = torch.topk(mass, k, dim=1)
        rest = mass.scatter_(1, best.indices, 0.0).sum(1).cpu().numpy()
        mass.scatter_(1, best.indices, best.values)
        value, ids = best.values.cpu().numpy(), best.indices.cpu().numpy()
        gap = np.abs(value.sum(1) + rest - total)
        if not (gap <= 1e-6 * total).all():
            worst = int(np.argmax(gap))
            raise IdentityError(
                f"{product}: stored {value[worst].sum()!r} + tail {rest[worst]!r} != {total[worst]!r}, want equality"
            )
        with np.errstate(divide="ignore"):  # a zero is a probability too: its logarithm is -inf
            log_total = np.log(total)
            out.logps[at, :k] = np.log(value) - log_total[:, None]
            out.tail_logp[at] = np.log(rest) - log_total
            out.gold_logp[at] = np.log(gold_mass) - log_total
        out.ids[at, :k] = np.where(value > 0, ids, PAD_ID)
        out.scored[at] = True
        return at


def mark_ends(rows: Rows, docs: list[Prepared], product: str, has_end: bool) -> None:
    """Set FLAG_END on the closing row of every document."""
    if has_end:
        for i in range(len(docs)):
            rows.flags[rows.start[i + 1] - 1] |= FLAG_END
