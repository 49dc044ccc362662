"""Lists of columns that may not follow a student token, on the teacher's device, many at a time.

In: student tokens. Out: the columns that lemma 2 rules out behind each, as indices for tensor operations. A list is sent to the
device once; when there is no more room for lists, all are forgotten.
"""

from __future__ import annotations

import numpy as np
import torch

from engine.push.split_kernels import illegal_of
from engine.push.workers import Workers

MOST_COLUMNS = 1 << 26
"""int32 each."""


def spread(start: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(number of the range, place) of all places start[0] .. start[0] + size[0], start[1] .. and so on; all int64 [ranges]."""
    which = torch.repeat_interleave(size)
    before = torch.cumsum(size, 0) - size
    return which, torch.arange(len(which), device=start.device) + (start - before)[which]


class IllegalColumns:
    """The lists of one student."""

    def __init__(self, workers: Workers, device: torch.device) -> None:
        self._workers, self._device = workers, device
        size = workers.store.pair.vocabulary.size
        self._start_V, self._size_V = np.full(size, -1, np.int64), np.zeros(size, np.int64)
        self._columns, self._used = torch.zeros(1 << 16, dtype=torch.int32, device=device), 0

    def after(self, last: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(number in `last`, column) of all that may not follow these tokens, int64; -1 rules nothing out."""
        asked = np.unique(last[last >= 0])
        new = asked[self._start_V[asked] < 0]
        if len(new):
            self._add(asked, new)
        start, size = self._start_V[np.maximum(last, 0)], np.where(last >= 0, self._size_V[np.maximum(last, 0)], 0)
        which, place = spread(*(torch.from_numpy(np.maximum(a, 0)).to(self._device) for a in (start, size)))
        return which, self._columns[place].long()

    def _add(self, asked: np.ndarray, new: np.ndarray) -> None:
        lists = [self._list(token) for token in new.tolist()]
        if self._used + sum(map(len, lists)) > MOST_COLUMNS:
            self._start_V[:], self._used, new = -1, 0, asked
            lists = [self._list(token) for token in new.tolist()]
        size = np.array([len(each) for each in lists])
        end = self._used + int(size.sum())
        if end > len(self._columns):
            more = self._columns.new_zeros(max(end, 2 * len(self._columns)))
            more[: self._used] = self._columns[: self._used]
            self._columns = more
        self._columns[self._used : end] = torch.from_numpy(np.concatenate(lists)).to(self._device)
        self._start_V[new], self._size_V[new] = self._used + np.cumsum(size) - size, size
        self._used = end

    def _list(self, token: int) -> np.ndarray:
        """int32, rising."""
        store, work = self._workers.store, self._workers.scratch(0).work
        begin, end = illegal_of(store.pair.student, store.tables(), np.int64(token), work)
        return work.illegal[begin:end].copy()
