"""Chunks of the teacher's probabilities in; rows of a student that refines the teacher out, or of bytes. Nothing is ever open.

For such a student each teacher token t is a fixed sequence D(t) of student units (lemma 12; for bytes its own bytes), so that
lemma 13 gives every row as a sum. engine/alignment/refinement.py has listed, for each row k, the pairs (context c, state z): c
ends j units into the text, z = u_{j+1} .. u_k. The probability p(. | c) of the tokens whose expansion begins with z divides
among the children of z in the trie of expansions (engine/alignment/token_trie.py):

    q_k(u) is proportional to  sum over pairs (c, z) of row k of  w(c) sum over tokens t with D(t) = z u ... of p(t | c)

Pairs with z empty are *top* pairs: their context ends where the row begins. The others are *deep*. Sums over the children of the
first one or two depths of the trie (*cells*) are made for the whole vocabulary at once; deeper ones are intervals of the trie's
order and gathered flat. Values are taken out of a chunk as soon as it is there, and weighed when a row has all of its own.

Letters: R contexts of a chunk, N contexts of the group, Vt teacher ids, A children of state 0, C cells, F values of single
children, J rows written at once, n rows of the product, Vs units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.alignment.expansion import Expansion
from engine.alignment.refinement import ExactPairs
from engine.alignment.token_trie import Trie
from engine.targets.positions import SLACK, TargetRows
from engine.teacher.group import Group
from engine.teacher.softmax import Chunk, interval_sums
from schemas.errors import IdentityError
from schemas.target import FLAG_BOUNDED, FLAG_EXACT, FLAG_NO_MASS


@dataclass(frozen=True, eq=False)
class Refinement:
    """What stays the same between groups. size: Vs; end_id: the unit that ends a text, None for none.

    On the device, int64: heap_of, spill, above, order of the trie (engine/alignment/token_trie.py); top_unit [A], the units of
    state 0's children; end_ids, the teacher's ends of text; other_ids, all of its tokens that are neither text nor an end.
    """

    trie: Trie
    size: int
    end_id: int | None
    heap_of: torch.Tensor
    spill: torch.Tensor
    above: torch.Tensor
    order: torch.Tensor
    top_unit: torch.Tensor
    end_ids: torch.Tensor
    other_ids: torch.Tensor

    @classmethod
    def make(cls, trie: Trie, expansion: Expansion, end_ids: tuple[int, ...], real: np.ndarray, device) -> Refinement:
        """Tables on the device of the probabilities. real: ids of all tokens; those that are neither text nor an end of text
        (specials, tokens of no bytes) are excluded."""

        def on(values: np.ndarray | list[int]) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values, np.int64), device=device)

        others = [int(i) for i in real if expansion.lengths[i] == 0 and int(i) not in end_ids]
        tables = (trie.heap_of, trie.spill, trie.above, trie.order, trie.unit[: trie.top], list(end_ids), others)
        return cls(trie, expansion.size, expansion.end_id, *(on(table) for table in tables))


@dataclass(slots=True)
class _Values:
    """Terms of lemma 13 taken out of earlier chunks for rows that still miss a context, not weighed yet.

    row, node, unit: int64 [F], value: float64 [F]: `value` is the sum of p(t | node) over the tokens that bring `unit` next in
    `row`.
    """

    row: torch.Tensor
    node: torch.Tensor
    unit: torch.Tensor
    value: torch.Tensor

    def split(self, done: torch.Tensor) -> tuple[_Values, _Values]:
        """(those of rows that are done, the others). done: bool [rows of the product]."""
        now = done[self.row]
        return self._where(now), self._where(~now)

    def _where(self, keep: torch.Tensor) -> _Values:
        return _Values(self.row[keep], self.node[keep], self.unit[keep], self.value[keep])


class ExactRows:
    """One product of one group. Call `take` with every chunk in order; then all its rows are written.

    top_pairs: (node, row), deep_pairs: (node, row, state), int64 each, global numbers, of evaluated contexts; top_chunk,
    deep_chunk: the chunk of each pair's context. pruned_pairs: (topmost pruned context, row), each once: what lemma 14 sums
    over. last_chunk: int64 [n], the chunk with which a row has all its contexts, -1 for none. kept_top: float64 [., A] sums by
    child of state 0, of contexts that a later row still needs. waiting: terms of later rows. end_N, other_N: float64 [N], p(end
    | c), and the mass of other specials (and of tokens that are no text) after c.
    """

    def __init__(self, product: str, refinement: Refinement, group: Group, sides: list[ExactPairs], rows: TargetRows):
        self.product, self.refinement, self.group, self.rows = product, refinement, group, rows
        device = refinement.order.device
        self.top_pairs = self._pairs([(s.top_node, s.top_row) for s in sides])
        self.deep_pairs = self._pairs([(s.deep_node, s.deep_row, s.deep_state) for s in sides])
        n = rows.start[-1]
        for i, side in enumerate(sides):
            rows.flags[rows.start[i] + side.first : rows.start[i + 1]] = FLAG_NO_MASS  # until it has some
        self.pruned_pairs = self._split_pruned()
        last = np.full(n, -1, np.int64)
        chunk_of = group.chunk_of
        for node, row, *_ in (self.top_pairs, self.deep_pairs):
            np.maximum.at(last, row, chunk_of[node])
        self.last_chunk = last
        self.top_chunk, self.deep_chunk = chunk_of[self.top_pairs[0]], chunk_of[self.deep_pairs[0]]
        self.kept_top = _TopSums(torch.empty((0, refinement.trie.top), dtype=torch.float64, device=device))
        empty = torch.empty(0, dtype=torch.long, device=device)
        self.waiting = _Values(empty, empty, empty, empty.double())
        self.end_N = np.zeros(len(chunk_of))
        self.other_N = np.zeros(len(chunk_of))

    def _pairs(self, parts: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Pairs of all documents with global node and row numbers."""
        starts = [(self.group.first_node[i], self.rows.start[i]) for i in range(len(parts))]
        out = [
            np.concatenate([part[0] + base for part, (base, _) in zip(parts, starts, strict=True)]),
            np.concatenate([part[1] + row for part, (_, row) in zip(parts, starts, strict=True)]),
        ]
        out += [np.concatenate([part[i] for part in parts]) for i in range(2, len(parts[0]))]
        inside = out[1] < np.repeat([*self.rows.start[1:]], [len(p[0]) for p in parts])  # no closing row without an end
        return tuple(values[inside] for values in out)

    def _split_pruned(self) -> tuple[np.ndarray, np.ndarray]:
        """Takes pairs of pruned contexts out; returns (topmost pruned context, row) of what they could have brought, each once:
        the events below one topmost pruned context b have at most w(b) together, however many pairs they are (lemma 14)."""
        alive = self.group.chunk_of >= 0
        found = []
        for name in ("top_pairs", "deep_pairs"):
            pairs = getattr(self, name)
            out = ~alive[pairs[0]]
            found.append(np.stack([self.group.top_pruned[pairs[0][out]], pairs[1][out]]))
            setattr(self, name, tuple(values[~out] for values in pairs))
        node, row = np.unique(np.concatenate(found, axis=1), axis=1) if sum(f.shape[1] for f in found) else found[0]
        return node, row

    def take(self, chunk: Chunk) -> None:
        """Take this chunk's share of every row; write the rows that have all of theirs."""
        cells_RC, top_RA = self._cells(chunk)
        self._take_specials(chunk)
        row_of = np.full(len(self.group.chunk_of), -1, np.int64)
        row_of[chunk.nodes] = np.arange(len(chunk.nodes))
        at = np.flatnonzero(self.deep_chunk == chunk.index)
        self.waiting = self._deep_values(chunk, cells_RC, row_of, at)
        self.kept_top.add(chunk.nodes, top_RA)
        done = np.flatnonzero(self.last_chunk == chunk.index)
        if len(done):
            self._write(done)
        still = self.last_chunk[self.top_pairs[1]] > chunk.index
        self.kept_top.keep(self.top_pairs[0][still & (self.top_chunk <= chunk.index)])

    def _cells(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of each row by cell, float64 [R, C+1] (last: what is no text), and by child of state 0, float64 [R, A].

        Cells are summed in heaps of at most 16 ids first, in the precision of the probabilities, and the heaps in float64: so
        float32 sums stay accurate without a float64 copy of the chunk: beside a probability near 1 each of 15 others loses at
        most 3e-8.
        """
        trie, prob, rows = self.refinement.trie, chunk.prob, len(chunk.prob)
        heaps = torch.zeros((rows, trie.cells + 1 + len(trie.spill)), dtype=prob.dtype, device=prob.device)
        heaps.scatter_add_(1, self.refinement.heap_of[: prob.shape[1]].expand(rows, -1), prob)
        cells = heaps[:, : trie.cells + 1].double()
        cells.scatter_add_(1, self.refinement.spill.expand(rows, -1), heaps[:, trie.cells + 1 :].double())
        if trie.cells == trie.top:
            return cells, cells[:, : trie.top]
        top = cells[:, : trie.top].clone()
        return cells, top.scatter_add_(1, self.refinement.above.expand(rows, -1), cells[:, trie.top : trie.cells])

    def _take_specials(self, chunk: Chunk) -> None:
        self.end_N[chunk.nodes] = chunk.prob[:, self.refinement.end_ids].double().sum(1).cpu().numpy()
        self.other_N[chunk.nodes] = chunk.prob[:, self.refinement.other_ids].double().sum(1).cpu().numpy()

    def _deep_values(self, chunk: Chunk, cells_RC: torch.Tensor, row_of: np.ndarray, at: np.ndarray) -> _Values:
        """Everything that waits, and the terms of this chunk's deep pairs `at`: one for each child of the pair's state."""
        trie, device = self.refinement.trie, cells_RC.device
        node, row, state = (values[at] for values in self.deep_pairs)
        first, count = trie.first[state], trie.first[state + 1] - trie.first[state]
        near = first + count <= trie.cells  # all children of the state are cells, whose sums are there already
        parts = [self.waiting]
        for chosen, near_by in ((near, True), (~near, False)):
            if not chosen.any():
                continue
            child = _ranges(first[chosen], count[chosen])
            of_pair = np.repeat(np.flatnonzero(chosen), count[chosen])
            here = row_of[node[of_pair]]
            if near_by:
                value = cells_RC[torch.from_numpy(here).to(device), torch.from_numpy(child).to(device)]
            else:
                value = interval_sums(chunk.prob, self.refinement.order, here, trie.lo[child], trie.hi[child])
            parts.append(
                _Values(
                    torch.from_numpy(row[of_pair]).to(device),
                    torch.from_numpy(node[of_pair]).to(device),
                    torch.from_numpy(trie.unit[child].astype(np.int64)).to(device),
                    value,
                )
            )
        return _Values(*(torch.cat([getattr(p, name) for p in parts]) for name in ("row", "node", "unit", "value")))

    def _write(self, done: np.ndarray) -> None:
        """Sum up and write the rows `done` [J] by lemma 13, those of bad passages left out. Weights are taken relative to the
        heaviest context of each row: only their ratios count, and w(c) itself underflows in long texts."""
        device, group = self.refinement.order.device, self.group
        logw, noncanonical = group.weights.logw, group.weights.noncanonical
        docs = np.searchsorted(self.rows.start, done, side="right") - 1
        done = done[group.is_good(docs)]
        if not len(done):
            return
        position = np.full(len(self.last_chunk), -1, np.int64)  # row of the product -> its place in `done`
        position[done] = np.arange(len(done))
        is_done = torch.from_numpy(position >= 0).to(device)
        values, self.waiting = self.waiting.split(is_done)
        tops = position[self.top_pairs[1]] >= 0
        top_node, top_at = self.top_pairs[0][tops], position[self.top_pairs[1][tops]]
        deeps = position[self.deep_pairs[1]] >= 0
        highest = np.full(len(done), -np.inf)
        np.maximum.at(highest, top_at, logw[top_node])
        np.maximum.at(highest, position[self.deep_pairs[1][deeps]], logw[self.deep_pairs[0][deeps]])
        pruned_at = position[self.pruned_pairs[1]]
        here = pruned_at >= 0
        np.maximum.at(highest, pruned_at[here], logw[self.pruned_pairs[0][here]])
        highest[highest == -np.inf] = 0.0  # no context has weight: no row
        # top pairs: j = k, so every child of state 0 is a next unit
        weight = np.exp(logw[top_node] - highest[top_at])
        mass = torch.zeros((len(done), self.refinement.size), dtype=torch.float64, device=device)
        by_child = torch.zeros((len(done), self.refinement.trie.top), dtype=torch.float64, device=device)
        part = self.kept_top.rows(top_node) * torch.from_numpy(weight).to(device)[:, None]
        by_child.index_add_(0, torch.from_numpy(top_at).to(device), part)
        mass[:, self.refinement.top_unit] = by_child
        # deep pairs: the token begins before the row's place and goes on with z and then the next unit
        where = torch.from_numpy(position).to(device)[values.row]
        relative = torch.from_numpy(logw).to(device)[values.node] - torch.from_numpy(highest).to(device)[where]
        share = torch.exp(relative) * values.value
        mass.view(-1).index_add_(0, where * self.refinement.size + values.unit, share)
        total = by_child.sum(1).cpu().numpy() + np.bincount(where.cpu(), share.cpu(), len(done))
        # specials come after contexts that end where the row begins: the end of the text is a unit, others are excluded
        end = np.bincount(top_at, weight * self.end_N[top_node], len(done))
        excluded = np.bincount(top_at, weight * self.other_N[top_node], len(done))
        if self.refinement.end_id is None:
            excluded += end
        else:
            mass[:, self.refinement.end_id] += torch.from_numpy(end).to(device)
            total += end
        self._check(done, mass, total, weight, top_node, top_at)
        bound = np.zeros(len(done))  # R of lemma 14
        np.add.at(bound, pruned_at[here], np.exp(logw[self.pruned_pairs[0][here]] - highest[pruned_at[here]]))
        own = np.bincount(top_at, weight * noncanonical[top_node], len(done))
        self._store(done, mass, total, excluded, bound, own)

    def _check(self, done, mass, total, weight, top_node, top_at) -> None:
        """All mass of the contexts at a row's boundary is in it: text, end, and other specials sum to their weights."""
        lost = np.abs(mass.sum(1).cpu().numpy() - total)
        kept = self.kept_top.rows(top_node).sum(1).cpu().numpy() + self.end_N[top_node] + self.other_N[top_node]
        gap = np.where(weight > 0, np.abs(kept - np.round(kept)), 0.0)  # rows sum to 1, or are 0 (bad, masked away)
        if not (lost <= SLACK * np.maximum(total, 1e-300)).all() or not (gap <= SLACK).all():
            raise IdentityError(
                f"{self.product}: a context's probabilities sum to {float(kept[int(np.argmax(gap))])!r}, or a row lost "
                f"{float(lost.max())!r} of its mass; want 1 and 0 within {SLACK}"
            )

    def _store(self, done, mass, total, excluded, bound, noncanonical) -> None:
        """Lemma 14: err = R / (A + R), with A the mass that is there and R the bound of what was pruned. All [J], relative to the
        heaviest context of each row; mass: [J, Vs]."""
        fine = total > 0
        if not fine.any():
            return
        at = done[fine]
        rows = mass if fine.all() else mass[torch.from_numpy(fine).to(mass.device)]
        self.rows.write(self.product, at, rows, total[fine])
        live = total[fine] + excluded[fine] + bound[fine]
        self.rows.err[at] = bound[fine] / (total[fine] + bound[fine])
        self.rows.excluded_mass[at] = excluded[fine] / live
        self.rows.pruned_mass[at] = bound[fine] / live
        self.rows.noncanonical_mass[at] = noncanonical[fine] / live
        self.rows.flags[at] = np.where(bound[fine] > 0, FLAG_BOUNDED, FLAG_EXACT)


class _TopSums:
    """Sums by child of state 0, float64 [., A], of contexts that a later row still needs. nodes: global numbers."""

    def __init__(self, empty: torch.Tensor) -> None:
        self.nodes, self.values = np.empty(0, np.int64), empty

    def add(self, nodes: np.ndarray, values: torch.Tensor) -> None:
        self.nodes = np.concatenate([self.nodes, nodes])
        self.values = torch.cat([self.values, values]) if len(self.values) else values

    def rows(self, nodes: np.ndarray) -> torch.Tensor:
        by = np.argsort(self.nodes)
        at = by[np.searchsorted(self.nodes[by], nodes)]
        return self.values[torch.from_numpy(at).to(self.values.device)]

    def keep(self, nodes: np.ndarray) -> None:
        at = np.flatnonzero(np.isin(self.nodes, nodes))
        self.nodes, self.values = self.nodes[at], self.values[torch.from_numpy(at).to(self.values.device)]


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """first[0], first[0]+1, .. (count[0] of them), first[1], ..."""
    return np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
