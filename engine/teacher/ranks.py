"""A teacher that several processes share, each with a part of every layer: rank 0 scores documents, the others follow it.

Every pass through the model needs all ranks at the same time. Rank 0 tells the others what it is about to run (windows, rounds,
rows of the lm_head), all run it, and only rank 0 uses what comes out. `LeadingTeacher` is such a teacher as rank 0 sees it: the
same methods, the same values but for the rounding of sums. Nothing else of the engine knows of ranks.

A rank that fails leaves the others in the middle of a pass, and no one can say where. So nothing is mended: `RankLost` ends the
group of processes, and whoever started it starts another.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from engine.teacher.incremental import IncrementalTrees
from engine.teacher.model import Teacher
from engine.teacher.packing import Window
from engine.teacher.rank import RankLost
from engine.teacher.self_check import first_line

_IDLE_LIMIT = timedelta(days=30)  # between passes: rank 0 may work on other things for long


class Channel:
    """What rank 0 tells the others: small Python objects, over processors, whatever the model runs on. All ranks make it at the
    same time."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=_IDLE_LIMIT)
        self.lost: RankLost | None = (
            None  # once a pass has failed: no other may begin, the ranks are no longer together
        )

    def tell(self, message: tuple[Any, ...]) -> None:
        dist.broadcast_object_list([message], src=0, group=self._group)

    def hear(self) -> tuple[Any, ...]:
        """Raises RuntimeError when rank 0 is gone."""
        box = [None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        assert box[0] is not None
        return box[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class LeadingTeacher(Teacher):
    """The teacher as rank 0 has it. _numbers: of open trees; _gone: of those that nobody needs any more."""

    _channel: Channel
    _numbers: Iterator[int]
    _gone: deque[int]

    @classmethod
    def of(cls, teacher: Teacher, channel: Channel) -> LeadingTeacher:
        known = {field.name: getattr(teacher, field.name) for field in fields(Teacher)}
        return cls(**known, _channel=channel, _numbers=itertools.count(), _gone=deque())

    @torch.inference_mode()
    def logits(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        hidden_CD = hidden_CD.contiguous()
        with self.together("logits", tuple(hidden_CD.shape), hidden_CD.dtype):
            dist.broadcast(hidden_CD, src=0)
            return super().logits(hidden_CD)

    @torch.inference_mode()
    def hidden(self, windows: list[Window]) -> list[torch.Tensor]:
        with self.together("hidden", windows):
            return super().hidden(windows)

    @torch.inference_mode()
    def open_trees(self, windows: list[Window]) -> IncrementalTrees:
        number = next(self._numbers)
        with self.together("open", number, self.reuse, windows):
            # those of a plain teacher: within them no rank tells the others anything
            trees = _plain(self).open_trees(windows)
        return LeadingTrees(self, number, trees)

    def head_weights(self) -> dict[str, torch.Tensor]:
        with self.together("head"):
            return super().head_weights()

    @contextmanager
    def together(self, what: str, *arguments: Any) -> Iterator[None]:
        """Tell the others what is run inside. Raises RankLost for whatever goes wrong there, memory included: the others are then
        somewhere else."""
        if self._channel.lost is not None:
            raise self._channel.lost
        gone = [self._gone.popleft() for _ in range(len(self._gone))]
        try:
            self._channel.tell((what, self._decoder.path_tokens, self._leading, gone, *arguments))
            yield
        except Exception as error:
            self._channel.lost = RankLost(f"rank 0 of the teacher: {type(error).__name__}: {first_line(error)}")
            raise self._channel.lost from error


class LeadingTrees(IncrementalTrees):
    """Open trees of which each rank has its own part."""

    def __init__(self, teacher: LeadingTeacher, number: int, trees: IncrementalTrees) -> None:
        self._teacher, self._number, self._trees = teacher, number, trees
        self.hidden = trees.hidden
        weakref.finalize(self, teacher._gone.append, number)  # the others let go of theirs with the next pass

    @property
    def sizes(self) -> list[int]:
        return self._trees.sizes

    def add(self, more: Sequence[Window]) -> list[torch.Tensor]:
        with self._teacher.together("add", self._number, list(more)):
            self.hidden = self._trees.add(more)
        return self.hidden


def lead(teacher: Teacher) -> Teacher:
    """The teacher for rank 0 once all ranks have loaded it; the same where this process shares it with nobody."""
    return LeadingTeacher.of(teacher, Channel()) if rank_count() > 1 else teacher


def rank_count() -> int:
    """Processes that share the teacher of this one, itself included."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def follow(load: Callable[[], Teacher]) -> None:
    """Load the teacher and run what rank 0 runs, until it is gone. Raises what loading raises, and RankLost for a pass that
    failed here."""
    teacher = load()
    channel, trees = Channel(), dict[int, IncrementalTrees]()
    while True:
        try:
            what, path_tokens, leading, gone, *arguments = channel.hear()
        except (RuntimeError, EOFError):
            return
        for number in gone:
            del trees[number]
        try:
            # batches are cut by these two, which must come out alike
            alike = replace(teacher, _decoder=replace(teacher._decoder, path_tokens=path_tokens), _leading=leading)
            _run(alike, trees, what, arguments)
        except Exception as error:
            raise RankLost(
                f"rank {dist.get_rank()} of the teacher: {type(error).__name__}: {first_line(error)}"
            ) from error


@torch.inference_mode()
def _run(teacher: Teacher, trees: dict[int, IncrementalTrees], what: str, arguments: list[Any]) -> None:
    if what == "logits":
        shape, dtype = arguments
        rows = torch.empty(shape, dtype=dtype, device=teacher.device)
        dist.broadcast(rows, src=0)
        teacher.logits(rows)
    elif what == "hidden":
        teacher.hidden(*arguments)
    elif what == "open":
        number, keeps, windows = arguments
        trees[number] = replace(teacher, reuse=keeps).open_trees(windows)
    elif what == "add":
        number, more = arguments
        trees[number].add(more)
    elif what == "head":
        teacher.head_weights()
    else:
        raise ValueError(f"rank 0 asks for {what!r}, which nobody knows")


def _plain(teacher: LeadingTeacher) -> Teacher:
    """The same without anybody to tell."""
    return Teacher(**{field.name: getattr(teacher, field.name) for field in fields(Teacher)})
