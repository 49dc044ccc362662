"""One passage seen by one student, as arrays: where its boundaries lie, which contexts and tokens reach past them, what is
pending.

In: the teacher's context tree and the student's tokens of a passage. Out: `StudentView`. What it says of a boundary is what
`Aligner` (alignment/boundaries.py) says, but for the rules: here a boundary has the number of a compiled state
(compiled/pair.py), which answers for all leaves. Boundaries for which a state does not hold are *slow*: they come with the
`Boundary` that `Aligner` makes.

Letters: K boundaries, N contexts, L leaves, C class strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engine.alignment.boundaries import Aligner
from engine.alignment.passage import HungContexts
from engine.alignment.student_view import NO_STATE, StudentView
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.folding import unfold
from engine.bpe.nfc import may_compose
from engine.bpe.segmenter import Segmenter
from engine.bpe.spelling import LONG_BYTES, Spelling
from engine.bpe.utf8 import valid_utf8_prefix
from engine.compiled.pair import CompiledPair
from engine.compiled.pending_states import HOLDS_ADDED, Pending, PendingStates
from engine.compiled.walk_kernels import find_leaves
from engine.contexts.tree import ContextTree

LONGEST_HUNG = 512
"""Bytes of what is pending behind a context that was hung off the tree; behind a longer one it has no state."""


@dataclass(eq=False)
class _Row:
    """A student's tokens of a text, and what is pending at its boundaries. own_K: bytes of the student's own string."""

    segmenter: Segmenter
    data: bytes
    ids: list[int]
    own_K: np.ndarray
    pending: Pending

    @cached_property
    def spelling(self) -> Spelling:
        """The tokens as a tree without branches."""
        return Spelling(
            self.segmenter, self.data, self.ids, list(range(-1, len(self.ids) - 1)), self.own_K[1:].tolist()
        )

    def index_of(self, byte: int) -> int | None:
        """The boundary at a byte."""
        return self._index_of.get(byte)

    @cached_property
    def _index_of(self) -> dict[int, int]:
        return {e: k for k, e in enumerate(self.own_K.tolist())}


class StudentWalk:
    """Makes views for one student; remembers pending parts and their states. Not thread-safe."""

    def __init__(self, pair: CompiledPair, aligner: Aligner) -> None:
        self.pair, self.aligner = pair, aligner
        self.segmenter = aligner.book.segmenter
        self.pending_states = PendingStates(pair, aligner.book)
        self._kept_variants: dict[tuple[int, tuple[bool, ...]], int] = {}
        self._agreed: BoundedCache[tuple[bytes, bytes, tuple[int, ...], tuple[int, ...], bool], bool] = BoundedCache(
            100_000
        )

    def view(self, tree: ContextTree, text: bytes, ids: Sequence[int], ends: Sequence[int]) -> StudentView:
        """ids [n], ends [n]: the student's tokens and their byte ends in the text. Raises BadDocument("too_long")."""
        aligner, student = self.aligner, self.aligner.student
        prefix, lead = aligner.prefix, student.prefix_bytes
        ends_K = np.concatenate([[0], np.asarray(ends, np.int64)])
        place = ends_K + len(prefix)
        at_start, at_node = self._at(tree, place)
        own_K = ends_K + len(lead)
        own_K[0] = 0  # the student's prefix lies behind its first boundary
        own_N = tree.end.astype(np.int64) + (len(lead) - len(prefix))
        pending = self.pending_states.at(lead + text, own_K, own_N.clip(0))
        K = len(place)
        state_K = pending.state_I[:K].copy()
        if lead:
            state_K[0] = self.pending_states.numbered("", lead)
        apart = self.pending_states.units_of[state_K] > 0
        row = _Row(self.segmenter, lead + text, list(ids), own_K, pending)
        self._settle_cuts(row, state_K)
        end_counts = self._check_pending(row, state_K, apart)
        if lead:  # not where the student's prefix stands alone: the empty text has no tokens
            end_counts[1:] &= ends_K[1:] > 0
        slow_K = state_K == NO_STATE
        slow = {}
        if slow_K.any():
            slow = aligner.boundaries_at(np.flatnonzero(slow_K).tolist(), tree, text, list(ids), list(ends))
            for k, boundary in slow.items():
                end_counts[k] = boundary.end_counts
        node_I = tree.given + np.argsort(tree.end[tree.given :], kind="stable")
        data = np.frombuffer(bytearray(prefix + text or b"\0"), np.uint8)
        leaf_start, leaves = _leaves(self.pair, data, node_I, tree.end, place, at_start, at_node)
        fringe_start, fringe = _rows_of(tree.places, tree.fringe_start, place)
        node_state = pending.state_I[K:]
        node_state[(own_N < 0) | (pending.doubt_I[K:] & HOLDS_ADDED > 0)] = NO_STATE
        return StudentView(
            place_K=place.astype(np.int32),
            last_K=np.array([-1, *ids], np.int32),
            begin_K=pending.begin_I[:K] - (len(lead) - len(prefix)),
            state_K=state_K,
            slow_K=slow_K,
            end_counts_K=end_counts & (np.diff(at_start) > 0),
            leaf_start=leaf_start,
            leaf_node=leaves[0],
            leaf_lo=leaves[1],
            leaf_hi=leaves[2],
            leaf_depth=leaves[3],
            at_start=at_start,
            at_node=at_node,
            fringe_start=fringe_start,
            fringe_node=tree.fringe_node[fringe],
            fringe_token=tree.fringe_token[fringe],
            node_state_N=node_state,
            node_begin_N=pending.begin_I[K:] - (len(lead) - len(prefix)),
            states=self.pending_states.states,
            slow=slow,
        )

    def hang(self, view: StudentView, tree: ContextTree, data: bytes, hung: HungContexts) -> StudentView:
        """The view of a passage to whose tree contexts were added. tree: with these; data: prefix + text.

        What is pending behind them is found from the last certain cut before the place where they leave the text (definition 5:
        what lies before it no longer counts). Where that cannot be told, the context has no state, and splits nothing.
        """
        lead, count = self.aligner.student.prefix_bytes, len(view.node_state_N)
        shift, text = len(lead) - len(self.aligner.prefix), lead + data[len(self.aligner.prefix) :]
        state, begin = np.full(len(tree.end) - count, NO_STATE, np.int32), np.zeros(len(tree.end) - count, np.int64)
        strings = hung.text.tobytes()
        for i in range(len(state)):
            node, size = count + i, int(tree.end[count + i])
            while node >= count:
                node = int(tree.parent[node])
            leaves, since, moved = int(tree.end[node]), int(view.node_begin_N[node]), int(hung.shift[i])
            if view.node_state_N[node] == NO_STATE or since < int(hung.begin[i]) or size - since > LONGEST_HUNG:
                continue
            own = text[since + shift : leaves + shift] + strings[moved + leaves : moved + size]
            if valid_utf8_prefix(own) < len(own) or (self.aligner.student.nfc and may_compose(own)):
                continue  # (lemma 22: NFC would change what lies before or behind a boundary)
            found = self.pending_states.at(own, np.array([0]), np.array([leaves - since, size - since]))
            as_before = found.state_I[1] == view.node_state_N[node] and found.begin_I[1] == 0
            if as_before and not found.doubt_I[2] & HOLDS_ADDED:
                state[i], begin[i] = found.state_I[2], since + int(found.begin_I[2])
        return replace(
            view,
            node_state_N=np.append(view.node_state_N, state),
            node_begin_N=np.append(view.node_begin_N, begin),
            states=self.pending_states.states,
        )

    def may_cut_inside(self, text: bytes) -> bool:
        """Whether what comes behind this text decides about cuts inside what is pending there. Where the text ends inside a
        character nobody says so."""
        return valid_utf8_prefix(text) == len(text) and self.pending_states.may_cut_inside(text)

    # ==== what is pending

    def _settle_cuts(self, row: _Row, state_K: np.ndarray) -> None:
        """Boundaries behind a pending part that what follows may cut inside: a state of their own, in which no token begins
        behind cuts that the student's own tokens contradict (definition 7, NONE)."""
        pending = row.pending
        for k in np.flatnonzero(self.pending_states.units_of[state_K] > 0).tolist():
            number = int(state_K[k])
            if pending.doubt_I[k] & HOLDS_ADDED or row.index_of(int(pending.begin_I[k])) is None:
                state_K[k] = NO_STATE
                continue
            state, left = self.pending_states.states[number], self.pending_states.classes(pending, k)
            keeps = tuple(self._agrees(row, k, left, cuts, seam) for cuts, seam in state.variants)
            known = self._kept_variants.get((number, keeps))
            if known is None:
                none, size = 2 * len(state.join_C), len(state.join_C)
                odd = state.cell_U >= none + 2
                opened = np.where(odd, np.append(state.odd_open, 0)[np.where(odd, state.cell_U - none - 2, 0)], 0)
                opened = np.where(odd, opened, np.where(state.cell_U < none, state.cell_U >= size, state.cell_U - none))
                gone = ~np.array(keeps)[state.variant_U]
                cell = np.where(gone, none + opened, state.cell_U).astype(np.int32)
                made = replace(state, cell_U=cell, simple=True, units=0)
                known = self._kept_variants[number, keeps] = self.pending_states.number_of(made)
            state_K[k] = known

    def _check_pending(self, row: _Row, state_K: np.ndarray, apart_K: np.ndarray) -> np.ndarray:
        """bool [K]: whether a text that ends at the boundary has the student's own tokens. Encodes what is pending, where that
        is in doubt, and takes the state from boundaries where the tokens contradict it (definition 7, NONE).

        Elsewhere both are plain: a pending part without cuts is the beginning of a pre-token, and its tokens are those of the
        merges (lemma 1), as long as no added text and no word of `ignore_merges` is in it.
        """
        counts, pending = row.pending.partial_I[: len(state_K)] == 0, row.pending  # no text ends inside a character
        # the text itself may cut inside what is pending
        doubtful = ((pending.doubt_I[: len(state_K)] > 0) | apart_K) & counts
        splitter = self.segmenter.splitter
        for k in np.flatnonzero(doubtful & (state_K != NO_STATE)).tolist():
            left = splitter.reduce(self.pending_states.classes(pending, k))
            if pending.doubt_I[k] & HOLDS_ADDED:
                # where no token is joined to what is pending, leaves that go on across the boundary are none anyway
                state = self.pending_states.states[int(state_K[k])]
                joins = bool(state.join_C.any() or state.odd_join.any())
                seams = (True, False) if joins else (True,)
                if not all(self._agrees(row, k, left, (), seam) for seam in seams):
                    state_K[k] = NO_STATE
            cuts = tuple(u for u in (splitter.pieces(left) if left else ()) if u < len(left))
            counts[k] = self._agrees(row, k, left, cuts, True)
        return counts

    def _agrees(self, row: _Row, k: int, left: str, cuts: tuple[int, ...], seam: bool) -> bool:
        """Whether what is pending at boundary k, cut like this, has the student's own tokens. left: its classes, which `cuts`
        are units of."""
        begin, end, pending = int(row.pending.begin_I[k]), int(row.own_K[k]), row.pending
        partial = row.data[end - int(pending.partial_I[k]) : end]
        first, unit = int(pending.first_I[k]), int(pending.unit_I[k])
        if self.segmenter.splitter.byte_units:
            true = tuple(unit - len(left) + c for c in cuts)
        else:
            true = unfold(self.segmenter.splitter, left, cuts, first, unit, pending.runs)
        if end - begin > LONG_BYTES:
            bounds = [int(pending.byte_of[u]) for u in true]
            return row.spelling.agrees(k - 1, begin, bounds, end - len(partial), seam)
        index, part = row.index_of(begin), row.data[begin:end]
        tokens, inside = (-1,) if index is None else tuple(row.ids[index:k]), tuple(u - first for u in true)
        known = self._agreed.get((part, partial, tokens, inside, seam))
        if known is None:
            known = self.segmenter.agrees(part, partial, inside, seam, tokens)
            self._agreed[part, partial, tokens, inside, seam] = known
        return known

    # ==== contexts

    def _at(self, tree: ContextTree, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(at_start, at_node)."""
        start, rows = _rows_of(tree.places, tree.at_start, place)
        nodes = tree.at_node[rows]
        if self.aligner.prefix and tree.end[tree.given] == 0:  # the end right after BOS: the empty text gets no prefix
            nodes, start = np.insert(nodes, 0, tree.given), start + 1
            start[0] = 0
        return start, nodes.astype(np.int32)


def _rows_of(places: np.ndarray, start: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows start[i] .. start[i + 1] of each asked place: int64 [K+1] and the rows; none for a place that is not there."""
    if not len(places):
        return np.zeros(len(asked) + 1, np.int64), np.empty(0, np.int64)
    i = np.minimum(np.searchsorted(places, asked), len(places) - 1)
    here = places[i] == asked
    begin, size = start[i].astype(np.int64), (start[i + 1] - start[i]).astype(np.int64) * here
    out = np.concatenate([[0], np.cumsum(size)])
    return out, np.repeat(begin - out[:-1], size) + np.arange(int(out[-1]))


def _leaves(
    pair: CompiledPair,
    data: np.ndarray,
    node_I: np.ndarray,
    end_N: np.ndarray,
    place_K: np.ndarray,
    at_start: np.ndarray,
    at_node: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(leaf_start, int32 [4, L]: context, lo, hi, depth)."""
    start, empty = np.zeros(len(place_K) + 1, np.int64), np.empty((4, 0), np.int32)
    given = (pair.teacher, data, node_I.astype(np.int64), end_N, place_K.astype(np.int64), at_start, at_node)
    find_leaves(*given, False, start, empty)
    start = np.cumsum(start)
    leaves = np.empty((4, int(start[-1])), np.int32)
    find_leaves(*given, True, start[:-1].copy(), leaves)
    return start, leaves
