"""Compiled: lists of token ids that may not follow, and what probability a row gives them.

In: a `FlatTokenizer` (kernels/flat.py), actions of tokens (contexts/next_tokens.py), rows of probabilities. Out: ids; sums. Their
slow twins, in tests, are `CanonicalNext.illegal` (contexts/canonical.py) and a gather with torch.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, float64, int8, int32, int64, uint64

from engine.kernels.flat import FLAT
from engine.kernels.jit import kernel
from engine.kernels.merge_kernels import illegal_after


@kernel(FLAT, int64, int8[::1], int64, int32[::1], uint64[::1], int32[::1])
def illegal_pairs(t, last, action_V, pair, closed, bits, out):
    """int64 n: fills out[:n] with the ids whose action is `pair` and which may not stand behind `last` (lemma 2), and behind them
    those of `closed` that are not among them. last: -1 for none, whose pairs are all allowed. bits, out: as in
    `illegal_after`."""
    n = 0
    if last >= 0:
        for i in range(illegal_after(t, last, bits, out)):
            token = out[i]
            if action_V[token] == pair:
                out[n] = token
                n += 1
    pairs = n
    for token in closed:
        known = action_V[token] == 0  # NEVER: it stands in the other list
        for i in range(pairs):
            known = known or out[i] == token
        if not known:
            out[n] = token
            n += 1
    return n


@kernel(float32[::1], int64, int32[:, ::1], int32[::1], boolean, float64[::1])
def illegal_mass(prob, stride, segment_R4, ids, clear, mass_R):
    """Sum of each row over its ids, in two lists: ids[segment[r, 0] : segment[r, 1]], ids[segment[r, 2] : segment[r, 3]].

    prob: the rows, one every `stride` numbers. clear: set them to 0 there, too.
    """
    for r in range(len(segment_R4)):
        begin = r * stride
        mass = 0.0
        for part in range(0, 4, 2):
            for i in range(segment_R4[r, part], segment_R4[r, part + 1]):
                at = begin + ids[i]
                mass += prob[at]
                if clear:
                    prob[at] = np.float32(0)
        mass_R[r] = mass
