"""Chunks of the teacher's probabilities in, rows of a student with any other tokenizer out, by compiled functions.

What targets/beam_rows.py does one boundary at a time, for all boundaries that have compiled tables (compiled/walk.py says which
have not; these go through beam_rows.py). A boundary is pushed forward when every context that it may need has its row: its own
leaves, and those behind its open leaves up to where the student's pre-token ends or `HORIZON_BYTES` later. What a later
boundary needs of a row is carried to the next chunk.

Letters: P passages, N contexts of a passage, K boundaries of a passage, X its leaves, R rows of the window, Vt teacher ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.alignment.student_view import StudentView
from engine.push.compiled_push import CompiledPush, Window
from engine.push.passage_arrays import PassageArrays, passage_arrays, ranges
from engine.push.push_arrays import NOTED, Stored
from engine.push.push_kernels import push
from engine.push.sums_on_device import SumsOnDevice
from engine.push.sums_on_host import Kids, SumsOnHost
from engine.targets.positions import SLACK, TargetRows
from engine.teacher.group import Group
from engine.teacher.softmax import Chunk
from schemas.errors import IdentityError
from schemas.target import FLAG_BOUNDED, FLAG_BUDGET, FLAG_EXACT, FLAG_NO_MASS


@dataclass(eq=False)
class OpenLeaves:
    """Open leaves behind which no row is at hand, a few arrays for each stretch of boundaries. passage, boundary, node (in the
    passage's tree), token: int64; share: float64, of the boundary's mass. boundaries: how many have mass, by passage."""

    parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    boundaries: dict[int, int] = field(default_factory=dict)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """(passage, boundary, node, token, share)."""
        empty = (*[np.empty(0, np.int64)] * 4, np.empty(0))
        return tuple(np.concatenate(arrays) for arrays in zip(empty, *self.parts, strict=True))


class CompiledRows:
    """One product of one group. Call `take` with every chunk in order; then all its rows are written, but for those of boundaries
    that the views call slow. With `leaves` no rows are written: the open leaves are listed there."""

    def __init__(
        self,
        product: str,
        compiled: CompiledPush,
        group: Group,
        views: list[StudentView],
        rows: TargetRows,
        leaves: OpenLeaves | None = None,
    ) -> None:
        self.product, self.compiled, self.group, self.rows, self.views = product, compiled, group, rows, views
        self.leaves = leaves
        self._passages = [passage_arrays(compiled.store, group, i, view, rows) for i, view in enumerate(views)]
        self._left = 0  # rows at the beginning of the window that are carried

    def take(self, chunk: Chunk) -> None:
        """Push the boundaries that have all they need now."""
        group, compiled = self.group, self.compiled
        prob_RV, sums = chunk.prob.detach(), compiled.sums(chunk.prob.device)
        begin, end = self._left, self._left + len(chunk.nodes)
        window = compiled.window(end)
        window.number[begin:end] = chunk.nodes
        numbers = window.number[:end]
        of = group.passage_of[numbers]
        sums.add_up(prob_RV, begin, *self._asked(chunk.nodes, of[begin:]), window.rows)
        self._take_inside(prob_RV, chunk.nodes, of[begin:])
        stay, made = np.zeros(end, bool), []
        for i in np.unique(of).tolist():
            rows = np.flatnonzero(of == i)
            passage = self._passages[i]
            local = numbers[rows] - group.first_node[i]
            passage.nodes.row_N[:] = -1
            passage.nodes.row_N[local] = rows
            passage.given += int((rows >= begin).sum())
            if group.passages[i].bad is None:
                made += self._push(i, passage, window, sums)
            left = passage.from_K[passage.next_k :]
            if len(left):
                stay[rows] = passage.place_N[local] >= left.min()
        sums.finish()
        for i, passage, k, out in made:
            if self.leaves is None:
                self._write(i, self.rows.start[i] + k, k, passage, out)
            else:
                self._list(i, k, out, self.leaves)
        kept = np.flatnonzero(stay)
        for array in (window.number, *window.rows):
            array[: len(kept)] = array[kept]
        sums.keep(kept)
        self._left = len(kept)

    def _asked(self, nodes_R: np.ndarray, of_R: np.ndarray) -> tuple[np.ndarray, Kids]:
        """The table and the children of every context of a chunk."""
        counts, table_R = np.zeros(len(nodes_R), np.int64), np.full(len(nodes_R), -1, np.int32)
        nodes, tokens = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for i in np.unique(of_R).tolist():
            rows, passage = np.flatnonzero(of_R == i), self._passages[i]
            local = nodes_R[rows] - self.group.first_node[i]
            table_R[rows] = passage.nodes.table_N[local]
            first, last = passage.nodes.kid_start[local], passage.nodes.kid_start[local + 1]
            counts[rows] = last - first
            nodes.append(passage.nodes.kid_node[ranges(first, last)])
            tokens.append(passage.nodes.token_N[nodes[-1]])
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return table_R, Kids(start, np.concatenate(tokens), np.concatenate(nodes))

    def _take_inside(self, prob_RV: torch.Tensor, nodes_R: np.ndarray, of_R: np.ndarray) -> None:
        """Of the chunk's rows, the tokens that reach past a boundary behind their context: all that later boundaries need."""
        asked, rows = [], []
        for i in np.unique(of_R).tolist():
            here, passage = np.flatnonzero(of_R == i), self._passages[i]
            local = nodes_R[here] - self.group.first_node[i]
            first, last = passage.inside_start_N[local], passage.inside_start_N[local + 1]
            asked.append((passage, passage.inside[ranges(first, last)]))
            rows.append(np.repeat(here, last - first))
        lo, hi = (
            np.concatenate([getattr(passage.bounds, name)[x] for passage, x in asked]).astype(np.int64)
            for name in ("leaf_lo", "leaf_hi")
        )
        taken = self.compiled.sums(prob_RV.device).take_ranges(prob_RV, np.concatenate(rows), lo, hi)
        at = 0
        for passage, x in asked:
            size = passage.bounds.leaf_hi[x].astype(np.int64) - passage.bounds.leaf_lo[x]
            total = int(size.sum())
            passage.add_inside(x, size, taken[at : at + total])
            at += total

    @property
    def _top_k(self) -> int:
        return max(1, self.rows.wanted_tokens)

    def _push(
        self, i: int, passage: PassageArrays, window: Window, sums: SumsOnHost | SumsOnDevice
    ) -> list[tuple[int, PassageArrays, np.ndarray, Stored]]:
        """The boundaries of a passage whose rows are there: (passage's number, passage, boundaries int64, their results), once
        the sums have finished."""
        begin = end = passage.next_k
        while end < len(passage.need_K) and passage.need_K[end] < passage.given:
            end += 1
        if begin == end:
            return []
        passage.next_k = end
        compiled = self.compiled
        self._bound_pruned(i, passage, begin, end)
        passage.check_inside(begin, end)
        top_k, out = self._top_k, self._room(len(passage.need_K))
        tables, pair = compiled.store.tables(), compiled.store.pair
        for thread in range(compiled.workers.count):
            compiled.workers.scratch(thread, top_k)

        def job(thread: int, start: int, stop: int) -> None:
            work, memo, parts = compiled.workers.scratch(thread, top_k)
            while start < stop:
                done = push(
                    pair.student, tables, passage.nodes, passage.bounds, window.rows, passage.pool, passage.at_X,
                    np.int64(compiled.end_id), np.int64(start), np.int64(stop), compiled.least, pair.has_words, memo, work,
                    parts, out,
                )  # fmt: skip
                if self.leaves is None:
                    sums.add_parts(thread, passage.bounds, start, done, parts, out)
                start = done

        compiled.workers.each(job, begin, end)
        return [(i, passage, begin + np.flatnonzero(passage.bounds.table_K[begin:end] >= 0), out)]

    def _room(self, count: int) -> Stored:
        """For the results of a passage's boundaries."""
        leaves, top_k = self.leaves is not None, self._top_k
        dense = (
            (count, self.compiled.store.pair.vocabulary.size) if self.rows.wanted_tokens == 0 and not leaves else (0, 0)
        )
        best = (0 if leaves else count, top_k)
        ids, mass, of_K = np.zeros(best, np.int32), np.zeros(best), [np.zeros(count) for _ in range(9)]
        noted = (count, NOTED) if leaves else (0, 0)
        return Stored(
            ids,
            mass,
            *of_K,
            dense_KV=np.zeros(dense),  # pyright: ignore[reportCallIssue] - nine of K
            note_node=np.full(noted, -1, np.int32),
            note_token=np.full(noted, -1, np.int32),
            note_mass=np.zeros(noted),
        )

    def _list(self, i: int, k: np.ndarray, out: Stored, leaves: OpenLeaves) -> None:
        """The noted leaves of some boundaries, with their shares."""
        total = out.live[k] + out.pruned[k]
        k, total = k[total > 0], total[total > 0]
        leaves.boundaries[i] = leaves.boundaries.get(i, 0) + len(k)
        row, column = np.nonzero(out.note_node[k] >= 0)
        node, token = out.note_node[k][row, column], out.note_token[k][row, column]
        share = out.note_mass[k][row, column] / total[row]
        leaves.parts.append((np.full(len(row), i), k[row], node.astype(np.int64), token.astype(np.int64), share))

    def _bound_pruned(self, i: int, passage: PassageArrays, begin: int, end: int) -> None:
        """Log-weights that bound what was not evaluated of some boundaries (lemmas 7 and 14), nats."""
        group, view, first = self.group, self.views[i], int(self.group.first_node[i])
        pruned_K = passage.bounds.pruned_K
        a, b = int(view.fringe_start[begin]), int(view.fringe_start[end])
        owner = np.repeat(np.arange(begin, end), np.diff(view.fringe_start[begin : end + 1]))
        node, token = view.fringe_node[a:b].astype(np.int64) + first, view.fringe_token[a:b].astype(np.int64)
        known = group.chunk_of[node] >= 0
        logw = group.weights.logw[node[known]]
        logw = logw + group.weights.fringe_logp[group.fringe_index(node[known], token[known])]
        np.logaddexp.at(pruned_K, owner[known], logw)
        if group.passages[i].kept is None:
            return
        for k in range(begin, end):  # with `eps` only
            nodes = {*view.leaf_node[view.leaf_start[k] : view.leaf_start[k + 1]].tolist()}
            nodes |= {*view.at_node[view.at_start[k] : view.at_start[k + 1]].tolist()}
            nodes |= {*view.fringe_node[view.fringe_start[k] : view.fringe_start[k + 1]].tolist()}
            for gone in {int(group.top_pruned[first + n]) for n in nodes if group.chunk_of[first + n] < 0} - {-1}:
                pruned_K[k] = np.logaddexp(pruned_K[k], group.weights.logw[gone])

    def _write(self, i: int, at: np.ndarray, k: np.ndarray, passage: PassageArrays, out: Stored) -> None:
        """Store the masses of definition 8 as shares, with their checks."""
        rows = self.rows
        valid, live = out.valid[k], out.live[k]
        gap = np.abs(valid + out.excluded[k] - live)
        slack = SLACK * np.maximum(live, 1e-300)
        if not ((gap <= slack) & (valid >= 0) & (out.decided[k] >= -slack)).all():
            worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap - slack)))
            where = f"{self.product}, boundary at byte {passage.bounds.place_K[k[worst]]}"
            raise IdentityError(
                f"push-forward of {where}: valid {valid[worst]:.17g} + excluded {out.excluded[k[worst]]:.17g} != live "
                f"{live[worst]:.17g}; want equality to {SLACK}"
            )
        alive = valid > 0
        rows.flags[at[~alive]] = FLAG_NO_MASS
        at, k = at[alive], k[alive]
        if not len(at):
            return
        if rows.wanted_tokens:
            rows.write_best(self.product, at, out.ids[k], out.mass[k], out.tail[k], out.gold[k], out.valid[k])
        else:
            rows.write(self.product, at, torch.from_numpy(out.dense_KV[k]), out.valid[k])
        open_, pruned, decided = out.open[k], out.pruned[k], out.decided[k]
        total = out.valid[k] + out.excluded[k] + pruned
        rows.err[at] = (open_ + pruned) / (decided + open_ + pruned)
        rows.open_mass[at] = open_ / total
        rows.excluded_mass[at] = out.excluded[k] / total
        rows.pruned_mass[at] = pruned / total
        rows.noncanonical_mass[at] = out.noncanonical[k] / total
        rows.flags[at] = np.where(rows.err[at] == 0.0, FLAG_EXACT, FLAG_BOUNDED)
        if self.compiled.tolerance is not None:
            rows.flags[at] |= np.where(rows.err[at] > self.compiled.tolerance, FLAG_BUDGET, 0).astype(np.uint8)
