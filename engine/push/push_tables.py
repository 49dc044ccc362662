"""The tables that compiled push-forwards look up, put together from the states of one compiled pair.

In: a `CompiledPair` and the states that boundaries name (compiled/walk.py). Out: `Tables` (push/push_arrays.py): each state's
cells by teacher id, so that a row of probabilities is added up as it comes, without being put into another order.

Letters as in push/push_arrays.py.
"""

from __future__ import annotations

import hashlib

import numpy as np

from engine.compiled.odd_cells import MOST_ODD, odd_cells
from engine.compiled.pair import CompiledPair
from engine.compiled.state import State
from engine.push.push_arrays import Tables
from schemas.errors import IdentityError


class _Stack:
    """Arrays of one length, each once, as the rows of one array that grows by doubling."""

    def __init__(self, width: int, dtype: type) -> None:
        self._rows, self._known = np.zeros((4, width), dtype), {}

    def add(self, array: np.ndarray) -> int:
        """Row of an array with these values."""
        key = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        row = self._known.setdefault(key, len(self._known))
        if row == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[row] = array
        return row

    @property
    def rows(self) -> np.ndarray:
        return self._rows


class TableStore:
    """All tables made so far for one student. width: teacher ids Vt, as many as a row of probabilities has. Not thread-safe."""

    def __init__(self, pair: CompiledPair, width: int) -> None:
        self.pair, self.width = pair, width
        size, ends, teacher = len(pair.columns), len(pair.suffixes), pair.teacher
        self.cells = 2 * size + 2 + MOST_ODD + 1
        self._whole, self._cell, self._stop = _Stack(width, np.int32), _Stack(ends, np.int32), _Stack(ends, np.int32)
        self._settled, self._join = _Stack(ends, np.uint8), _Stack(size, np.uint8)
        self._of: list[tuple[int, int, int, int, int, int]] = []
        self._odd: list[np.ndarray] = []
        self._number: dict[int, int] = {}
        self._kept: list[State] = []  # their ids are keys
        rank = np.full(width, -1, np.int32)
        most = min(width, len(teacher.rank_V))
        rank[:most] = teacher.rank_V[:most]
        self._rank_V = rank
        self._made: Tables | None = None
        self.is_special_V = (rank < 0).astype(np.uint8)

    def number_of(self, state: State) -> int:
        """The table of a state. Raises IdentityError for one with more odd cells than there is room for: its boundaries go by
        the slow rules, and it is asked for nothing here."""
        known = self._number.get(id(state))
        if known is None:
            known = self._number[id(state)] = self._add(state)
            self._kept.append(state)
        return known

    def _add(self, state: State) -> int:
        cell, kinds = odd_cells(state)
        if len(kinds) > MOST_ODD:
            raise IdentityError(f"push-forward: a state with {len(kinds)} odd cells; want at most {MOST_ODD}")
        stop, settled = self._stop.add(state.stop_U), self._settled.add(state.sure_U)
        # no context's row is taken as a whole at a boundary inside a character: these states share one row of no meaning
        whole = self._whole.add(np.zeros(self.width, np.int32) if state.partial else self._by_id(cell))
        apart = not state.simple
        one, join = (0, 0) if apart else (self._cell.add(cell), self._join.add(state.join_C))
        self._of.append((whole, one, stop, settled, join, int(apart)))
        self._odd.append(kinds)
        self._made = None
        return len(self._of) - 1

    def _by_id(self, cell_U: np.ndarray) -> np.ndarray:
        """int32 [Vt]: the cell of each teacher token as a whole; the last one for ids that are no text."""
        whole, suffixes, ids = (
            np.full(self.width, self.cells - 1, np.int32),
            self.pair.suffixes,
            self.pair.teacher.ids_R,
        )
        inside = ids < self.width
        whole[ids[inside]] = cell_U[suffixes.suffix_of[suffixes.token_start_R[:-1]]][inside]
        return whole

    def tables(self) -> Tables:
        """All tables so far."""
        if self._made is not None:
            return self._made
        pair, teacher = self.pair, self.pair.teacher
        odd = np.concatenate([np.empty(0, np.int64), *self._odd])
        start = np.concatenate([[0], np.cumsum([len(o) for o in self._odd])]).astype(np.int64)
        self._made = Tables(
            of_S6=np.array(self._of, np.int32).reshape(-1, 6),
            whole_SV=self._whole.rows,
            cell_SU=self._cell.rows,
            join_SC=self._join.rows,
            odd_start_S=start,
            odd_column=(odd >> 3).astype(np.int32),
            odd_open=(odd >> 2 & 1).astype(np.uint8),
            odd_join=(odd >> 1 & 1).astype(np.uint8),
            odd_doubt=(odd & 1).astype(np.uint8),
            stop_SU=self._stop.rows,
            settled_SU=self._settled.rows,
            ids_R=teacher.ids_R,
            start_R=teacher.start_R,
            bytes_B=teacher.bytes_B,
            rank_V=self._rank_V,
            suffix_of=pair.suffixes.suffix_of,
            known_U=pair.answers[b""].known,
            column_of_V=pair.column_of_V,
            columns=pair.columns,
        )
        return self._made
