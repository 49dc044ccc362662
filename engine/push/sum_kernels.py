"""Compiled: the parts of boundaries -> their masses by columns -> what is stored of them.

In: `Parts` (push/push_kernels.py) and the sums of rows by columns (push/row_kernels.py). Out: top-k, tail and gold of each
boundary (push/top_k_kernels.py), and the masses of definition 8 put right by what only these sums tell. The twin on a device is
push/sums_on_device.py.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64

from engine.kernels.flat import FLAT
from engine.kernels.jit import kernel
from engine.push.push_arrays import BOUNDS, STORED, TABLES
from engine.push.scratch_arrays import ADDS, FOLDS, OWN, PARTS, WORK
from engine.push.split_kernels import illegal_of
from engine.push.top_k_kernels import keep


def _add_own(t, decided_RC, all_RC, n, first, stop, k, w, parts, out):
    """Own row n of boundary k. first, stop: where in w.illegal the columns lie that may not follow its last token.

    Their masses are set aside and put back where they JOIN, so that what is excluded was never added.
    """
    r, weight, illegal = parts.own_row[n], parts.own_weight[n], stop - first
    join_C, all_C, decided_C = t.join_SC[t.of_S6[parts.own_table[n], 4]], all_RC[r], decided_RC[r]
    for i in range(illegal):
        w.old_C[w.illegal[first + i]] = w.mass_C[w.illegal[first + i]]
    for c in range(len(t.columns)):
        w.mass_C[c] += weight * np.float64(all_C[c])
    broken, broken_decided = 0.0, 0.0
    for i in range(illegal):
        c = w.illegal[first + i]
        if join_C[c]:
            w.mass_C[c] = w.old_C[c]
            broken += np.float64(all_C[c])
            broken_decided += np.float64(decided_C[c])
    out.decided[k] -= weight * broken_decided
    out.excluded[k] += weight * broken


def _own_types(real):
    return TABLES, real[:, ::1], real[:, ::1], int64, int64, int64, int64, WORK, PARTS, STORED


add_own = kernel(*_own_types(float32), also=_own_types(float64))(_add_own)


def _add_parts(s, t, bounds, decided_RC, all_RC, begin, end, w, parts, out):
    """Boundaries begin .. end, all those that `parts` is about. Fills `out`."""
    own, fold, add, columns = 0, 0, 0, len(t.columns)
    for k in range(begin, end):
        first_own, first_add = own, add
        if own < parts.used[OWN] and parts.own_k[own] == k:
            first, stop = illegal_of(s, t, np.int64(bounds.last_K[k]), w)
            while own < parts.used[OWN] and parts.own_k[own] == k:
                add_own(t, decided_RC, all_RC, np.int64(own), first, stop, np.int64(k), w, parts, out)
                own += 1
        while fold < parts.used[FOLDS] and parts.fold_k[fold] == k:
            first, stop = illegal_of(s, t, np.int64(parts.fold_token[fold]), w)
            join_C, decided_C = t.join_SC[t.of_S6[parts.fold_table[fold], 4]], decided_RC[parts.fold_row[fold]]
            broken = 0.0
            for i in range(first, stop):
                if join_C[w.illegal[i]]:
                    broken += np.float64(decided_C[w.illegal[i]])
            out.open[k] += parts.fold_scale[fold] * broken
            if parts.fold_lost[fold] == 0:
                out.decided[k] -= parts.fold_scale[fold] * broken
            fold += 1
        while add < parts.used[ADDS] and parts.add_k[add] == k:
            at = parts.add_at[add]
            if at < columns:
                w.mass_C[at] += parts.add_mass[add]
            else:
                w.spill_id[w.counts[1]], w.spill[w.counts[1]] = at - columns, parts.add_mass[add]
                w.counts[1] += 1
            add += 1
        if own > first_own or add > first_add:
            keep(t, np.int64(k), bounds.gold_K[k], np.int64(out.ids.shape[1]), w, out)


def _parts_types(real):
    return FLAT, TABLES, BOUNDS, real[:, ::1], real[:, ::1], int64, int64, WORK, PARTS, STORED


add_parts = kernel(*_parts_types(float32), also=_parts_types(float64))(_add_parts)
