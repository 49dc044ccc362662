"""Compiled: log-weights of contexts along the edges of their tree.

In: edges in the order of their parents, and log-probabilities. Out: the weights of definition 4.
"""

from __future__ import annotations

from numba import float64, int64

from engine.kernels.jit import kernel


@kernel(int64[::1], int64[::1], float64[::1], float64[::1])
def weigh_edges(parent_E, child_E, logp_E, logw_N):
    """logw_N[child] = logw_N[parent] + logp, edge after edge: a parent's own weight is there before its children ask for it.
    child: -1 for tokens that hang off the tree, which are left out."""
    for e in range(len(parent_E)):
        if child_E[e] >= 0:
            logw_N[child_E[e]] = logw_N[parent_E[e]] + logp_E[e]
