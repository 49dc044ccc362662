"""What the compiled push-forward of one student keeps from group to group: its tables, its threads, room for rows.

Letters: R rows of the window, Vt teacher ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.compiled.odd_cells import MOST_ODD
from engine.kernels.merge_kernels import Memo, new_memo
from engine.push.push_arrays import Sums, Work, new_work
from engine.push.push_tables import TableStore

LEAST_SHARE = 1e-4
"""Tokens below this share of a boundary are not asked one by one when a leaf is split."""
MOST_HEAVY = 2048
"""Tokens of one row that are kept one by one at most; the others, the later ids, count by their cells."""


@dataclass(frozen=True, eq=False)
class Window:
    """The contexts at hand: global numbers int64 [R], probabilities [R, Vt], and their sums."""

    number: np.ndarray
    prob: np.ndarray
    sums: Sums


@dataclass(eq=False)
class CompiledPush:
    """One student's part of the push-forward that stays the same between groups.

    end_ids, other_ids: the teacher's ids that end a text, and its other specials. tolerance: width that the beam was to reach,
    None where nothing is spent on it. least: as LEAST_SHARE; 0 asks for every token. Used by one thread at a time; it
    hands slices of boundaries to `threads` of its own.
    """

    store: TableStore
    end_ids: np.ndarray
    other_ids: np.ndarray
    tolerance: float | None = None
    least: float = LEAST_SHARE
    threads: int = field(default_factory=lambda: torch.get_num_threads())
    _scratch: list[tuple[Work, Memo, np.ndarray]] = field(default_factory=list, repr=False)
    _window: Window | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.threads = max(1, min(self.threads, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(self.threads)
        end = self.store.pair.vocabulary.eos_id
        self.end_id = -1 if end is None else end
        self.special_ids = np.concatenate([self.end_ids, self.other_ids]).astype(np.int64)

    @property
    def most_heavy(self) -> int:
        return self.store.width if self.least == 0 else min(MOST_HEAVY, self.store.width)

    def scratch(self, thread: int, top_k: int) -> tuple[Work, Memo, np.ndarray]:
        """Of one thread; grows with top_k."""
        pair = self.store.pair
        while len(self._scratch) <= thread or len(self._scratch[thread][0].heap_value) <= top_k:
            made = (
                new_work(len(pair.columns), pair.vocabulary.size, top_k),
                new_memo(pair.vocabulary.size, answers=1 << 18, listed=1 << 21),
                np.zeros(self.store.cells),
            )
            self._scratch[thread : thread + 1] = [made]
        return self._scratch[thread]

    def window(self, rows: int, dtype: np.dtype) -> Window:
        """Room for some rows; what it held before stays."""
        old = self._window
        if old is None or len(old.number) < rows or old.prob.dtype != dtype:
            size, most = len(self.store.pair.columns), self.most_heavy
            shapes = (size, size, 2, MOST_ODD, 5, None, None, most, most, None)
            types = (dtype, dtype, *[np.float64] * 5, *[np.int32] * 3)
            sums = [np.zeros(rows if n is None else (rows, n), kind) for n, kind in zip(shapes, types, strict=True)]
            made = Window(np.zeros(rows, np.int64), np.zeros((rows, self.store.width), dtype), Sums(*sums))
            if old is not None and old.prob.dtype == dtype:
                for to, of in zip((made.number, made.prob, *made.sums), (old.number, old.prob, *old.sums), strict=True):
                    to[: len(of)] = of
            self._window = made
        assert self._window is not None
        return self._window

    def each(self, job: Callable[[int, int, int], None], begin: int, end: int) -> None:
        """job(thread, from, to) for slices of begin .. end, side by side."""
        cuts = np.linspace(begin, end, self.threads + 1).astype(int).tolist()
        slices = [(i, a, b) for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)) if a < b]
        if len(slices) == 1:
            job(*slices[0])
            return
        for done in [self._pool.submit(job, *one) for one in slices]:
            done.result()
