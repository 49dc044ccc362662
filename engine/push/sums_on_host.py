"""Rows of probabilities in the host's memory -> their sums by columns, and what boundaries store of them; by compiled functions.

In: chunks of probabilities, and the `Parts` that push/push_kernels.py makes of boundaries. Out: `Rows`, and `Stored`. The twin
for teachers on another device is push/sums_on_device.py.

Letters: R rows of the window, C columns, Vt teacher ids, X ranges of teacher tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from engine.push.push_arrays import Bounds, Rows, Stored
from engine.push.row_kernels import add_up_rows, take_ranges
from engine.push.scratch_arrays import Parts
from engine.push.sum_kernels import add_parts
from engine.push.workers import Workers


class Kids(NamedTuple):
    """The evaluated children of a chunk's contexts: start int64 [R+1]; token (rising within a row) and node int32."""

    start: np.ndarray
    token: np.ndarray
    node: np.ndarray


class SumsOnHost:
    """One student's sums of the rows of a window. end_ids, other_ids, least: as in compiled_push."""

    def __init__(
        self, workers: Workers, end_ids: np.ndarray, other_ids: np.ndarray, least: float, device: torch.device
    ) -> None:
        self.device, self._workers, self._store = device, workers, workers.store
        self._special_ids, self._least, self._columns = (end_ids, other_ids), least, len(workers.store.pair.columns)
        self._decided_RC = self._all_RC = np.zeros((0, self._columns), np.float32)
        self._acc = [np.zeros(self._store.cells) for _ in range(workers.count)]

    def add_up(self, prob_RV: torch.Tensor, at: int, table_R: np.ndarray, kids: Kids, rows: Rows) -> None:
        """Add up a chunk. Its rows become rows at .. of the window."""
        prob, count = prob_RV.numpy(), len(prob_RV)
        self._make_room(at + count, prob.dtype)
        tables = self._store.tables()

        def job(thread: int, begin: int, end: int) -> None:
            add_up_rows(
                tables, prob, np.int64(begin), np.int64(end), np.int64(at), table_R, *self._special_ids, *kids,
                self._least, self._acc[thread], rows, self._decided_RC, self._all_RC,
            )  # fmt: skip

        self._workers.each(job, 0, count)

    def take_ranges(self, prob_RV: torch.Tensor, row_X: np.ndarray, lo_X: np.ndarray, hi_X: np.ndarray) -> np.ndarray:
        """float64: the probabilities of ranges of the sorted vocabulary, range after range. All int64."""
        at_X = np.concatenate([[0], np.cumsum(hi_X - lo_X)]).astype(np.int64)
        out, prob, ids = np.empty(int(at_X[-1])), prob_RV.numpy(), self._store.tables().ids_R

        def job(_: int, begin: int, end: int) -> None:
            take_ranges(prob, ids, row_X, lo_X, hi_X, at_X, np.int64(begin), np.int64(end), out)

        self._workers.each(job, 0, len(row_X))
        return out

    def keep(self, kept: np.ndarray) -> None:
        """Move these rows, int64 and rising, to the front of the window; the others are forgotten."""
        for array in (self._decided_RC, self._all_RC):
            array[: len(kept)] = array[kept]

    def add_parts(self, thread: int, bounds: Bounds, begin: int, end: int, parts: Parts, out: Stored) -> None:
        """Add up boundaries begin .. end of a passage; for a thread with its own `parts`."""
        store, work = self._store, self._workers.scratch(thread).work
        add_parts(
            store.pair.student, store.tables(), bounds, self._decided_RC, self._all_RC, np.int64(begin), np.int64(end), work,
            parts, out,
        )  # fmt: skip

    def finish(self) -> None:
        """All is stored already."""

    def _make_room(self, rows: int, dtype: np.dtype) -> None:
        old = self._decided_RC, self._all_RC
        if len(old[0]) >= rows and old[0].dtype == dtype:
            return
        self._decided_RC, self._all_RC = (np.zeros((rows, self._columns), dtype) for _ in old)
        if old[0].dtype == dtype:
            self._decided_RC[: len(old[0])], self._all_RC[: len(old[0])] = old
