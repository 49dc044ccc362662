"""What the compiled push-forward of one student keeps from group to group: its tables, its threads, room for rows.

Letters: R rows of the window.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from engine.compiled.odd_cells import MOST_ODD
from engine.kernels.merge_kernels import Memo, new_memo
from engine.push.push_arrays import Parts, Rows, Work, new_parts, new_rows, new_work
from engine.push.push_tables import TableStore
from engine.push.sums_on_device import SumsOnDevice
from engine.push.sums_on_host import SumsOnHost

LEAST_SHARE = 1e-4
"""Tokens below this share of a boundary are not asked one by one when a leaf is split."""
MOST_HEAVY = 2048
"""Tokens of one row that are kept one by one at most; the others, the later ids, count by their cells."""


@dataclass(frozen=True, eq=False)
class Window:
    """The contexts at hand: global numbers int64 [R], and what the host keeps of their rows."""

    number: np.ndarray
    rows: Rows


class Scratch(NamedTuple):
    """What one thread works in."""

    work: Work
    memo: Memo
    parts: Parts


@dataclass(eq=False)
class CompiledPush:
    """One student's part of the push-forward that stays the same between groups.

    end_ids, other_ids: the teacher's ids that end a text, and its other specials. tolerance: width that the beam was to reach,
    None where nothing is spent on it. least: as LEAST_SHARE; 0 asks for every token. on_device: sums by columns are made by
    tensor operations where the teacher is; None: if that is no CPU. Used by one thread at a time; it hands slices of
    boundaries to `threads` of its own.
    """

    store: TableStore
    end_ids: np.ndarray
    other_ids: np.ndarray
    tolerance: float | None = None
    least: float = LEAST_SHARE
    threads: int = field(default_factory=lambda: torch.get_num_threads())
    on_device: bool | None = None
    _sums: SumsOnHost | SumsOnDevice | None = field(default=None, repr=False)
    _scratch: list[Scratch] = field(default_factory=list, repr=False)
    _window: Window | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.threads = max(1, min(self.threads, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(self.threads)
        end = self.store.pair.vocabulary.eos_id
        self.end_id = -1 if end is None else end

    @property
    def most_heavy(self) -> int:
        return self.store.width if self.least == 0 else min(MOST_HEAVY, self.store.width)

    def sums(self, device: torch.device) -> SumsOnHost | SumsOnDevice:
        """Where rows on this device are added up."""
        if self._sums is None or self._sums.device != device:
            asked = self.on_device if self.on_device is not None else device.type != "cpu"
            self._sums = SumsOnDevice(self, device) if asked else SumsOnHost(self, device)
        return self._sums

    def scratch(self, thread: int, top_k: int) -> Scratch:
        """Of one thread; grows with top_k."""
        pair = self.store.pair
        while len(self._scratch) <= thread or len(self._scratch[thread].work.heap_value) <= top_k:
            made = Scratch(
                new_work(len(pair.columns), pair.vocabulary.size, top_k),
                new_memo(pair.vocabulary.size, answers=1 << 18, listed=1 << 21),
                new_parts(pair.vocabulary.size),
            )
            self._scratch[thread : thread + 1] = [made]
        return self._scratch[thread]

    def window(self, rows: int) -> Window:
        """Room for some rows; what it held before stays."""
        old = self._window
        if old is None or len(old.number) < rows:
            made = Window(np.zeros(rows, np.int64), new_rows(rows, MOST_ODD, self.most_heavy))
            if old is not None:
                for to, of in zip((made.number, *made.rows), (old.number, *old.rows), strict=True):
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
