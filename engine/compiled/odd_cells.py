"""A state's strings by what sums must keep apart: cells for most, *odd cells* for those that columns do not describe.

In: a state of a compiled pair. Out: its cells again, in which strings whose cut hangs on what follows (`agrees_U` is False) have
odd cells of their own, too: a split behind such a string may be asked for nothing (push/split_kernels.py).
"""

from __future__ import annotations

import numpy as np

from engine.compiled.state import State

MOST_ODD = 16_384
"""Odd cells of one state at most; boundaries in a state with more go by the slow rules."""
MOST_BACK = 30
"""Characters before the end of a pending part at which a cut is told."""


def odd_cells(state: State) -> tuple[np.ndarray, np.ndarray]:
    """(cell_U int32, kinds int64): odd cell i has kind i, column << 3 | open << 2 | join << 1 | doubt. For states with cuts
    inside their pending part (not simple) all cells are odd, one for each set of cuts that what comes next may make: column
    has bit i for a cut i characters before the end of the pending part, open says that they hang on what follows."""
    size = len(state.join_C)
    if not state.simple:
        cuts = [[state.units - at for at in inside] + [0] * seam for inside, seam in state.variants]
        mask = np.array([sum(1 << at for at in each if at < MOST_BACK) for each in cuts], np.int64)
        far = np.array([any(at >= MOST_BACK for at in each) for each in cuts], bool)
        code = mask[state.variant_U] << 1 | (~state.agrees_U | far[state.variant_U])
        kinds, number = np.unique(code, return_inverse=True)
        return (2 * size + 2 + number).astype(np.int32), (kinds >> 1) << 3 | (kinds & 1) << 2
    plain, odd = state.cell_U < 2 * size, state.cell_U >= 2 * size + 2
    at = np.where(odd, state.cell_U - 2 * size - 2, 0)
    column = np.where(odd, np.append(state.odd_column, 0)[at], np.where(plain, state.cell_U % max(size, 1), -1))
    opened = np.where(odd, np.append(state.odd_open, 0)[at], np.where(plain, state.cell_U >= size, 0))
    joins = np.where(odd, np.append(state.odd_join, 0)[at], state.join_C[column] * plain)
    doubt = (plain | odd) & ~state.agrees_U
    apart = odd | doubt
    kinds, number = np.unique(
        column[apart].astype(np.int64) << 3 | opened[apart] << 2 | joins[apart] << 1 | doubt[apart], return_inverse=True
    )
    cell_U = state.cell_U.copy()
    cell_U[apart] = 2 * size + 2 + number
    return cell_U, kinds
