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

from engine.alignment.passage import HungContexts
from engine.alignment.student_view import StudentView
from engine.push.compiled_push import CompiledPush, Window
from engine.push.push_arrays import NOTED, Bounds, Nodes, Stored
from engine.push.push_kernels import push
from engine.push.sums_on_device import SumsOnDevice
from engine.push.sums_on_host import Kids, SumsOnHost
from engine.targets.positions import SLACK, TargetRows
from engine.teacher.group import Group
from engine.teacher.softmax import Chunk
from schemas.errors import IdentityError
from schemas.target import FLAG_BOUNDED, FLAG_BUDGET, FLAG_EXACT, FLAG_NO_MASS

OWN_ROW, UNKNOWN = -1, -2
HORIZON_BYTES = 256
"""A leaf whose string is longer than this stays open."""


@dataclass(eq=False)
class _Passage:
    """One passage's arrays, and how far it is done. order: its evaluated contexts by end; need_K, from_K: places in that
    order, of the last and the first context that a boundary may need; place_N: int64, each context's place in it.

    inside: int64, the leaves that are contexts before their boundary, by context, and inside_start_N: int64 [N+1]. at_X: int64,
    from where on `pool` (float64) has the probabilities of such a leaf's range; OWN_ROW for other leaves, UNKNOWN before its
    context's row came."""

    nodes: Nodes
    bounds: Bounds
    order: np.ndarray
    need_K: np.ndarray
    from_K: np.ndarray
    place_N: np.ndarray
    inside: np.ndarray
    inside_start_N: np.ndarray
    at_X: np.ndarray
    pool: np.ndarray
    given: int = 0
    next_k: int = 0

    def add_inside(self, x: np.ndarray, size: np.ndarray, values: np.ndarray) -> None:
        """Keep the ranges of leaves `x`, and forget those of boundaries that are done."""
        bounds = self.bounds
        known = self.inside[(self.at_X[self.inside] >= 0) & (self.inside >= bounds.leaf_start[self.next_k])]
        kept = bounds.leaf_hi[known].astype(np.int64) - bounds.leaf_lo[known]
        self.pool = np.concatenate([self.pool[_ranges(self.at_X[known], self.at_X[known] + kept)], values])
        at = np.concatenate([kept, size])
        self.at_X[np.concatenate([known, x])] = np.cumsum(at) - at

    def check_inside(self, begin: int, end: int) -> None:
        """Raises IdentityError when the row of a leaf of boundaries begin .. end came and its range was not kept."""
        a, b = self.bounds.leaf_start[begin], self.bounds.leaf_start[end]
        lost = (self.at_X[a:b] == UNKNOWN) & (self.nodes.row_N[self.bounds.leaf_node[a:b]] >= 0)
        lost &= np.repeat(self.bounds.table_K[begin:end] >= 0, np.diff(self.bounds.leaf_start[begin : end + 1]))
        if lost.any():
            raise IdentityError(f"push-forward: {int(lost.sum())} ranges of rows that came are not there; want all")


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
        self._passages = [self._passage(i, view) for i, view in enumerate(views)]
        self._left = 0  # rows at the beginning of the window that are carried

    def _passage(self, i: int, view: StudentView) -> _Passage:
        group, first = self.group, int(self.group.first_node[i])
        last = int(group.first_node[i + 1])
        store = self.compiled.store
        number = np.array([*(store.number_of(state) for state in view.states), -1], np.int32)  # the last for NO_STATE
        table_K = np.where(view.slow_K, -1, number[view.state_K])
        table_N = number[view.node_state_N]
        evaluated = np.flatnonzero(group.evaluated[first:last])
        end_N = group.end[first:last]
        order = evaluated[np.argsort(end_N[evaluated], kind="stable")]
        ends, place = end_N[order], view.place_K
        place_in_order = np.full(last - first, len(order), np.int64)
        place_in_order[order] = np.arange(len(order))
        need = _needed(group.passages[i].hung, view, order, place_in_order, end_N)
        longest = np.concatenate([view.leaf_node, view.at_node])
        owner = np.concatenate(
            [
                np.repeat(np.arange(len(place)), np.diff(view.leaf_start)),
                np.repeat(np.arange(len(place)), np.diff(view.at_start)),
            ]
        )
        from_K = np.full(len(place), len(order), np.int64)
        np.minimum.at(from_K, owner, place_in_order[longest])
        # without an evaluated context nothing is said of a boundary: it stays unscored, as it was
        table_K[from_K == len(order)] = -1
        parent = np.where(group.parent[first:last] < 0, -1, group.parent[first:last] - first)
        kid = evaluated[parent[evaluated] >= 0]
        kid = kid[group.evaluated[first + parent[kid]]]
        kid = kid[np.lexsort((group.token[first + kid], parent[kid]))]
        kid_start = np.searchsorted(parent[kid], np.arange(last - first + 1)).astype(np.int64)
        at, hung = slice(first, last), group.passages[i].hung
        text, shift = np.frombuffer(group.passages[i].data or b"\0", np.uint8), np.zeros(last - first, np.int64)
        if hung is not None:
            shift[len(shift) - len(hung.shift) :] = hung.shift + len(text)
            text = np.concatenate([text, hung.text])
        nodes = Nodes(
            row_N=np.full(last - first, -1, np.int32),
            end_N=end_N.astype(np.int32),
            token_N=group.token[at].astype(np.int32),
            logw_N=group.weights.logw[at],
            table_N=table_N.astype(np.int32),
            begin_N=view.node_begin_N.astype(np.int32),
            kid_start=kid_start,
            kid_node=kid.astype(np.int32),
            noncanonical_N=group.weights.noncanonical[at],
            text=text.copy(),
            shift_N=shift,
        )
        positions = self.rows.start[i + 1] - self.rows.start[i]
        bounds = Bounds(
            place_K=place.astype(np.int32),
            last_K=view.last_K.astype(np.int32),
            table_K=table_K.astype(np.int32),
            leaf_start=view.leaf_start.astype(np.int64),
            leaf_node=view.leaf_node.astype(np.int32),
            leaf_lo=view.leaf_lo.astype(np.int32),
            leaf_hi=view.leaf_hi.astype(np.int32),
            leaf_depth=view.leaf_depth.astype(np.int32),
            at_start=view.at_start.astype(np.int64),
            at_node=view.at_node.astype(np.int32),
            end_counts_K=view.end_counts_K.astype(np.uint8),
            pruned_K=np.full(len(place), -np.inf),
            horizon_K=ends[np.maximum(need, 0)].astype(np.int32) if len(order) else place.astype(np.int32),
            gold_K=self.rows.gold[self.rows.start[i] : self.rows.start[i] + positions].astype(np.int64),
            lead=np.frombuffer(bytearray(store.pair.vocabulary.prefix_bytes), np.uint8),
            begin_K=view.begin_K.astype(np.int32),
        )
        of_leaf = np.repeat(np.arange(len(place)), np.diff(view.leaf_start))
        own = (view.leaf_depth == 0) & (table_N[view.leaf_node] == table_K[of_leaf])
        inside = np.flatnonzero(~own & (table_K[of_leaf] >= 0))
        inside = inside[np.argsort(view.leaf_node[inside], kind="stable")]
        starts = np.searchsorted(view.leaf_node[inside], np.arange(last - first + 1)).astype(np.int64)
        at_X = np.where(own, OWN_ROW, UNKNOWN).astype(np.int64)
        return _Passage(
            nodes,
            bounds,
            order,
            need[:positions],
            from_K[:positions],
            place_in_order,
            inside,
            starts,
            at_X,
            np.empty(0),
        )

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
            nodes.append(passage.nodes.kid_node[_ranges(first, last)])
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
            asked.append((passage, passage.inside[_ranges(first, last)]))
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
        self, i: int, passage: _Passage, window: Window, sums: SumsOnHost | SumsOnDevice
    ) -> list[tuple[int, _Passage, np.ndarray, Stored]]:
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
        for thread in range(compiled.threads):
            compiled.scratch(thread, top_k)

        def job(thread: int, start: int, stop: int) -> None:
            work, memo, parts = compiled.scratch(thread, top_k)
            while start < stop:
                done = push(
                    pair.student, tables, passage.nodes, passage.bounds, window.rows, passage.pool, passage.at_X,
                    np.int64(compiled.end_id), np.int64(start), np.int64(stop), compiled.least, pair.has_words, memo, work,
                    parts, out,
                )  # fmt: skip
                if self.leaves is None:
                    sums.add_parts(thread, passage.bounds, start, done, parts, out)
                start = done

        compiled.each(job, begin, end)
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

    def _bound_pruned(self, i: int, passage: _Passage, begin: int, end: int) -> None:
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

    def _write(self, i: int, at: np.ndarray, k: np.ndarray, passage: _Passage, out: Stored) -> None:
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


def _needed(
    hung: HungContexts | None, view: StudentView, order: np.ndarray, place_in_order: np.ndarray, end_N: np.ndarray
) -> np.ndarray:
    """int64 [K], place in `order` of the last context that each boundary may need: its own, those of the text behind its open
    leaves, and those hung off these. -1 for none."""
    place, count = view.place_K, len(end_N) - (0 if hung is None else len(hung.shift))
    own = order[order < count]  # of the text
    ends, begin = end_N[own], np.maximum.accumulate(view.node_begin_N[own]) if len(own) else own
    follow = np.minimum(
        np.searchsorted(begin, place, side="right"), np.searchsorted(ends, place + HORIZON_BYTES, side="right")
    )
    last = np.maximum(np.searchsorted(ends, place, side="right"), follow) - 1
    need = np.where(last < 0, -1, place_in_order[own[last]]) if len(own) else last
    for node in range(count, len(end_N)):
        if view.node_state_N[node] >= 0 and place_in_order[node] < len(order):
            end = int(end_N[node])
            a, b = np.searchsorted(place, [max(int(view.node_begin_N[node]), end - HORIZON_BYTES), end])
            need[a:b] = np.maximum(need[a:b], place_in_order[node])
    return need


def _ranges(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int64: begin[0] .. end[0], begin[1] .. end[1] and so on."""
    size = end - begin
    return np.repeat(begin - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))
