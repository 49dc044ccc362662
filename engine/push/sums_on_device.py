"""Rows of probabilities on a device -> their sums by columns, and what boundaries store of them; by tensor operations.

In: chunks of probabilities, and the `Parts` that push/push_kernels.py makes of boundaries. Out: `Rows`, and `Stored`. The rows
never leave the device: of each the host gets its heavy tokens, some sums, and the ranges of tokens that reach past a later
boundary; of each boundary what is stored. The twin in the host's memory is push/sums_on_host.py.

Letters: R rows of the window, C columns, Vt teacher ids, K boundaries of a block, D rows that belong to boundaries, F folds,
A masses added one by one, M tokens without a column of one boundary at most, J states' actions by column.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from engine.compiled.odd_cells import MOST_ODD
from engine.push.device_lists import IllegalColumns, spread
from engine.push.push_arrays import Bounds, Rows, Stored, Tables
from engine.push.scratch_arrays import ADDS, FOLDS, OWN, Parts
from engine.push.sums_on_host import Kids
from engine.push.workers import Workers

BLOCK = 128
"""Boundaries that are added up at once: float64 [K, C] and some like it."""


@dataclass(eq=False)
class _Waiting:
    """Boundaries begin .. end of one passage, whose parts wait to be added up."""

    bounds: Bounds
    begin: int
    end: int
    parts: Parts
    out: Stored


class SumsOnDevice:
    """One student's sums of the rows of a window; the methods are those of `SumsOnHost`."""

    def __init__(
        self, workers: Workers, end_ids: np.ndarray, other_ids: np.ndarray, least: float, device: torch.device
    ) -> None:
        self.device, self._store, self._least, pair = device, workers.store, least, workers.store.pair
        self._columns, self._lock = len(pair.columns), threading.Lock()
        self._decided_RC = self._all_RC = torch.zeros((0, self._columns), device=device)
        self._whole: dict[int, torch.Tensor] = {}  # int64 [Vt], by row of Tables.whole_SV
        self._join_JC = torch.zeros((0, self._columns), dtype=torch.bool, device=device)
        self._joined: Tables | None = None  # those that they are of
        self._column_ids = self._on(pair.columns)
        self._sorted_ids = self._on(pair.teacher.ids_R)
        self._ends, self._others = self._on(end_ids), self._on(other_ids)
        self._is_text = self._on(workers.store.is_special_V) == 0
        self._illegal = IllegalColumns(workers, device)
        self._waiting: list[_Waiting] = []

    def _on(self, array: np.ndarray) -> torch.Tensor:
        """int64, on the device."""
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.device)

    # ==== rows

    def add_up(self, prob_RV: torch.Tensor, at: int, table_R: np.ndarray, kids: Kids, rows: Rows) -> None:
        """Add up a chunk. Its rows become rows at .. of the window."""
        tables, size, count = self._store.tables(), self._columns, len(prob_RV)
        heavy = self._heavy(prob_RV, table_R, kids, rows.heavy_RH.shape[1])
        light = prob_RV.masked_fill(heavy, 0.0)
        acc = torch.zeros((count, self._store.cells), dtype=torch.float64, device=self.device)
        join_R = np.zeros(count, np.int64)
        for table in np.unique(table_R[table_R >= 0]).tolist():
            of_table, (whole, _, _, _, join, _) = np.flatnonzero(table_R == table), tables.of_S6[table].tolist()
            if whole not in self._whole:
                self._whole[whole] = self._on(tables.whole_SV[whole])
            join_R[of_table] = join
            picked = self._on(of_table)
            sums = acc.new_zeros((len(of_table), acc.shape[1]))
            acc[picked] = sums.index_add_(1, self._whole[whole], light[picked].double())
        decided, opened = acc[:, :size], acc[:, size : 2 * size]
        both, joins = decided + opened, self._joins(join_R)
        shares = (
            (both * ~joins).sum(1),
            (decided * joins).sum(1),
            (opened * joins).sum(1),
            opened.sum(1),
            decided.sum(1),
        )
        ends, others = (prob_RV[:, ids].double().sum(1) for ids in (self._ends, self._others))
        few = torch.stack([prob_RV.sum(1, dtype=torch.float64), ends, others, *shares], 1)
        told = torch.cat([few, acc[:, 2 * size : 2 * size + 2 + MOST_ODD]], 1).cpu().numpy()
        to = slice(at, at + count)
        rows.total_R[to], rows.ends_R[to], rows.others_R[to] = told[:, 0], told[:, 1], told[:, 2]
        rows.text_R[to] = told[:, 0] - (told[:, 1] + told[:, 2])
        rows.share_R5[to], rows.none_R2[to], rows.odd_RO[to] = told[:, 3:8], told[:, 8:10], told[:, 10:]
        rows.share_R5[to, 3] += rows.none_R2[to, 1] + _open_odd(tables, table_R, rows.odd_RO[to])
        self._list_heavy(prob_RV, heavy, at, kids, rows)
        new = decided.to(prob_RV.dtype), both.to(prob_RV.dtype)
        self._decided_RC, self._all_RC = (
            torch.cat([old[:at].to(each.dtype), each])
            for old, each in zip((self._decided_RC, self._all_RC), new, strict=True)
        )

    def _heavy(self, prob_RV: torch.Tensor, table_R: np.ndarray, kids: Kids, most: int) -> torch.Tensor:
        """bool [R, Vt]: the tokens that are listed, heavy ones and those behind which there is a context; the first `most`."""
        heavy = (prob_RV > largest_below(self._least, prob_RV.dtype)) & self._is_text
        of_kid = np.repeat(np.arange(len(table_R)), np.diff(kids.start))
        heavy[self._on(of_kid), self._on(kids.token)] = True
        heavy &= self._on(table_R >= 0)[:, None] > 0
        if most < heavy.shape[1]:
            heavy &= heavy.cumsum(1, dtype=torch.int32) <= most
        return heavy

    def _list_heavy(self, prob_RV: torch.Tensor, heavy: torch.Tensor, at: int, kids: Kids, rows: Rows) -> None:
        row, token = heavy.nonzero(as_tuple=True)
        p = prob_RV[row, token].double().cpu().numpy()
        row, token = row.cpu().numpy(), token.cpu().numpy()
        count = np.bincount(row, minlength=len(heavy))
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        rows.heavy_R[at : at + len(heavy)] = count
        rows.heavy_RH[at + row, place], rows.heavy_p_RH[at + row, place] = token, p
        rows.kid_RH[at + row, place] = -1
        if len(row) and len(kids.token):
            key = row * heavy.shape[1] + token
            wanted = np.repeat(np.arange(len(heavy)), np.diff(kids.start)) * heavy.shape[1] + kids.token
            found = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
            there = key[found] == wanted  # no room for some: their leaves stay open
            rows.kid_RH[at + row[found[there]], place[found[there]]] = kids.node[there]

    def take_ranges(self, prob_RV: torch.Tensor, row_X: np.ndarray, lo_X: np.ndarray, hi_X: np.ndarray) -> np.ndarray:
        """float64: the probabilities of ranges of the sorted vocabulary, range after range. All int64."""
        which, place = spread(self._on(lo_X), self._on(hi_X - lo_X))
        return prob_RV[self._on(row_X)[which], self._sorted_ids[place]].double().cpu().numpy()

    def keep(self, kept: np.ndarray) -> None:
        """Move these rows, int64 and rising, to the front of the window; the others are forgotten."""
        self._decided_RC, self._all_RC = self._decided_RC[self._on(kept)], self._all_RC[self._on(kept)]

    # ==== boundaries

    def add_parts(self, thread: int, bounds: Bounds, begin: int, end: int, parts: Parts, out: Stored) -> None:
        """Note boundaries begin .. end of a passage, for `finish`; `parts` may be used again."""
        used = parts.used.tolist()
        sizes = [used[OWN]] * 4 + [used[FOLDS]] * 6 + [used[ADDS]] * 3 + [3]
        copies = Parts(*(array[:size].copy() for array, size in zip(parts, sizes, strict=True)))
        with self._lock:
            self._waiting.append(_Waiting(bounds, begin, end, copies, out))

    def finish(self) -> None:
        """Add up and store all boundaries that were noted."""
        for waiting in self._waiting:
            for begin in range(waiting.begin, waiting.end, BLOCK):
                self._block(waiting, begin, min(begin + BLOCK, waiting.end))
        self._waiting.clear()

    def _block(self, waiting: _Waiting, begin: int, end: int) -> None:
        parts, out, size, count = waiting.parts, waiting.out, self._columns, end - begin
        own, fold, add = (slice(*np.searchsorted(k, [begin, end])) for k in (parts.own_k, parts.fold_k, parts.add_k))
        at_A, k_A = parts.add_at[add].astype(np.int64), parts.add_k[add].astype(np.int64) - begin
        spilt = np.flatnonzero(at_A >= size)
        number = np.arange(len(spilt)) - np.searchsorted(k_A[spilt], k_A[spilt])  # among those of its boundary
        more_KM = np.full((count, int(number.max(initial=-1)) + 1), -1, np.int64)
        more_KM[k_A[spilt], number] = at_A[spilt] - size
        at_A[spilt] = size + number
        mass_KC = torch.zeros((count, size + more_KM.shape[1]), dtype=torch.float64, device=self.device)
        self._add_own(waiting, own, begin, mass_KC)
        mass_KC.index_put_((self._on(k_A), self._on(at_A)), self._float(parts.add_mass[add]), accumulate=True)
        self._settle_folds(waiting, fold)
        self._put(waiting, begin, end, mass_KC, more_KM)
        if len(out.dense_KV):
            dense = np.zeros((count, out.dense_KV.shape[1]))
            found = mass_KC.cpu().numpy()
            dense[:, self._store.pair.columns] = found[:, :size]
            row, m = np.nonzero(more_KM >= 0)
            dense[row, more_KM[row, m]] = found[row, size + m]
            out.dense_KV[begin:end] = dense

    def _add_own(self, waiting: _Waiting, own: slice, begin: int, mass_KC: torch.Tensor) -> None:
        """Rows that belong to boundaries: their light mass, but for columns that JOIN and may not follow the last token."""
        parts, out = waiting.parts, waiting.out
        k_D, row_D, weight_D = parts.own_k[own], self._on(parts.own_row[own]), self._float(parts.own_weight[own])
        all_DC, join_D = self._all_RC[row_D].double(), self._join_of(parts.own_table[own])
        which, column = self._illegal.after(waiting.bounds.last_K[k_D])
        joins = self._join_JC[join_D[which], column]
        value = all_DC[which, column] * joins
        all_DC[which, column] = all_DC[which, column].masked_fill(joins, 0.0)
        decided = self._decided_RC[row_D[which], column].double() * joins
        broken = weight_D * value.new_zeros(len(k_D)).index_add_(0, which, value)
        broken_decided = weight_D * value.new_zeros(len(k_D)).index_add_(0, which, decided)
        mass_KC[:, : self._columns].index_add_(0, self._on(k_D - begin), all_DC.mul_(weight_D[:, None]))
        np.add.at(out.excluded, k_D, broken.cpu().numpy())
        np.subtract.at(out.decided, k_D, broken_decided.cpu().numpy())

    def _settle_folds(self, waiting: _Waiting, fold: slice) -> None:
        """What folds counted as decided and is not."""
        parts, out = waiting.parts, waiting.out
        which, column = self._illegal.after(parts.fold_token[fold])
        joins = self._join_JC[self._join_of(parts.fold_table[fold])[which], column]
        decided = self._decided_RC[self._on(parts.fold_row[fold])[which], column].double() * joins
        scale, kept = parts.fold_scale[fold], parts.fold_lost[fold] == 0
        broken = scale * decided.new_zeros(len(scale)).index_add_(0, which, decided).cpu().numpy()
        np.add.at(out.open, parts.fold_k[fold], broken)
        np.subtract.at(out.decided, parts.fold_k[fold][kept], broken[kept])

    def _put(self, waiting: _Waiting, begin: int, end: int, mass_KC: torch.Tensor, more_KM: np.ndarray) -> None:
        """The heaviest tokens, the sum of all others, the gold token's mass."""
        out, size, gold = waiting.out, self._columns, waiting.bounds.gold_K[begin:end]
        column = self._store.pair.column_of_V[np.maximum(gold, 0)].astype(np.int64)
        if more_KM.shape[1]:
            spilt = more_KM == gold[:, None]
            column = np.where(spilt.any(1), size + spilt.argmax(1), column)
        known = (gold >= 0) & (column >= 0)
        gold_K = mass_KC.gather(1, self._on(np.maximum(column, 0))[:, None])[:, 0]
        valid, most = mass_KC.sum(1), min(out.ids.shape[1], mass_KC.shape[1])
        best, at = mass_KC.topk(most, 1)
        tail = mass_KC.scatter(1, at, 0.0).sum(1)  # over what is left, so that stored + tail = valid can fail
        ids_KC = torch.cat([self._column_ids.expand(end - begin, size), self._on(more_KM)], 1) if more_KM.size else None
        ids = self._column_ids[at] if ids_KC is None else ids_KC.gather(1, at)
        told = torch.cat([torch.stack([valid, tail, gold_K], 1), best], 1).cpu().numpy()
        out.valid[begin:end], out.tail[begin:end] = told[:, 0], told[:, 1]
        out.gold[begin:end] = np.where(known, told[:, 2], 0.0)
        out.ids[begin:end, :most], out.mass[begin:end, :most] = ids.cpu().numpy(), told[:, 3:]

    # ==== tables

    def _float(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _join_of(self, table: np.ndarray) -> torch.Tensor:
        """int64, rows of `_join_JC` for tables."""
        return self._on(self._store.tables().of_S6[table, 4])

    def _joins(self, join_R: np.ndarray) -> torch.Tensor:
        """bool [R, C]: whether a column JOINs, by row of Tables.join_SC."""
        tables = self._store.tables()
        if tables is not self._joined:  # there are more states than before
            self._join_JC, self._joined = torch.from_numpy(tables.join_SC.astype(bool)).to(self.device), tables
        return self._join_JC[self._on(join_R)]


def largest_below(value: float, dtype: torch.dtype) -> float:
    """The largest number of this type that is not above a float64: rows are compared in their own type here, on the host in
    float64, and 0.1 as float32 is more than 0.1."""
    rounded = torch.tensor(value, dtype=dtype)
    return float(rounded if float(rounded) <= value else torch.nextafter(rounded, rounded - 1))


def _open_odd(tables: Tables, table_R: np.ndarray, odd_RO: np.ndarray) -> np.ndarray:
    """float64 [R]: light mass on the odd cells that are open."""
    out = np.zeros(len(table_R))
    for table in np.unique(table_R[table_R >= 0]).tolist():
        first, last = tables.odd_start_S[table : table + 2].tolist()
        rows = table_R == table
        out[rows] = odd_RO[rows, : last - first] @ (tables.odd_open[first:last] == 1).astype(float)
    return out
