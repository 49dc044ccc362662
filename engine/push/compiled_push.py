"""What the compiled push-forward of one student keeps from group to group: its tables, its threads, room for rows.

Letters: R rows of the window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.compiled.odd_cells import MOST_ODD
from engine.push.push_arrays import Rows, new_rows
from engine.push.push_tables import TableStore
from engine.push.sums_on_device import SumsOnDevice
from engine.push.sums_on_host import SumsOnHost
from engine.push.workers import Workers

LEAST_SHARE = 1e-4
"""Tokens below this share of a boundary are not asked one by one when a leaf is split."""
MOST_HEAVY = 2048
"""Tokens of one row that are kept one by one at most; the others, the later ids, count by their cells."""


@dataclass(frozen=True, eq=False)
class Window:
    """The contexts at hand: global numbers int64 [R], and what the host keeps of their rows."""

    number: np.ndarray
    rows: Rows


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
    _window: Window | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.store, self.threads)
        end = self.store.pair.vocabulary.eos_id
        self.end_id = -1 if end is None else end

    @property
    def most_heavy(self) -> int:
        return self.store.width if self.least == 0 else min(MOST_HEAVY, self.store.width)

    def sums(self, device: torch.device) -> SumsOnHost | SumsOnDevice:
        """Where rows on this device are added up."""
        if self._sums is None or self._sums.device != device:
            asked = self.on_device if self.on_device is not None else device.type != "cpu"
            kind = SumsOnDevice if asked else SumsOnHost
            self._sums = kind(self.workers, self.end_ids, self.other_ids, self.least, device)
        return self._sums

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
