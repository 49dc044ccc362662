"""One of several processes that share a teacher, and how they find each other. What they do together: ranks.py.

torch is imported where a rank joins: those who only hand ranks around start in a second without it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

_PASS_LIMIT = timedelta(hours=1)  # within a pass, and while weights are read at different speeds


class RankLost(Exception):
    """A rank failed within a pass: the processes that share the teacher are of no more use."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One of the processes that share a teacher. place: a file on a disk that all of them see, where none has been before; by it
    they find each other."""

    number: int
    count: int
    place: str


def join(rank: Rank) -> None:
    """Make this process a rank, before its teacher is loaded; returns when all have come. Each process sees one GPU, or none:
    then all of them compute on the CPU."""
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    os.environ |= {
        "RANK": str(rank.number),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(rank.count),
    }  # transformers reads these
    if gpu:
        torch.cuda.set_device(0)
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=f"file://{rank.place}",
        rank=rank.number,
        world_size=rank.count,
        timeout=_PASS_LIMIT,
        device_id=torch.device("cuda", 0) if gpu else None,
    )
