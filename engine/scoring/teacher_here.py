"""The teacher of a run, loaded in this process: whole, over the GPUs that it sees, or as one of the ranks that share it.

run file + what this process has -> Teacher
"""

from __future__ import annotations

import torch

from engine.plan.teacher_split import IN_RANKS, Split, split_of
from engine.scoring.room import check_in_this_process
from engine.teacher.model import Teacher, load_teacher
from engine.teacher.ranks import follow, lead, rank_count
from schemas.runfile import RunConfig


def load_here(run: RunConfig, tokenizer_end: int | None) -> Teacher:
    """The teacher to work with; among ranks for rank 0. Raises TeacherError."""
    return lead(_load(run, tokenizer_end))


def follow_leader(run: RunConfig) -> None:
    """For the ranks behind the first: load a part, and run what rank 0 runs until it is gone. Raises TeacherError, and RankLost
    for a pass that failed here."""
    follow(lambda: _load(run, None))


def _load(run: RunConfig, tokenizer_end: int | None) -> Teacher:
    check_in_this_process(run)
    adapter = None if run.teacher.adapter is None else run.locate(run.teacher.adapter)
    place = run.locate(run.teacher.model)
    return load_teacher(run.teacher, place, tokenizer_end=tokenizer_end, adapter=adapter, split=_split_here(run))


def _split_here(run: RunConfig) -> Split:
    """The run's own, but where this process has neither ranks nor several GPUs (verify): then what it can."""
    split = split_of(run)
    if split in IN_RANKS and rank_count() == 1:
        split = "layers"
    return "one" if split == "layers" and torch.cuda.device_count() < 2 else split
