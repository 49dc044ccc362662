"""The threads among which one student's boundaries are shared out, and what each of them works in.

In: a range of numbers and a job for slices of it. Out: the job done, slices side by side: compiled functions leave Python to
the other threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from engine.kernels.merge_kernels import Memo, new_memo
from engine.push.push_tables import TableStore
from engine.push.scratch_arrays import Parts, Work, new_parts, new_work


class Scratch(NamedTuple):
    """What one thread works in."""

    work: Work
    memo: Memo
    parts: Parts


class Workers:
    """Threads for one student. Used by one thread at a time."""

    def __init__(self, store: TableStore, threads: int) -> None:
        self.store, self.count = store, max(1, min(threads, os.cpu_count() or 1))
        self._pool, self.made = ThreadPoolExecutor(self.count), list[Scratch]()

    def scratch(self, thread: int, top_k: int = 1) -> Scratch:
        """Of one thread; grows with top_k."""
        pair = self.store.pair
        while len(self.made) <= thread or len(self.made[thread].work.heap_value) <= top_k:
            made = Scratch(
                new_work(len(pair.columns), pair.vocabulary.size, top_k),
                new_memo(pair.vocabulary.size, answers=1 << 18, listed=1 << 21),
                new_parts(pair.vocabulary.size),
            )
            self.made[thread : thread + 1] = [made]
        return self.made[thread]

    def each(self, job: Callable[[int, int, int], None], begin: int, end: int) -> None:
        """job(thread, from, to) for slices of begin .. end, side by side."""
        cuts = [begin + (end - begin) * i // self.count for i in range(self.count + 1)]
        slices = [(i, a, b) for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)) if a < b]
        if len(slices) == 1:
            job(*slices[0])
            return
        for done in [self._pool.submit(job, *one) for one in slices]:
            done.result()
