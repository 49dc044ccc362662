"""One passage seen by one student, as arrays: where its boundaries lie, which contexts and tokens reach past them, what is
pending.

In: the teacher's context tree and the student's tokens of a passage. Out: `StudentView`. What it says of a boundary is what
`Aligner` (alignment/boundaries.py) says, but for the rules: here a boundary has the number of a compiled state
(compiled/pair.py), which answers for all leaves. Boundaries for which a state does not hold are *slow*: they come with the
`Boundary` that `Aligner` makes.

Letters: K boundaries, N contexts, L leaves, C class strings.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from engine.alignment.boundaries import Aligner
from engine.alignment.student_view import NO_STATE, StudentView
from engine.bpe.bounded_cache import BoundedCache
from engine.bpe.pending import cut_text
from engine.compiled.pair import CompiledPair, State
from engine.compiled.walk_kernels import find_leaves
from engine.contexts.tree import ContextTree

_RUN = 4
"""Units of one class side by side that a pending part is told by: no pattern of the known dialects counts further."""


class StudentWalk:
    """Makes views for one student; remembers states by class strings. Not thread-safe."""

    def __init__(self, pair: CompiledPair, aligner: Aligner) -> None:
        self.pair, self.aligner = pair, aligner
        self.segmenter = aligner.book.segmenter
        self.states: list[State] = []
        self._number: dict[int, int] = {}
        self._of_left: BoundedCache[tuple[str, bytes], int] = BoundedCache(200_000)
        self._ends_whole: BoundedCache[str, bool] = BoundedCache(200_000)

    def view(self, tree: ContextTree, text: bytes, ids: Sequence[int], ends: Sequence[int]) -> StudentView:
        """ids [n], ends [n]: the student's tokens and their byte ends in the text. Raises BadDocument("too_long")."""
        aligner, student = self.aligner, self.aligner.student
        prefix, own_prefix = aligner.prefix, student.prefix_bytes
        place = np.concatenate([[0], np.asarray(ends, np.int64)]) + len(prefix)
        shift = len(own_prefix) - len(prefix)  # from the teacher's bytes to the student's
        state_K, node_state, node_begin, end_counts = self._states(tree, text, ids, place + shift, shift)
        at_start, at_node, empty = self._at(tree, place)
        end_counts &= ~empty
        if len(ids) and len(own_prefix):  # not where the student's prefix stands alone: the empty text has no tokens
            end_counts[1:] &= np.asarray(ends) > 0
        slow_K = state_K == NO_STATE
        node_I = tree.given + np.argsort(tree.end[tree.given :], kind="stable")
        data = np.frombuffer(bytearray(prefix + text or b"\0"), np.uint8)
        leaf_start, leaves = _leaves(self.pair, data, node_I, tree.end, place, at_start, at_node)
        fringe_start, fringe = _rows_of(tree.places, tree.fringe_start, place)
        slow = {}
        if slow_K.any():
            slow = aligner.boundaries_at(np.flatnonzero(slow_K).tolist(), tree, text, list(ids), list(ends))
            for k, boundary in slow.items():
                end_counts[k] = boundary.end_counts
        return StudentView(
            place_K=place.astype(np.int32),
            last_K=np.array([-1, *ids], np.int32),
            state_K=state_K,
            slow_K=slow_K,
            end_counts_K=end_counts,
            leaf_start=leaf_start,
            leaf_node=leaves[:, 0].copy(),
            leaf_lo=leaves[:, 1].copy(),
            leaf_hi=leaves[:, 2].copy(),
            leaf_depth=leaves[:, 3].copy(),
            at_start=at_start,
            at_node=at_node,
            fringe_start=fringe_start,
            fringe_node=tree.fringe_node[fringe],
            fringe_token=tree.fringe_token[fringe],
            node_state_N=node_state,
            node_begin_N=node_begin,
            states=self.states,
            slow=slow,
        )

    def _states(
        self, tree: ContextTree, text: bytes, ids: Sequence[int], own_K: np.ndarray, shift: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(state_K, node_state_N, node_begin_N, end_counts_K). own_K: the boundaries as bytes of the student's own string."""
        splitter, data = self.segmenter.splitter, self.aligner.student.prefix_bytes + text
        cut = cut_text(splitter, data)
        own_N = tree.end.astype(np.int64) + shift
        asked = np.unique(np.concatenate([own_K, own_N[own_N >= 0]]))
        pendings = cut.pendings(asked)
        state, begin, alone = (
            np.full(len(asked), NO_STATE, np.int32),
            np.zeros(len(asked), np.int64),
            np.ones(len(asked), bool),
        )
        inside = cut.byte_of[cut.unit_at[asked]] != asked
        if splitter.byte_units and len(data):
            raw = np.frombuffer(data + b"\0", np.uint8)
            inside = inside | ((raw[asked] & 0xC0) == 0x80) & (asked < len(data))
        for i, (start, unit, first) in enumerate(pendings):
            begin[i] = first
            if inside[i]:
                alone[i] = False
                continue
            left = cut.units[start:unit]
            state[i] = self._state_of(left, data[first : int(asked[i])])
            alone[i] = self._whole(left)
        at_K, at_N = np.searchsorted(asked, own_K), np.searchsorted(asked, own_N.clip(0))
        state_K, end_counts = state[at_K], alone[at_K]
        lead = self.aligner.student.prefix_bytes
        if lead:  # at the very start the prefix is still to come
            state_K[0] = self._numbered("", lead)
        node_state = np.where(own_N >= 0, state[at_N], NO_STATE).astype(np.int32)
        if self.pair.has_words or splitter.added or not end_counts.all():
            self._check_ends(cut, data, ids, own_K, end_counts, pendings, at_K)
        return state_K, node_state, begin[at_N] - shift, end_counts

    def _state_of(self, left: str, pending: bytes) -> int:
        """Number of the state, NO_STATE where the slow rules are needed."""
        if pending and self.pair.has_words and self._begins_word(pending):
            return NO_STATE
        reduced = self.segmenter.splitter.reduce(left)
        known = self._of_left.get((reduced, b""))
        if known is None:
            known = self._of_left[reduced, b""] = self._numbered(_without_runs(reduced), b"")
        return known

    def _begins_word(self, pending: bytes) -> bool:
        words = self.segmenter.whole_words  # sorted
        at = bisect.bisect_left(words, pending)
        return at < len(words) and words[at].startswith(pending)

    def _numbered(self, left: str, lead: bytes) -> int:
        state = self.pair.state(left, lead)
        if not state.simple:
            return NO_STATE
        number = self._number.get(id(state))
        if number is None:
            number = self._number[id(state)] = len(self.states)
            self.states.append(state)
        return number

    def _whole(self, left: str) -> bool:
        """Whether a text that ends here has its last pre-token begin where the pending part does."""
        known = self._ends_whole.get(left)
        if known is None:
            units = self.segmenter.splitter.pieces(left) if left else ()
            known = self._ends_whole[left] = all(u >= len(left) for u in units)
        return known

    def _check_ends(self, cut, data, ids, own_K, end_counts, pendings, at_K) -> None:
        """Whether a text may end at each boundary, by encoding what is pending, where that is not plain."""
        splitter = self.segmenter.splitter
        index_of = {int(e): k for k, e in enumerate(own_K.tolist())}
        own_start = {0: 0, **{e: k for e, k in index_of.items()}}
        for k, place in enumerate(own_K.tolist()):
            start, unit, first = pendings[at_K[k]]
            if int(cut.byte_of[unit]) != place:
                end_counts[k] = False
                continue
            left, pending = cut.units[start:unit], data[first:place]
            if end_counts[k] and not self.pair.has_words and not splitter.added:
                continue
            tokens = tuple(ids[own_start[first] : k]) if first in own_start else (-1,)
            cuts = tuple(u for u in (splitter.pieces(left) if left else ()) if u < len(left))
            end_counts[k] = self.segmenter.agrees(pending, b"", cuts, True, tokens, units=len(left))

    def _at(self, tree: ContextTree, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(at_start, at_node, whether there is none)."""
        start, rows = _rows_of(tree.places, tree.at_start, place)
        nodes = tree.at_node[rows]
        if self.aligner.prefix and tree.end[tree.given] == 0:  # the end right after BOS: the empty text gets no prefix
            nodes, start = np.insert(nodes, 0, tree.given), start + 1
            start[0] = 0
        return start, nodes.astype(np.int32), np.diff(start) == 0


def _without_runs(left: str) -> str:
    """The class string with at most `_RUN` of one class side by side."""
    out: list[str] = []
    for unit in left:
        if len(out) < _RUN or any(other != unit for other in out[-_RUN:]):
            out.append(unit)
    return "".join(out)


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
    """(leaf_start, int32 [L, 4])."""
    start, empty = np.zeros(len(place_K) + 1, np.int64), np.empty((0, 4), np.int32)
    given = (pair.teacher, data, node_I.astype(np.int64), end_N, place_K.astype(np.int64), at_start, at_node)
    find_leaves(*given, False, start, empty)
    start = np.cumsum(start)
    leaves = np.empty((int(start[-1]), 4), np.int32)
    find_leaves(*given, True, start[:-1].copy(), leaves)
    return start, leaves
