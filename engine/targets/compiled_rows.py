"""Chunks of the teacher's probabilities in, rows of a student with any other tokenizer out, by compiled functions.

What targets/beam_rows.py does one boundary at a time, for all boundaries that have compiled tables (compiled/walk.py says which
have not; these go through beam_rows.py). A boundary is pushed forward when every context that it may need has its row: its own
leaves, and those behind its open leaves up to where the student's pre-token ends or `HORIZON_BYTES` later. Rows that a later
boundary needs are carried to the next chunk.

Letters: P passages, N contexts of a passage, K boundaries of a passage, R rows of the window, Vt teacher ids.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.alignment.student_view import StudentView
from engine.bpe.kernels import Memo, new_memo
from engine.targets.positions import SLACK, TargetRows
from engine.targets.push_arrays import Bounds, Nodes, Stored, Sums, Work, new_work
from engine.targets.push_kernels import push
from engine.targets.push_tables import MOST_ODD, TableStore
from engine.targets.row_kernels import add_up_rows
from engine.teacher.group import Group
from engine.teacher.softmax import Chunk
from schemas.errors import IdentityError
from schemas.target import FLAG_BOUNDED, FLAG_BUDGET, FLAG_EXACT, FLAG_NO_MASS

HORIZON_BYTES = 256
"""A leaf whose string is longer than this stays open."""
LEAST_SHARE = 1e-4
"""Tokens below this share of a boundary are not asked one by one when a leaf is split."""
MOST_HEAVY = 2048
"""Tokens of one row that are kept one by one at most; the others, the later ids, count by their cells."""


@dataclass(frozen=True, eq=False)
class Window:
    """The contexts at hand: global numbers int64 [R], probabilities [R, Vt], and their sums."""

    number: np.ndarray
    prob: np.ndarray
    sums: Sums


@dataclass(eq=False)
class CompiledPush:
    """One student's part of the push-forward that stays the same between groups.

    end_ids, other_ids: the teacher's ids that end a text, and its other specials. tolerance: width that the beam was to reach,
    None where nothing is spent on it. least: as LEAST_SHARE; 0 asks for every token. Used by one thread at a time; it
    hands slices of boundaries to `threads` of its own.
    """

    store: TableStore
    end_ids: np.ndarray
    other_ids: np.ndarray
    tolerance: float | None = None
    least: float = LEAST_SHARE
    threads: int = field(default_factory=lambda: torch.get_num_threads())
    _scratch: list[tuple[Work, Memo, np.ndarray]] = field(default_factory=list, repr=False)
    _window: Window | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.threads = max(1, min(self.threads, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(self.threads)
        end = self.store.pair.vocabulary.eos_id
        self.end_id = -1 if end is None else end
        self.special_ids = np.concatenate([self.end_ids, self.other_ids]).astype(np.int64)

    @property
    def most_heavy(self) -> int:
        return self.store.width if self.least == 0 else min(MOST_HEAVY, self.store.width)

    def scratch(self, thread: int, top_k: int) -> tuple[Work, Memo, np.ndarray]:
        """Of one thread; grows with top_k."""
        pair = self.store.pair
        while len(self._scratch) <= thread or len(self._scratch[thread][0].heap_value) <= top_k:
            made = (
                new_work(len(pair.columns), pair.vocabulary.size, top_k),
                new_memo(pair.vocabulary.size, answers=1 << 18, listed=1 << 21),
                np.zeros(self.store.cells),
            )
            self._scratch[thread : thread + 1] = [made]
        return self._scratch[thread]

    def window(self, rows: int, dtype: np.dtype) -> Window:
        """Room for some rows; what it held before stays."""
        old = self._window
        if old is None or len(old.number) < rows or old.prob.dtype != dtype:
            size, most = len(self.store.pair.columns), self.most_heavy
            shapes = (size, size, 2, MOST_ODD, 5, None, None, most, most, None)
            types = (dtype, dtype, *[np.float64] * 5, *[np.int32] * 3)
            sums = [np.zeros(rows if n is None else (rows, n), kind) for n, kind in zip(shapes, types, strict=True)]
            made = Window(np.zeros(rows, np.int64), np.zeros((rows, self.store.width), dtype), Sums(*sums))
            if old is not None and old.prob.dtype == dtype:
                for to, of in zip((made.number, made.prob, *made.sums), (old.number, old.prob, *old.sums), strict=True):
                    to[: len(of)] = of
            self._window = made
        assert self._window is not None
        return self._window

    def each(self, job, begin: int, end: int) -> None:
        """job(thread, from, to) for slices of begin .. end, side by side."""
        cuts = np.linspace(begin, end, self.threads + 1).astype(int).tolist()
        slices = [(i, a, b) for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)) if a < b]
        if len(slices) == 1:
            job(*slices[0])
            return
        for done in [self._pool.submit(job, *one) for one in slices]:
            done.result()


@dataclass(eq=False)
class _Passage:
    """One passage's arrays, and how far it is done. order: its evaluated contexts by end; need_K, from_K: places in that
    order, of the last and the first context that a boundary may need; place_N: int64, each context's place in it."""

    nodes: Nodes
    bounds: Bounds
    order: np.ndarray
    need_K: np.ndarray
    from_K: np.ndarray
    place_N: np.ndarray
    given: int = 0
    next_k: int = 0


class CompiledRows:
    """One product of one group. Call `take` with every chunk in order; then all its rows are written, but for those of boundaries
    that the views call slow."""

    def __init__(
        self, product: str, compiled: CompiledPush, group: Group, views: list[StudentView], rows: TargetRows
    ) -> None:
        self.product, self.compiled, self.group, self.rows, self.views = product, compiled, group, rows, views
        self._passages = [self._passage(i, view) for i, view in enumerate(views)]
        self._left = 0  # rows at the beginning of the window that are carried

    def _passage(self, i: int, view: StudentView) -> _Passage:
        group, first = self.group, int(self.group.first_node[i])
        last = int(group.first_node[i + 1])
        tree, store = group.passages[i].tree, self.compiled.store
        number = np.array([store.number_of(state) for state in view.states], np.int32)
        table_K = np.where(view.slow_K | (view.state_K < 0), -1, number[view.state_K])
        table_N = np.where(view.node_state_N < 0, -1, number[view.node_state_N])
        evaluated = np.flatnonzero(group.evaluated[first:last])
        end_N = group.end[first:last]
        order = evaluated[np.argsort(end_N[evaluated], kind="stable")]
        begin = np.maximum.accumulate(view.node_begin_N[order]) if len(order) else order
        ends = end_N[order]
        place = view.place_K
        own = np.searchsorted(ends, place, side="right")
        follow = np.minimum(
            np.searchsorted(begin, place, side="right"), np.searchsorted(ends, place + HORIZON_BYTES, side="right")
        )
        need = np.maximum(own, follow) - 1
        place_in_order = np.full(last - first, len(order), np.int64)
        place_in_order[order] = np.arange(len(order))
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
        at = slice(first, last)
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
            text=np.frombuffer(group.passages[i].data or b"\0", np.uint8).copy(),
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
        )
        del tree
        return _Passage(nodes, bounds, order, need[:positions], from_K[:positions], place_in_order)

    def take(self, chunk: Chunk) -> None:
        """Push the boundaries that have all they need now."""
        group = self.group
        prob_RV = chunk.prob.detach().cpu().numpy()
        window = self.compiled.window(self._left + len(chunk.nodes), prob_RV.dtype)
        begin, end = self._left, self._left + len(chunk.nodes)
        window.number[begin:end] = chunk.nodes
        window.prob[begin:end] = prob_RV
        self._add_up(window, begin, end)
        numbers = window.number[:end]
        of = group.passage_of[numbers]
        stay = np.zeros(end, bool)
        for i in np.unique(of).tolist():
            rows = np.flatnonzero(of == i)
            passage = self._passages[i]
            local = numbers[rows] - group.first_node[i]
            passage.nodes.row_N[:] = -1
            passage.nodes.row_N[local] = rows
            passage.given += int((rows >= begin).sum())
            if group.passages[i].bad is None:
                self._push(i, passage, window)
            left = passage.from_K[passage.next_k :]
            if len(left):
                stay[rows] = passage.place_N[local] >= left.min()
        kept = np.flatnonzero(stay)
        for array in (window.number, window.prob, *window.sums):
            array[: len(kept)] = array[kept]
        self._left = len(kept)

    def _add_up(self, window: Window, begin: int, end: int) -> None:
        """Sums of new rows by cells."""
        compiled, group, numbers = self.compiled, self.group, window.number
        of = group.passage_of[numbers[begin:end]]
        counts = np.zeros(end, np.int64)
        table_R = np.full(end, -1, np.int32)
        kid_lists, kid_tokens = [], []
        for i in np.unique(of).tolist():
            rows, passage = begin + np.flatnonzero(of == i), self._passages[i]
            local = numbers[rows] - group.first_node[i]
            table_R[rows] = passage.nodes.table_N[local]
            first, last = passage.nodes.kid_start[local], passage.nodes.kid_start[local + 1]
            counts[rows] = last - first
            kids = passage.nodes.kid_node[_ranges(first, last)]
            kid_lists.append(kids)
            kid_tokens.append(passage.nodes.token_N[kids])
        kid_start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        kid_node = np.concatenate([np.empty(0, np.int32), *kid_lists])
        kid_token = np.concatenate([np.empty(0, np.int32), *kid_tokens])
        tables, top_k = compiled.store.tables(), self._top_k
        for thread in range(compiled.threads):
            compiled.scratch(thread, top_k)

        def job(thread: int, start: int, stop: int) -> None:
            _, _, cells = compiled.scratch(thread, top_k)
            add_up_rows(
                tables, window.prob, np.int64(start), np.int64(stop), table_R, compiled.special_ids, kid_start, kid_token,
                kid_node, compiled.least, cells, window.sums,
            )  # fmt: skip

        compiled.each(job, begin, end)

    @property
    def _top_k(self) -> int:
        return max(1, self.rows.wanted_tokens)

    def _push(self, i: int, passage: _Passage, window: Window) -> None:
        begin = end = passage.next_k
        while end < len(passage.need_K) and passage.need_K[end] < passage.given:
            end += 1
        if begin == end:
            return
        passage.next_k = end
        compiled, rows = self.compiled, self.rows
        self._bound_pruned(i, passage, begin, end)
        count, top_k, dense = len(passage.need_K), self._top_k, self.rows.wanted_tokens == 0
        of_K = [np.zeros(count) for _ in range(9)]
        room = (count, compiled.store.pair.vocabulary.size) if dense else (0, 0)
        ids, mass = np.zeros((count, top_k), np.int32), np.zeros((count, top_k))
        out = Stored(ids, mass, *of_K, dense_KV=np.zeros(room))  # pyright: ignore[reportCallIssue] - nine of K
        tables, pair = compiled.store.tables(), compiled.store.pair

        def job(thread: int, start: int, stop: int) -> None:
            work, memo, _ = compiled.scratch(thread, top_k)
            push(
                pair.student, tables, passage.nodes, passage.bounds, window.prob, window.sums, compiled.end_ids,
                compiled.other_ids, np.int64(compiled.end_id), np.int64(start), np.int64(stop), compiled.least,
                pair.has_words, memo, work, out,
            )  # fmt: skip

        compiled.each(job, begin, end)
        chosen = begin + np.flatnonzero(passage.bounds.table_K[begin:end] >= 0)
        self._write(i, rows.start[i] + chosen, chosen, passage, out)

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


def _ranges(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int64: begin[0] .. end[0], begin[1] .. end[1] and so on."""
    size = end - begin
    return np.repeat(begin - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))
