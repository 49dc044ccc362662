"""All expansions as one trie: the teacher tokens whose expansion begins with given student tokens are an interval there.

A *state* is a sequence z of student tokens that some expansion D(t) goes beyond; state 0 is the empty sequence. A *child*
of z is a next unit u; its interval [lo, hi) in `order` holds the tokens whose expansion begins with z u. The exact
regimes ask, of a context and a state, how the context's probability divides among the children of the state.

Letters: V teacher ids, m tokens with an expansion, M states, C children in all (breadth first, those of one state side
by side), A the first A children are those of state 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.alignment.expansion import Expansion

_MOST_CELLS = 16384
_HEAP = 16


@dataclass(frozen=True, eq=False)
class Trie:
    """order: int64 [m] teacher ids in the order of their expansions.

    first: int64 [M+1], children of state z are first[z]:first[z+1].
    unit, state: int32 [C]: the unit of a child, and the state that it leads to (-1: no expansion goes on).
    lo, hi: int64 [C], its interval. depth: int32 [M], length of z.
    cells: number of children (all of the first one or two depths) that every probability row is summed to at once.
    cell_of: int64 [V], the cell of each teacher id; `cells` for ids without an expansion. above: int64 [cells - A], for
    each cell of depth two its parent among the first A.
    heap_of: int64 [V], cells cut into heaps of at most 16 ids, so that sums of float32 stay accurate; heap i is of cell i
    for i <= cells, heap cells + 1 + j of cell spill[j].
    """

    order: np.ndarray
    first: np.ndarray
    unit: np.ndarray
    state: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    depth: np.ndarray
    cells: int
    cell_of: np.ndarray
    above: np.ndarray
    heap_of: np.ndarray
    spill: np.ndarray
    _key: np.ndarray
    _base: int

    @property
    def top(self) -> int:
        """A: the number of children of state 0."""
        return int(self.first[1])

    def step(self, state_N: np.ndarray, unit_N: np.ndarray) -> np.ndarray:
        """int64 [N]: the child of each state by each unit, -1 where no expansion goes that way."""
        key = state_N.astype(np.int64) * self._base + unit_N
        at = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
        return np.where(self._key[at] == key, at, -1)


def build_trie(expansion: Expansion) -> Trie:
    """O(total length of the expansions), level by level. Raises ValueError when no token has an expansion."""
    lengths, start = expansion.lengths, expansion.start
    has = np.flatnonzero(lengths)
    if not len(has):
        raise ValueError("no teacher token has an expansion")
    big = expansion.unit.astype(">u4").tobytes()
    order = np.array(sorted(has.tolist(), key=lambda t: big[4 * start[t] : 4 * start[t + 1]]), dtype=np.int64)
    length, begin = lengths[order], start[order]
    state_of = np.zeros(len(order), np.int64)  # of each token, the state it passes through at this depth
    cell_at = np.full(len(order), -1, np.int64)
    units, states, los, his, parents, depths = [], [], [], [], [], [0]
    made, children, sizes = 1, 0, []
    rows = np.arange(len(order))
    level = 0
    while len(rows):
        unit = expansion.unit[begin[rows] + level]
        new = np.ones(len(rows), bool)
        new[1:] = (state_of[rows][1:] != state_of[rows][:-1]) | (unit[1:] != unit[:-1])
        child = np.cumsum(new) - 1
        heads = np.flatnonzero(new)
        ends = np.append(heads[1:], len(rows)) - 1
        goes_on = length[rows] > level + 1
        deeper = np.zeros(len(heads), bool)
        np.logical_or.at(deeper, child, goes_on)
        next_state = np.full(len(heads), -1, np.int64)
        next_state[deeper] = made + np.arange(deeper.sum())
        units.append(unit[heads])
        states.append(next_state)
        los.append(rows[heads])
        his.append(rows[ends] + 1)
        parents.append(state_of[rows][heads])
        depths += [level + 1] * int(deeper.sum())
        cell_at_level = children + child
        if level == 0 or (level == 1 and children + len(heads) <= _MOST_CELLS):
            cell_at[rows] = cell_at_level
            sizes.append(len(heads))
        made += int(deeper.sum())
        children += len(heads)
        state_of[rows] = next_state[child]
        rows = rows[goes_on]
        level += 1
    parent = np.concatenate(parents)
    unit, state = np.concatenate(units), np.concatenate(states)
    base = int(expansion.size) + 1
    cells = sum(sizes)
    cell_of = np.full(len(lengths), cells, np.int64)
    cell_of[order] = cell_at
    heap_of, spill = _heaps(cell_of, cells)
    into = np.full(made, -1, np.int64)
    into[state[state >= 0]] = np.flatnonzero(state >= 0)
    return Trie(
        order=order,
        first=np.searchsorted(parent, np.arange(made + 1)),
        unit=unit.astype(np.int32),
        state=state.astype(np.int32),
        lo=np.concatenate(los),
        hi=np.concatenate(his),
        depth=np.array(depths, np.int32),
        cells=cells,
        cell_of=cell_of,
        above=into[parent[sizes[0] : cells]],
        heap_of=heap_of,
        spill=spill,
        _key=parent * base + unit,
        _base=base,
    )


def _heaps(cell_of: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """(heap of each id, cell of each heap beyond the first of its cell)."""
    by = np.argsort(cell_of, kind="stable")
    first = np.searchsorted(cell_of[by], np.arange(cells + 1))
    layer = np.empty(len(by), np.int64)
    layer[by] = (np.arange(len(by)) - first[cell_of[by]]) // _HEAP
    key = cell_of + layer * (cells + 1)
    beyond, number = np.unique(key[layer > 0], return_inverse=True)
    heap_of = cell_of.copy()
    heap_of[layer > 0] = cells + 1 + number
    return heap_of, beyond % (cells + 1)
