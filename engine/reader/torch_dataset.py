"""The targets as a torch dataset: order from (seed, epoch), shared out to ranks and workers, exact resume.

    dataset = TargetsDataset(Targets("out", "small"), 8, seed=0)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2)  # of torchdata; DataLoader works too
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for batch in loader: ...

The order of an epoch's documents depends on (seed, epoch) alone. With C consumers (ranks times workers) it is cut into C
parts, equal up to one document, and consumer c has part c. A part touches few row groups, since the order mixes documents
only within pools of row groups; and it is exact for any C, also with more consumers than row groups.

When a job goes on with other ranks or workers in the middle of an epoch, what its consumers had left is put together again
(`resume`) and cut anew: every document of the epoch is given once, by the one job or the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed
import torch.utils.data

from .collate import Batch
from .spans import Spans
from .walk import POOL_GROUPS, Cursor, Walk


class TargetsDataset(torch.utils.data.IterableDataset[Batch]):
    """Batches of `Targets.batches`, those of this rank and worker. Use it with batch_size=None.

    targets           Targets, or a Blend of several
    rank, world_size  default: of torch.distributed where it is initialised, else 0 and 1
    drop_last         padded batches: each consumer gives the same number of full batches, what is left over is not read in
                      this epoch (so that no rank waits for another). Packed: an incomplete last batch is left out; how
                      many there are depends on lengths and may differ between ranks
    pool_groups       row groups mixed with each other: more mix better and need more memory
    The other arguments are those of `Targets.batches`. Raises ValueError and TargetsError.
    """

    def __init__(
        self,
        targets: Walk,
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
        whole = Spans.whole(targets.rows)
        self._resume: tuple[Spans, Cursor] | None = None
        # Of the pass under way: epoch, what all consumers together had to give, and the place in this one's share of it
        self._place = (-1, whole, Cursor(0))
        targets.prepare()  # here, once, and not in each worker

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
        spans, start = self._resume or (Spans.whole(self.targets.rows), Cursor(0))
        self._resume = None
        self._place = (self.epoch, spans, start)  # here and not in the generator: a loader asks for it before it begins
        return self._pass(self.epoch, spans, start)

    def _pass(self, epoch: int, spans: Spans, start: Cursor) -> Iterator[Batch]:
        share = self._share(spans)
        if self.drop_last and self._how["pack_length"] is None:
            share = share.cut(0, spans.size // self._consumers()[1] // self.batch_size * self.batch_size)
        for batch, cursor in self.targets.walk(self.batch_size, share, epoch=epoch, start=start, **self._how):
            if self.drop_last and len(batch["lengths"]) < self.batch_size:
                return
            self._place = (epoch, spans, cursor)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON: where the pass stands, behind the last batch given, and what the place depends on."""
        of_epoch, spans, cursor = self._place
        if self._resume is not None:
            spans, cursor = self._resume
        elif of_epoch != self.epoch:
            spans, cursor = Spans.whole(self.targets.rows), Cursor(0)
        where = {"epoch": self.epoch, "document": cursor.document, "piece": cursor.piece}
        return {**self._identity(), **where, **spans.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next pass goes on behind the last batch of that state.

        Raises ValueError when the run, the order or the consumers are others: a place in a share has no meaning there. With
        other ranks or workers, `resume` takes the states of all of them.
        """
        self._check(state, self._identity())
        spans, cursor = _place_of(state)
        if "spans" not in state:  # before 0.7.0 a place was counted from the beginning of the order
            first = self.targets.rows * self._consumers()[0] // self._consumers()[1]
            spans, cursor = Spans.whole(self.targets.rows), Cursor(cursor.document - first, cursor.piece)
        self._epoch.fill_(state["epoch"])
        self._resume = spans, cursor

    def resume(self, states: Sequence[Mapping[str, Any]]) -> None:
        """The next pass gives what all consumers of an earlier job had left of their epoch, shared out to the ranks and
        workers of this one, of whatever number: no document twice, none lost (of a document that had been cut into pieces, the
        pieces that are left). Behind it, set_epoch begins a whole epoch as usual.

        states  one of each rank: of TargetsDataset.state_dict, or of a StatefulDataLoader's. All ranks of the new job are given
                the same ones, in any order. (While the ranks stay, load_state_dict gives the very same batches.)

        Raises ValueError where the run or the order is another (the number of ranks and workers may be), where states of some
        consumers are missing, doubled or of different epochs, and where a loader's state is older than its last batch.
        """
        found = [part for state in states for part in _consumer_states(state)]
        mine = {key: value for key, value in self._identity().items() if key not in _CONSUMER}
        for state in found:
            self._check(state, mine)
        jobs = {(state["world_size"], state["workers"], state["epoch"], str(state.get("spans"))) for state in found}
        if len(jobs) != 1:
            raise ValueError(
                f"states of {len(jobs)} different jobs or epochs (world_size, workers, epoch: "
                f"{sorted({job[:3] for job in jobs})}): give those of all ranks of one job, saved at the same step"
            )
        ((world_size, workers, epoch, _),) = jobs
        given = sorted((state["rank"], state["worker"]) for state in found)
        wanted = [(rank, worker) for rank in range(world_size) for worker in range(workers)]
        if given != wanted:
            raise ValueError(
                f"states of (rank, worker) {given}, wanted each of {world_size} ranks with {workers} workers once: what a "
                "missing one had left would be lost"
            )
        left = []
        for state in found:
            spans, cursor = _place_of(state)
            share = spans.share(state["rank"] * workers + state["worker"], world_size * workers)
            left.append(share.behind(cursor.document, cursor.piece))
        self._epoch.fill_(epoch)
        self._resume = Spans.joined(left), Cursor(0)

    def _check(self, state: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
        differ = [f"{key}: state {state.get(key)!r}, here {mine[key]!r}" for key in mine if state.get(key) != mine[key]]
        if differ:
            raise ValueError(
                f"the state was saved with other settings ({'; '.join(differ)}): resume within an epoch with the same "
                "ones (other ranks and workers: `resume` with the states of all ranks), or begin an epoch anew with set_epoch"
            )

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

    def _consumers(self) -> tuple[int, int]:
        """(number of this one, how many there are)"""
        worker, workers = _worker()
        return self.rank * workers + worker, self.world_size * workers

    def _share(self, spans: Spans) -> Spans:
        return spans.share(*self._consumers())


_CONSUMER = ("rank", "world_size", "worker", "workers")


def _worker() -> tuple[int, int]:
    info = torch.utils.data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _place_of(state: Mapping[str, Any]) -> tuple[Spans, Cursor]:
    return Spans.from_json(state.get("spans", ()), state.get("begun", ())), Cursor(state["document"], state["piece"])


def _consumer_states(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The states of a rank's consumers: its own, or those of all workers within the state of a StatefulDataLoader."""
    if "fingerprint" in state and "document" in state:
        return [state]
    if behind := state.get("_steps_since_snapshot"):
        raise ValueError(
            f"a loader's state that is {behind} batches older than its last one: make the loader with "
            "snapshot_every_n_steps=1 (the default)"
        )
    return [part for value in state.values() if isinstance(value, Mapping) for part in _consumer_states(value)]
