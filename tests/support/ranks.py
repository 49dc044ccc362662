"""A teacher shared by processes of this machine, as the pool makes it with actors: over gloo."""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from engine.teacher.model import Teacher, load_teacher
from engine.teacher.rank import Rank, join
from engine.teacher.ranks import follow, lead
from schemas.settings import TeacherConfig


def shared(
    folder: Path, work: Callable[[Teacher], Any], split: str, ends: tuple[int, ...] = (0, 0), **settings: Any
) -> Any:
    """What `work` (a function of a module) returns on rank 0 of a teacher that a process for each of `ends` shares. ends: how
    they are to end; nothing is returned where rank 0 is to die. AssertionError with what a process said if one failed."""
    context = get_context("forkserver")  # which imports the libraries once for all
    context.set_forkserver_preload(
        ["engine.teacher.ranks", "transformers.models.auto.modeling_auto", "tests.teacher.test_ranks"]
    )
    answers, count = context.Queue(), len(ends)
    place = str(folder.parent / f"ranks-{secrets.token_hex(4)}")
    ranks = [
        context.Process(target=_run, args=(Rank(number, count, place), str(folder), work, split, settings, answers))
        for number in range(count)
    ]
    for rank in ranks:
        rank.start()
    try:
        answer = None
        if ends[0] == 0:
            good, answer = answers.get(timeout=240)
            assert good or any(ends), answer
        for rank in ranks:
            rank.join(timeout=240)
        assert tuple(rank.exitcode for rank in ranks) == ends
        return answer
    finally:
        for rank in ranks:
            rank.kill()


def _run(rank: Rank, folder: str, work: Callable[[Teacher], Any], split: str, settings: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        join(rank)

        def load() -> Teacher:
            config = TeacherConfig.model_validate({"model": folder, "device": "cpu"} | settings)
            return load_teacher(config, folder, tokenizer_end=2, split=split)

        if rank.number:
            follow(load)
        else:
            answers.put((True, work(lead(load()))))
    except Exception:
        answers.put((False, f"rank {rank.number}:\n{traceback.format_exc()}"))
        raise
