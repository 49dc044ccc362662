"""The targets as a torch dataset: order from (seed, epoch), shared out to ranks and workers, exact resume.

    dataset = TargetsDataset(Targets("out", "small"), 8, seed=0)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2)  # of torchdata; DataLoader works too
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for batch in loader: ...

The order of an epoch's documents depends on (seed, epoch) alone. With C consumers (ranks times workers) it is cut into C
parts, equal up to one document, and consumer c has part c. A part touches few row groups, since the order mixes documents
only within pools of row groups; and it is exact for any C, also with more consumers than row groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
import torch.utils.data

from .collate import Batch
from .targets import POOL_GROUPS, Cursor, Targets


class TargetsDataset(torch.utils.data.IterableDataset[Batch]):
    """Batches of `Targets.batches`, those of this rank and worker. Use it with batch_size=None.

    rank, world_size  default: of torch.distributed where it is initialised, else 0 and 1
    drop_last         padded batches: each consumer gives the same number of full batches, what is left over is not read in
                      this epoch (so that no rank waits for another). Packed: an incomplete last batch is left out; how
                      many there are depends on lengths and may differ between ranks
    pool_groups       row groups mixed with each other: more mix better and need more memory
    The other arguments are those of `Targets.batches`. Raises ValueError and TargetsError.
    """

    def __init__(
        self,
        targets: Targets,
        batch_size: int,
        *,
        seed: int | None = None,
        max_length: int | None = None,
        pack_length: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        pool_groups: int = POOL_GROUPS,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank {rank} and world_size {world_size}: give both, or none")
        if rank is None or world_size is None:
            started = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if started else 0
            world_size = torch.distributed.get_world_size() if started else 1
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of world_size {world_size}: wanted 0 <= rank < world_size")
        if pool_groups < 1:
            raise ValueError(f"pool_groups {pool_groups}: wanted a number >= 1")
        self.targets, self.rank, self.world_size = targets, rank, world_size
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self._how: dict[str, Any] = {
            "seed": seed,
            "max_length": max_length,
            "pack_length": pack_length,
            "pool_groups": pool_groups,
        }
        # Shared memory: workers that live for several epochs see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._resume: Cursor | None = None
        self._place = (-1, Cursor(0))  # epoch and cursor of the pass under way
        targets.group_table  # noqa: B018 the footers are read here, once, and not in each worker

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass. Another epoch than that of a loaded state gives up that state."""
        if epoch < 0:
            raise ValueError(f"epoch {epoch}: wanted a number >= 0")
        if epoch != self.epoch:
            self._resume = None
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Batch]:
        start, stop = self._range()
        if self._resume is not None:
            start, self._resume = self._resume, None
        self._place = (self.epoch, start)  # here and not in the generator: a loader asks for the state before it begins
        return self._pass(self.epoch, start, stop)

    def _pass(self, epoch: int, start: Cursor, stop: int) -> Iterator[Batch]:
        for batch, cursor in self.targets.walk(self.batch_size, epoch=epoch, start=start, stop=stop, **self._how):
            if self.drop_last and len(batch["lengths"]) < self.batch_size:
                return
            self._place = (epoch, cursor)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: where the pass stands, behind the last batch given, and what the place depends on."""
        cursor = self._resume
        if cursor is None:
            of_epoch, cursor = self._place
            cursor = cursor if of_epoch == self.epoch else self._range()[0]
        return {**self._identity(), "epoch": self.epoch, "document": cursor.document, "piece": cursor.piece}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next pass goes on behind the last batch of that state.

        Raises ValueError when the run, the order or the consumers are others: a place in an epoch has no meaning there.
        Between epochs the world size may change: make the dataset anew and set_epoch.
        """
        mine = self._identity()
        differ = [f"{key}: state {state.get(key)!r}, here {mine[key]!r}" for key in mine if state.get(key) != mine[key]]
        if differ:
            raise ValueError(
                f"the state was saved with other settings ({'; '.join(differ)}): resume within an epoch with the same "
                "ones, or begin an epoch anew with set_epoch"
            )
        self._epoch.fill_(state["epoch"])
        self._resume = Cursor(state["document"], state["piece"])

    def _identity(self) -> dict[str, Any]:
        worker, workers = _worker()
        return {
            "fingerprint": self.targets.fingerprint,
            "product": self.targets.product,
            "documents": self.targets.rows,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            **self._how,
            "rank": self.rank,
            "world_size": self.world_size,
            "worker": worker,
            "workers": workers,
        }

    def _range(self) -> tuple[Cursor, int]:
        """Documents of this consumer in the order of the epoch."""
        worker, workers = _worker()
        consumer, consumers = self.rank * workers + worker, self.world_size * workers
        start, stop = (self.targets.rows * c // consumers for c in (consumer, consumer + 1))
        if self.drop_last and self._how["pack_length"] is None:
            stop = start + self.targets.rows // consumers // self.batch_size * self.batch_size
        return Cursor(start), stop


def _worker() -> tuple[int, int]:
    info = torch.utils.data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
